"""The order of the training questions: a pure function of (seed, update)."""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def of_update(questions: Sequence[T], update: int, count: int, seed: int) -> list[T]:
    """The questions of one rollout batch.

    Every pass over the data has a new order, and a batch may span two passes. To resume
    a run, only `update` needs to be saved.

    Args:
      questions: all training questions, in a fixed order.
      update: rollout batches before this one.
      count: questions per batch.
      seed: decides the order of every pass.

    Raises:
      ValueError: if a batch needs more questions than there are.
    """
    if count > len(questions):
        raise ValueError(
            f"rollout.questions={count} exceeds the {len(questions)} training questions"
        )
    return list(itertools.islice(from_place(questions, update * count, seed), count))


def from_place(questions: Sequence[T], place: int, seed: int) -> Iterator[T]:
    """An endless stream of questions, pass after pass, from position `place` on."""
    first, begin = divmod(place, len(questions))
    for number in itertools.count(first):
        yield from (questions[i] for i in _order(len(questions), seed, number)[begin:])
        begin = 0


def _order(size: int, seed: int, number: int) -> list[int]:
    """The indices of `size` questions in the order of pass `number`."""
    order = list(range(size))
    # Python seeds from a string by SHA-512, which does not depend on PYTHONHASHSEED.
    random.Random(f"{seed}/{number}").shuffle(order)
    return order
