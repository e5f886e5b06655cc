"""The order in which a run meets its questions: a pure function of (seed, update)."""

import random
from collections.abc import Sequence
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
    places = range(update * count, (update + 1) * count)
    passes = {place // len(questions) for place in places}
    orders = {number: _order(len(questions), seed, number) for number in passes}
    return [
        questions[orders[place // len(questions)][place % len(questions)]]
        for place in places
    ]


def _order(size: int, seed: int, number: int) -> list[int]:
    """The order of pass `number` over `size` questions."""
    order = list(range(size))
    random.Random(f"{seed}/{number}").shuffle(order)
    return order
