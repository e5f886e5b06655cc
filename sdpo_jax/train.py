"""The training loop, top to bottom: sample -> grade -> update -> evaluate -> save.

From a notebook:

  from sdpo_jax import config, train

  c = config.default()
  c.model.path = "Qwen/Qwen3-0.6B"
  summary = train.run(c, "runs/mine", environment=MyEnvironment())
"""

import contextlib
import functools
import logging
import pathlib
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from sdpo_jax import (
    config,
    distributed,
    envs,
    evaluate,
    feedback,
    metrics,
    run_folder,
    step,
)
from sdpo_jax.batch import Batch
from sdpo_jax.checkpoint import Checkpoints
from sdpo_jax.components import Parts, build
from sdpo_jax.envs.base import Environment
from sdpo_jax.methods import READS_TEACHER
from sdpo_jax.questions import curriculum
from sdpo_jax.questions import order as question_order
from sdpo_jax.rollout import Sampling

_SHOWN = ("loss", "rollout/score", "validation/pass@1")
_log = logging.getLogger(__name__)


class Interrupted(Exception):
    """A signal asked the run to stop; everything so far is saved."""


def run(
    c: ConfigDict,
    workdir: str | pathlib.Path,
    environment: Environment | None = None,
    may_change: Sequence[str] = (),
    wandb_project: str | None = None,
) -> dict[str, Any]:
    """Train, or go on training, and return the summary of the whole run.

    The same call on an unfinished run resumes it, to the bit; on a finished one it
    returns the summary that is there.

    Args:
      c: the run's config.
      workdir: the run folder.
      environment: one of the caller's own, instead of `config.env`'s.
      may_change: dotted config fields that may differ from an earlier part of the run.
      wandb_project: also send the metrics there; None for no wandb at all.

    Returns:
      What `summary.json` holds.

    Raises:
      ValueError: if the config, checkpoint, questions or folder cannot work.
      FloatingPointError: if a loss or gradient is not finite; the state before is
        saved.
      Interrupted: if SIGTERM or Ctrl-C asked to stop; the state is saved.
    """
    config.validate(c)
    envs.validate(c)
    if "://" in str(workdir):
        raise ValueError(
            f"--workdir={workdir} must be a folder; mount the bucket (for example with "
            "gcsfuse) and give the mounted path"
        )
    folder = pathlib.Path(workdir)
    with run_folder.claim(folder, c, may_change) as finished:
        if finished is not None:
            _log.info("%s is finished; nothing to do", folder)
        else:
            finished = _train(c, folder, environment, wandb_project)
        return finished


def _train(
    c: ConfigDict, folder: pathlib.Path, environment, wandb_project: str | None
) -> dict[str, Any]:
    """The whole run, or what is left of it; its summary."""
    with (
        build(c, environment) as parts,
        _stop_signals() as stop,
        Trainer(parts, folder, wandb_project) as trainer,
    ):
        while trainer.update < c.train.updates:
            trainer.advance(stop)
        return trainer.finish()


