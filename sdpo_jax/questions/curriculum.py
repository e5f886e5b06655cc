"""Chooses the questions of each update by their pass rate.

A question has a turn whenever the order of `order.py` reaches it. A turn that is used
is a visit: the policy attempts the question, and those attempts alone give its new pass
rate. A question whose pass rate is outside the configured band sits out its next
`curriculum.remeasure_every` turns and is then visited again. Without a band, every turn
is a visit.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sdpo_jax.questions import order as question_order
from sdpo_jax.questions.question import Question

# Turns that a question outside the band sits out before it is visited again.
REMEASURE_EVERY = 4
_KEY = "curriculum"
# Key of `State.place` in a checkpoint: batches may have had other sizes than today's.
PLACE = "place"


@dataclasses.dataclass(frozen=True)
class State:
    """The pass rates known after an update, and the position in the order.

    Args:
      place: turns so far, used or not.
      rates: uid -> pass rate at the last visit.
      sat_out: uid -> turns sat out since then, for questions outside the band.
    """

    place: int = 0
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    sat_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def measured(self, rates: Mapping[str, float]) -> "State":
        """The state after visits that measured these pass rates."""
        sat_out = {u: turns for u, turns in self.sat_out.items() if u not in rates}
        return State(self.place, {**self.rates, **rates}, sat_out)


class Choice(NamedTuple):
    """The questions of one update, the state before their results, and metrics."""

    questions: list[Question]
    state: State
    values: dict[str, float]


def is_on(c: ConfigDict) -> bool:
    """Whether the band can exclude a question."""
    return c.curriculum.min_pass_rate > 0 or c.curriculum.max_pass_rate < 1


def saved(c: ConfigDict, state: State) -> dict[str, Any]:
    """The state as JSON values to save in a checkpoint; empty without a band."""
    return {_KEY: dataclasses.asdict(state)} if is_on(c) else {}


def restored(c: ConfigDict, extra: Mapping[str, Any], update: int) -> State:
    """The state from the output of `saved`; without pass rates if that was empty."""
    place = extra.get(PLACE, update * c.rollout.questions)
    return State(**extra.get(_KEY, {"place": place}))


def choose(
    c: ConfigDict,
    questions: Sequence[Question],
    update: int,
    state: State,
    remeasure_every: int = REMEASURE_EVERY,
) -> Choice:
    """The questions of one rollout batch: exactly `rollout.questions`, no duplicates.

    If too few are in the band, the questions that sat out longest fill the batch.

    Args:
      c: the run's config.
      questions: all training questions, in a fixed order; at least one full batch.
      update: rollout batches before this one.
      state: the state after those batches.
      remeasure_every: turns that a question outside the band sits out.

    Raises:
      ValueError: if every question was measured and none is in the band.
    """
    count = c.rollout.questions
    if not is_on(c):
        # A state without a place is that of batches that all have this size.
        place = state.place or update * count
        order = question_order.from_place(questions, place, c.seed)
        after = dataclasses.replace(state, place=place + count)
        return Choice(list(itertools.islice(order, count)), after, {})
    low, high = c.curriculum.min_pass_rate, c.curriculum.max_pass_rate
    # A question that was never visited counts as inside the band.
    rates = [state.rates.get(q.uid, low) for q in questions]
    outside = {i for i, rate in enumerate(rates) if not low <= rate <= high}
    if len(outside) == len(questions):
        raise ValueError(
            f"none of the {len(rates)} training questions has a pass rate between "
            f"curriculum.min_pass_rate={low} and curriculum.max_pass_rate={high}: they "
            f"range from {min(rates):.3g} to {max(rates):.3g}; widen the band"
        )
    chosen, sat_out, turns = _take_turns(c, questions, state, outside, remeasure_every)
    # The index breaks ties, so that the choice is the same on every machine.
    fill = sorted(
        (i for i in outside if i not in chosen),
        key=lambda i: (-sat_out.get(questions[i].uid, 0), i),
    )
    values = {
        "curriculum/kept": 1 - len(outside) / len(questions),
        "curriculum/sat_out": float(
            sum(sat_out.values()) - sum(state.sat_out.values())
        ),
    }
    chosen += fill[: count - len(chosen)]
    values["curriculum/remeasured"] = float(len(outside.intersection(chosen)))
    after = State(state.place + turns, state.rates, sat_out)
    return Choice([questions[i] for i in chosen], after, values)


def _take_turns(
    c: ConfigDict,
    questions: Sequence[Question],
    state: State,
    outside: set[int],
    remeasure_every: int,
) -> tuple[list[int], dict[str, int], int]:
    """Indices of the visited questions, the new `State.sat_out`, and turns taken."""
    chosen, sat_out, turns = [], dict(state.sat_out), 0
    count = c.rollout.questions
    order = question_order.from_place(range(len(questions)), state.place, c.seed)
    # From any position, 2n - 1 turns contain one complete pass over the n questions, so
    # every question in the band has a turn.
    for i in itertools.islice(order, 2 * len(questions) - 1):
        if len(chosen) == count:
            break
        turns += 1
        uid = questions[i].uid
        if i in chosen:
            continue
        if i in outside and sat_out.get(uid, 0) < remeasure_every:
            sat_out[uid] = sat_out.get(uid, 0) + 1
        else:
            chosen.append(i)
    return chosen, sat_out, turns
