"""The student, and the update that trains it; knows no run folder and no text.

Training, training at test time and a notebook each hold one:

  learner = Learner(c, arch, mesh, load_params)
  values = learner.update(batch)
"""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sdpo_jax import distributed, methods, optimizer, step, train_state
from sdpo_jax.batch import Attempts, Batch
from sdpo_jax.model.families import Architecture
from sdpo_jax.train_state import Params, TrainState


class NotFiniteError(FloatingPointError):
    """A loss or gradient is not finite; the state is as before that optimiser step.

    Attributes:
      optimizer_step: which of the batch's optimiser steps it was, from 0.
    """

    def __init__(self, culprit: str, optimizer_step: int):
        super().__init__(culprit)
        self.optimizer_step = optimizer_step


class Learner:
    """The state of training and the jitted functions that read and change it.

    Args:
      c: the run's config.
      arch: the model.
      mesh: devices.
      load_params: returns the model's checkpoint on the mesh; called to start, and with
        LoRA for the frozen base.
      trained: a restored state, as `trained_shapes` describes it; None starts from
        the model's checkpoint.

    Attributes:
      state: a `TrainState`; `update` donates it.
    """

    def __init__(
        self,
        c: ConfigDict,
        arch: Architecture,
        mesh: Mesh,
        load_params: Callable[[], Params],
        trained: TrainState | None = None,
    ):
        self._config, self._mesh = c, mesh
        self._train_step = step.make_train_step(c, arch, mesh)
        self._score = step.make_scorer(c, arch, mesh)
        if trained is None:
            self.state = train_state.new_state(c, arch, mesh, load_params())
        elif c.lora.rank:
            # Checkpoints of a run hold the adapters only, never their frozen base.
            self.state = trained.replace(base=load_params())
        else:
            self.state = trained

    @property
    def policy(self) -> Params:
        """The student as `decoder` reads it."""
        return self.state.policy

    def description(self) -> str:
        """Method, size and devices, for the log."""
        count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
        return (
            f"{self._config.method}, {count(self.policy):.3g} parameters, "
            f"{count(self.state.student):.3g} of them trained, {self._mesh.size} x "
            f"{self._mesh.devices.flat[0].device_kind}"
        )

    def score(self, attempts: Attempts) -> jax.Array:
        """The student's log-probabilities of what it wrote [B, R], in nats."""
        return self._score(self.policy, attempts)

    def update(self, batch: Batch) -> dict[str, float]:
        """All optimiser steps on one rollout batch.

        Args:
          batch: host arrays, the same on every host; its rows are cut, in order, into
            as many equal parts as there are optimiser steps.

        Returns:
          Means over the steps; of per-token metrics, over the tokens that count.

        Raises:
          NotFiniteError: at the first loss or gradient that is not finite.
        """
        minibatches = self._minibatches(batch)
        metrics_of_steps = []
        for index, minibatch in enumerate(minibatches):
            is_last = index == len(minibatches) - 1
            rate = self._config.teacher.rate if self._teacher_moves(is_last) else 0.0
            self.state, metrics = self._train_step(
                self.state, minibatch, np.float32(rate)
            )
            # Waits for the device: the next step must not start from a bad state.
            metrics = distributed.to_host(metrics)
            self._check_finite(metrics, index)
            metrics_of_steps.append(metrics)
        return _average(metrics_of_steps)

    def _minibatches(self, batch: Batch) -> list[Batch]:
        """The batch of each optimiser step, on the devices."""
        num_steps = optimizer.steps_per_batch(self._config)
        rows = len(batch.has_target_B) // num_steps
        cut = lambda i: jax.tree.map(lambda x: x[i * rows : (i + 1) * rows], batch)
        on_mesh = functools.partial(distributed.to_devices, mesh=self._mesh)
        minibatches = [on_mesh(cut(i)) for i in range(num_steps)]
        if num_steps == 1:
            return minibatches
        # Scored before the first step: the importance ratio is to the policy that
        # stands here, and the first step changes it.
        return [m.replace(old_logp_BR=self.score(m.attempts)) for m in minibatches]

    def _teacher_moves(self, is_last: bool) -> bool:
        """Whether the teacher follows after an optimiser step of a rollout batch."""
        if not methods.of(self._config).reads_teacher:
            return False
        return self._config.teacher.update_per == "optimizer_step" or is_last

    def _check_finite(self, metrics: step.Metrics, index: int) -> None:
        """Raise at a loss or gradient that is not finite, naming the culprit."""
        if metrics.finite:
            return
        paths, _ = zip(
            *jax.tree_util.tree_leaves_with_path(self.state.student), strict=True
        )
        names = [jax.tree_util.keystr(p, simple=True, separator="/") for p in paths]
        pairs = zip(names, metrics.gradient_finite, strict=True)
        bad = [name for name, is_finite in pairs if not is_finite]
        culprit = f"loss={metrics.per_step['loss']}"
        if bad:
            culprit += f", gradient of {bad[0]} and {len(bad) - 1} more parameters"
        raise NotFiniteError(culprit, index)


def trained_shapes(c: ConfigDict, arch: Architecture, mesh: Mesh) -> TrainState:
    """Shapes and placement of what a checkpoint holds: the state without its base."""
    return train_state.abstract_state(c, arch, mesh).replace(base=None)


def _average(of_steps: Sequence[step.Metrics]) -> dict[str, float]:
    """Metrics of a rollout batch from those of its optimiser steps."""
    mean_of = lambda values, name: float(np.mean([v[name] for v in values]))
    per_step = [m.per_step for m in of_steps]
    per_token = [m.per_token for m in of_steps]
    weights = [m.weight for m in of_steps]
    # A step without targets has weight 0, and says nothing about entropy.
    total = max(float(np.sum(weights)), np.finfo(np.float32).tiny)
    to_token_mean = len(of_steps) / total
    return {
        **{name: mean_of(per_step, name) for name in per_step[0]},
        **{name: mean_of(per_token, name) * to_token_mean for name in per_token[0]},
        "steps_without_targets": float(np.mean(np.equal(weights, 0))),
    }
