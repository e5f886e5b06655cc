"""The schedule counts rollout batches, whatever their size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdpo_jax import config, optimizer


def settings(**fields):
    c = config.default()
    c.rollout.questions, c.step.questions = 8, 2
    c.optimizer.learning_rate, c.optimizer.warmup_updates = 1.0, 4
    c.train.updates = 8
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return c


def rates(c, updates=9):
    """Of the first and of the last optimiser step of every batch, which are equal."""
    rate, steps = optimizer.learning_rate(c), optimizer.steps_per_batch(c)
    first = [float(rate(u * steps)) for u in range(updates)]
    last = [float(rate(u * steps + steps - 1)) for u in range(updates)]
    assert first == last
    return np.array(first)


HALF = [0.5 * (1 + np.cos(np.pi * u / 4)) for u in range(5)]


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1]),
        ("cosine", [0.2, 0.4, 0.6, 0.8, *HALF]),
        # Its first batch does not move.
        ("official", [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
    ],
)
def test_rate_of_each_batch(schedule, expected):
    found = rates(settings(optimizer__schedule=schedule))

    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "official"])
def test_without_a_warm_up_every_batch_has_the_peak(schedule):
    c = settings(optimizer__schedule=schedule, optimizer__warmup_updates=0)

    assert rates(c).tolist() == [1] * 9


def test_schedule_goes_on_where_it_was_with_batches_of_another_size():
    before, after = settings(), settings(step__questions=4)
    adamw, one = optimizer.make_optimizer(before), jnp.ones(2)
    state = adamw.init(one)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(3 * optimizer.steps_per_batch(before)):
            _, state = adamw.update(one, state, one)

    moved = optimizer.at_update(after, state, 3)

    adam, *_, schedule = moved[1]
    assert optimizer.learning_rate(after)(schedule.count) == pytest.approx(0.8)
    # The moments have seen as many gradients as they have seen.
    assert adam.count == 12
    same = optimizer.at_update(before, state, 3)[1][-1]
    assert same.count == state[1][-1].count == 12
