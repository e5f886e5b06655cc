"""What the loop adds to its parts: when the teacher follows, what a line averages."""

import pytest

from sdpo_jax import config, train


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

    assert [train._teacher_moves(c, index, 3) for index in range(3)] == moves


def test_metrics_of_several_steps_weigh_by_what_was_taught():
    # Sums over tokens: entropies of 2, 4 and, without any target, of nothing.
    steps = [
        {"loss": 1.0, "gradient_norm": 3.0, "weight": 1.0, "entropy": 2.0},
        {"loss": 2.0, "gradient_norm": 6.0, "weight": 0.5, "entropy": 2.0},
        {"loss": 0.0, "gradient_norm": 0.0, "weight": 0.0, "entropy": 0.0},
    ]

    found = train._average(steps)

    assert found == pytest.approx(
        {
            "loss": 1.0,
            "gradient_norm": 3.0,
            "entropy": 4.0 / 1.5,
            "steps_without_targets": 1 / 3,
        }
    )


def test_batch_without_any_target_averages_to_zero():
    nothing = {"loss": 0.0, "gradient_norm": 0.0, "weight": 0.0, "entropy": 0.0}

    found = train._average([dict(nothing), dict(nothing)])

    assert found["entropy"] == 0 and found["steps_without_targets"] == 1