class Trainer:
    """A run between its updates: the state, and where it is written."""

    def __init__(
        self, parts: Parts, folder: pathlib.Path, wandb_project: str | None = None
    ):
        """Begin, or restore the newest sound checkpoint of `folder`."""
        self.parts, self.folder, c = parts, folder, parts.config
        self._wandb_project = wandb_project
        versions = getattr(parts.environment, "versions", None)
        metrics.write_once(folder, config.flat(c), parts.mesh.shape, versions)
        self._train_step = step.make_train_step(c, parts.arch, parts.mesh)
        self._score = step.make_scorer(c, parts.arch, parts.mesh)
        questions = parts.environment.questions("train")
        self._questions = feedback.fitting(c, parts.tokenizer, questions, "train")
        self._dropped = len(questions) - len(self._questions)
        question_order.of_update(self._questions, 0, c.rollout.questions, c.seed)
        # A prompt that is too long is refused now, not when its turn comes.
        feedback.encode(c, parts.tokenizer, self._questions)
        self._checkpoints = Checkpoints(folder / "checkpoints")
        self.timer = metrics.Timer()
        self.update = 0
        self._saved = None
        self._curriculum = curriculum.State()
        with contextlib.ExitStack() as exits:
            exits.callback(self._checkpoints.close)
            self._open(exits)
            self._exits = exits.pop_all()

    def _open(self, exits: contextlib.ExitStack) -> None:
        """Load or restore the state, and open the log as it was then."""
        parts, c = self.parts, self.parts.config
        # Hosts may see a shared folder at different times; the first one decides.
        resume = distributed.from_first(self._checkpoints.latest() is not None)
        if resume:
            abstract = step.abstract_state(c, parts.arch, parts.mesh)
            abstract = abstract.replace(base=None)
            self.state, extra, self.update = self._checkpoints.restore(abstract)
            self._curriculum = curriculum.restored(c, extra, self.update)
            if c.lora.rank:
                self.state = self.state.replace(base=parts.load_params())
            self._saved = self.update
            self._check_updates()
        else:
            self.state = step.new_state(c, parts.arch, parts.mesh, parts.load_params())
        self._describe()
        self._log = metrics.RunLog(
            self.folder,
            num_steps=c.train.updates,
            resume_from=self.update if resume else None,
            shown=_SHOWN,
            wandb_project=self._wandb_project,
        )
        exits.callback(self._log.close)
        if not resume:
            values = self._evaluate("validation", "heldout")
            if self._dropped:
                values["train/dropped_questions"] = float(self._dropped)
            self._log.write_metrics(0, values)
            self._log.write_timings(0, self.timer.take())

    def _check_updates(self) -> None:
        """Refuse a run that was allowed to become shorter than it already is."""
        updates = self.parts.config.train.updates
        if self.update > updates:
            raise ValueError(
                f"train.updates={updates}, but {self.folder} is already after update "
                f"{self.update}; raise it or give another --workdir"
            )

    def _describe(self) -> None:
        """Say what is about to run, before anything takes long."""
        c, mesh = self.parts.config, self.parts.mesh
        count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
        _log.info(
            "%s: %s, %.3g parameters, %.3g of them trained, %d x %s, update %d of %d",
            self.folder,
            c.method,
            count(self.state.policy),
            count(self.state.student),
            mesh.size,
            mesh.devices.flat[0].device_kind,
            self.update,
            c.train.updates,
        )

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(self, *_) -> None:
        self._exits.close()

    def advance(self, stop: "_Stop") -> None:
        """One update: sample, grade, train; evaluate and save when due.

        Raises:
          Interrupted: if `stop` is set, with the last whole update saved.
        """
        c, parts = self.parts.config, self.parts
        key = jax.random.fold_in(jax.random.key(c.seed), self.update)
        questions, turned, counted = self._choose()
        repeated = [q for q in questions for _ in range(c.rollout.attempts)]
        grading = feedback.Grading(c, parts.environment, parts.tokenizer, repeated)
        with grading:
            with self.timer("sample"):
                prompts = feedback.encode(c, parts.tokenizer, questions)
                ids = range(len(questions))
                attempts = parts.engine.sample(
                    self.state.policy, prompts, ids, _sampling(c), key, grading.add
                )
            self._leave_if(stop)
            # What is left of it: rows are graded as soon as they are sampled.
            with self.timer("grade"):
                graded = grading.finish()
                batch, records, values = feedback.make_batch(
                    c, parts.tokenizer, attempts, graded, self.update
                )
        self._leave_if(stop)
        # Before the update, so that a loss that is not finite leaves its transcripts.
        self._log.write_attempts(self.update + 1, records)
        with self.timer("train"):
            values |= self._train(batch)
        self.update += 1
        self._curriculum = turned.measured(feedback.pass_rates(c, graded))
        self._after_update(values | counted)
        self._leave_if(stop)

    def _choose(self) -> curriculum.Choice:
        """The questions of the next update; without any in the band all is saved."""
        c = self.parts.config
        try:
            return curriculum.choose(c, self._questions, self.update, self._curriculum)
        except ValueError:
            self.save()
            raise

    def _leave_if(self, stop: "_Stop") -> None:
        if _any_host(stop.is_set):
            self.save()
            raise Interrupted(f"stopped after update {self.update}, saved")

    def _train(self, batch: Batch) -> dict[str, float]:
        """All optimiser steps on one rollout batch, and their metrics."""
        c, mesh = self.parts.config, self.parts.mesh
        num_steps = step.steps_per_batch(c)
        rows = len(batch.has_target_B) // num_steps
        cut = lambda i: jax.tree.map(lambda x: x[i * rows : (i + 1) * rows], batch)
        minibatches = [distributed.to_devices(cut(i), mesh) for i in range(num_steps)]
        if num_steps > 1:
            # All of them before the first step moves the student.
            score = functools.partial(self._score, self.state.policy)
            minibatches = [
                m.replace(old_logp_BR=score(m.attempts)) for m in minibatches
            ]
        of_steps = []
        for index, minibatch in enumerate(minibatches):
            rate = c.teacher.rate if _teacher_moves(c, index, num_steps) else 0.0
            self.state, values = self._train_step(
                self.state, minibatch, np.float32(rate)
            )
            values = distributed.to_host(values)
            self._check_finite(values, index)
            of_steps.append(values)
        return _average(of_steps)

    def _check_finite(self, values: dict[str, Any], index: int) -> None:
        """Stop at the first loss or gradient that is not finite, naming the culprit."""
        leaves_finite = values.pop("gradient_finite")
        if values.pop("finite"):
            return
        paths, _ = zip(
            *jax.tree_util.tree_leaves_with_path(self.state.student), strict=True
        )
        names = [jax.tree_util.keystr(p, simple=True, separator="/") for p in paths]
        bad = [n for n, ok in zip(names, leaves_finite, strict=True) if not ok]
        culprit = f"loss={values['loss']}"
        if bad:
            culprit += f", gradient of {bad[0]} and {len(bad) - 1} more parameters"
        if index == 0:
            # Later the state is in the middle of a rollout batch: going on from it
            # would take the batch's first steps twice.
            self.save()
        raise FloatingPointError(
            f"update {self.update + 1}, optimiser step {index + 1} of it, is not "
            f"finite: {culprit}; the state after update {self._saved or 0} is kept in "
            f"{self.folder}. Lower optimizer.learning_rate or look at this update's "
            "rows in attempts.jsonl"
        )

    def _after_update(self, values: dict[str, float]) -> None:
        """Evaluate and save when due, and write the update's line."""
        c, last = self.parts.config, self.update == self.parts.config.train.updates
        evaluated = {}
        if last:
            evaluated = self._evaluate("validation", "heldout")
        elif self.update % c.train.evaluate_every == 0:
            evaluated = self._evaluate("validation")
        self._log.write_metrics(self.update, values | evaluated)
        self._log.write_timings(self.update, self.timer.take())
        if evaluated or last or self.update % c.train.save_every == 0:
            self.save(evaluated.get(f"validation/avg@{c.eval.attempts}"))

    def _evaluate(self, *splits: str) -> dict[str, float]:
        return self._evaluate_policy(self.state.policy, *splits)

    def _evaluate_policy(self, policy: Any, *splits: str) -> dict[str, float]:
        values = {}
        with self.timer("evaluate"):
            for split in splits:
                of_split, _ = evaluate.on_split(self.parts, policy, split)
                values |= {f"{split}/{name}": x for name, x in of_split.items()}
                told = ", ".join(f"{name} {x:.4g}" for name, x in of_split.items())
                _log.info("after update %d, %s: %s", self.update, split, told)
        return values

    def save(self, score: float | None = None) -> None:
        """Save the state under the number of updates done, unless it is there."""
        # Saved a second time, without its score, it could no longer be the best.
        if self._saved != self.update:
            trained = self.state.replace(base=None)
            extra = curriculum.saved(self.parts.config, self._curriculum)
            self._checkpoints.save(self.update, trained, extra, score=score)
            self._saved = self.update

    def finish(self) -> dict[str, Any]:
        """Evaluate the best checkpoint and write the summary of the whole run."""
        c, parts = self.parts.config, self.parts
        self._checkpoints.wait()
        best = distributed.from_first(self._checkpoints.best())
        heldout = None
        if best != self.update:
            student = step.abstract_state(c, parts.arch, parts.mesh).student
            student = self._checkpoints.restore_part("student", student, best)
            policy = step.whole(self.state.base, student)
            heldout = _split_of(self._evaluate_policy(policy, "heldout"), "heldout")
        summary = None
        if distributed.is_first():
            summary = self._summarise(best, heldout)
            metrics.write_json_atomically(self.folder / run_folder.SUMMARY, summary)
        return distributed.from_first(summary)

    def _summarise(self, best: int, heldout: dict[str, float] | None) -> dict:
        """What `summary.json` holds; without `heldout` the best is the last."""
        r = self.parts.config.rollout
        lines = metrics.read_lines(self.folder / metrics.METRICS)
        by_step = {line["step"]: line for line in lines}
        timings = metrics.read_lines(self.folder / metrics.TIMINGS)
        seconds = sum(v for t in timings for k, v in t.items() if k != "step")
        splits = lambda line: {s: _split_of(line, s) for s in ("validation", "heldout")}
        last = splits(by_step[self.update])
        return {
            "method": self.parts.config.method,
            "updates": self.update,
            "generations": self.update * r.questions * r.attempts,
            "seconds": round(seconds, 1),
            "base": splits(by_step[0]),
            "last": last,
            "best": {
                "update": best,
                "validation": _split_of(by_step[best], "validation"),
                "heldout": heldout or last["heldout"],
            },
        }


