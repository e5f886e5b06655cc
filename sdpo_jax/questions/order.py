"""The order in which a run meets its questions: a pure function of (seed, update)."""

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def of_update(questions: Sequence[T], update: int, count: int, seed: int) -> list[T]:
    """The questions of one rollout batch.

    Every pass over the data is a new order, and a batch may span two passes; nothing
    but `update` needs to be saved to go on.

    Args:
      questions: all of them, in a fixed order.
      update: rollout batches before this one.
      count: questions per batch.
      seed: of the orders.

    Raises:
      ValueError: if a batch would hold more questions than there are.
    """
    if count > len(questions):
        raise ValueError(
            f"rollout.questions={count} exceeds the {len(questions)} training questions"
        )
    return list(itertools.islice(from_place(questions, update * count, seed), count))


def from_place(questions: Sequence[T], place: int, seed: int) -> Iterator[T]:
    """The questions in their order from a place on, pass after pass without end."""
    first, begin = divmod(place, len(questions))
    for number in itertools.count(first):
        yield from (questions[i] for i in _order(len(questions), seed, number)[begin:])
        begin = 0


def _order(size: int, seed: int, number: int) -> list[int]:
    """The order of pass `number` over `size` questions."""
    order = list(range(size))
    random.Random(f"{seed}/{number}").shuffle(order)
    return order
