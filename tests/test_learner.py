"""What a rollout batch adds to its optimiser steps."""

import numpy as np
import pytest

from sdpo_jax import config, learner
from sdpo_jax.step import Metrics


class Learner(learner.Learner):
    """One without weights, that only decides when the teacher moves."""

    def __init__(self, c):
        self._config = c


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
