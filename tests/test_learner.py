"""What a rollout batch adds to its optimiser steps."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sdpo_jax import config, distributed, learner
from sdpo_jax.batch import Attempts, Batch
from sdpo_jax.step import Metrics


class Learner(learner.Learner):
    """One whose state is a number: optimiser steps done, which is what it scores."""

    def __init__(self, c):
        self._config = c
        self._mesh = distributed.make_mesh(c.mesh, jax.devices()[:1])
        self.state, self.seen = SimpleNamespace(policy=0, student={}), []
        self._score = lambda policy, attempts: np.full((1, 1), policy)
        self._train_step = self._step

    def _step(self, state, batch, teacher_rate):
        self.seen.append((batch, float(teacher_rate)))
        moved = SimpleNamespace(policy=state.policy + 1, student={})
        return moved, measured(1.0, 0.5, 2.0)


@pytest.mark.parametrize(
    "method, update_per, moves",
    [
        ("sdpo", "rollout_batch", [False, False, True]),
        ("sdpo", "optimizer_step", [True, True, True]),
        ("grpo", "optimizer_step", [False, False, False]),
    ],
)
def test_teacher_follows_per_batch_or_per_step(method, update_per, moves):
    c = config.default()
    c.method, c.teacher.update_per = method, update_per

    found = [Learner(c)._teacher_moves(is_last) for is_last in (False, False, True)]

    assert found == moves


@pytest.mark.parametrize("steps", [1, 3])
def test_steps_of_a_batch_share_its_rows_and_the_policy_before_it(steps):
    c = config.default()
    c.rollout.questions, c.step.questions = 3, 3 // steps
    c.teacher.rate = 0.25
    rows = np.arange(3)[:, None]
    attempts = Attempts(rows, rows, rows >= 0, None)
    one = Learner(c)

    one.update(Batch(attempts, np.ones(3, bool), np.ones(3)))

    batches, rates = zip(*one.seen, strict=True)
    seen = [batch.attempts.prompt_BP for batch in batches]
    np.testing.assert_array_equal(np.concatenate(seen), rows)
    assert rates == (0.0,) * (steps - 1) + (0.25,)
    # Every importance ratio is to the policy that no step has moved yet.
    olds = [batch.old_logp_BR for batch in batches]
    assert olds == [None] if steps == 1 else [np.max(old) for old in olds] == [0] * 3


def measured(weight, loss, entropy):
    per_step = {"loss": np.float32(loss), "gradient_norm": np.float32(3 * loss)}
    finite = np.array([True])
    return Metrics({"entropy": np.float32(entropy)}, per_step, weight, True, finite)


def test_metrics_of_several_steps_weigh_by_what_was_taught():
    # Sums over tokens: entropies of 2, 4 and, without any target, of nothing.
    steps = [measured(1.0, 1.0, 2.0), measured(0.5, 2.0, 2.0), measured(0.0, 0.0, 0.0)]

    found = learner._average(steps)

    assert found == pytest.approx(
        {
            "loss": 1.0,
            "gradient_norm": 3.0,
            "entropy": 4.0 / 1.5,
            "steps_without_targets": 1 / 3,
        }
    )


def test_batch_without_any_target_averages_to_zero():
    found = learner._average([measured(0.0, 0.0, 0.0)] * 2)

    assert found["entropy"] == 0 and found["steps_without_targets"] == 1