def _sampling(c: ConfigDict) -> Sampling:
    r = c.rollout
    return Sampling(r.attempts, r.temperature, r.top_p, r.top_k, r.max_response)


def _teacher_moves(c: ConfigDict, index: int, num_steps: int) -> bool:
    """Whether the teacher follows after optimiser step `index` of a rollout batch."""
    if c.method not in READS_TEACHER:
        return False
    return c.teacher.update_per == "optimizer_step" or index == num_steps - 1


def _average(of_steps: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Metrics of a rollout batch; sums over tokens become means over its steps."""
    weights = [values.pop("weight") for values in of_steps]
    means = {n: float(np.mean([v[n] for v in of_steps])) for n in of_steps[0]}
    # A step without targets has weight 0, and says nothing about entropy.
    total = max(float(np.sum(weights)), np.finfo(np.float32).tiny)
    per_token = means.keys() - {"loss", "gradient_norm", "learning_rate"}
    for name in per_token:
        means[name] *= len(of_steps) / total
    return means | {"steps_without_targets": float(np.mean(np.equal(weights, 0)))}


def _split_of(line: dict[str, Any], split: str) -> dict[str, float]:
    prefix = f"{split}/"
    return {k.removeprefix(prefix): v for k, v in line.items() if k.startswith(prefix)}


class _Stop:
    """A flag set by a signal; the second signal is not caught any more."""

    def __init__(self):
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def __call__(self, number: int, frame: Any) -> None:
        self._is_set = True
        signal.signal(number, signal.SIG_DFL)
        _log.warning("%s: saving after this update", signal.Signals(number).name)


@contextlib.contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Turn SIGTERM and Ctrl-C into a flag that is looked at between updates."""
    stop = _Stop()
    try:
        before = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:
        # Only the main thread may handle signals; elsewhere they are the caller's.
        before = {}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _any_host(flag) -> bool:
    """Whether any host was asked to stop: all must leave after the same update."""
    if jax.process_count() == 1:
        return flag()
    return bool(multihost_utils.process_allgather(np.array(flag())).any())
