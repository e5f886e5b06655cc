import pathlib
import subprocess
import sys

import pytest

from sdpo_jax.questions import order

NAMES = list("abcdefg")


def stream(updates, count, seed=0, names=NAMES):
    batches = [order.of_update(names, u, count, seed) for u in range(updates)]
    assert all(len(batch) == count for batch in batches)
    return [name for batch in batches for name in batch]


@pytest.mark.parametrize("count", [1, 3, 5, 7])
def test_each_pass_has_every_question_once_in_a_new_order(count):
    names = stream(7 * 6, count)[: 7 * 6]

    passes = [tuple(names[first : first + 7]) for first in range(0, 42, 7)]

    assert all(sorted(one) == NAMES for one in passes)
    assert len(set(passes)) == 6


def test_order_does_not_depend_on_the_batch_size_or_earlier_updates():
    expected = stream(42, 1)
    assert stream(14, 3) == expected
    assert order.of_update(NAMES, 13, 3, seed=0) == expected[39:]


def test_order_depends_only_on_the_seed():
    call = f"order.of_update({NAMES}, 5, 4, 1)"
    script = f"from sdpo_jax.questions import order\nprint({call})"

    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed},
            cwd=pathlib.Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "01"
    }

    assert outputs == {f"{order.of_update(NAMES, 5, 4, 1)}\n"}
    assert stream(6, 7, seed=1) != stream(6, 7, seed=0)


def test_batch_larger_than_the_questions_is_rejected():
    with pytest.raises(ValueError, match=r"rollout.questions=8 exceeds the 7 training"):
        order.of_update(NAMES, 0, 8, seed=0)
