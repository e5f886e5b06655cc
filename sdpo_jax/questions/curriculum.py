"""Which questions are worth a turn: those whose pass rate lies in a band.

A question is measured at every visit, by the attempts of that visit alone. One that is
then outside the band sits out a set number of its turns and is visited again. Turns
come in the order of `order`; without a band everybody takes theirs.
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


@dataclasses.dataclass(frozen=True)
class State:
    """What a run knows of its questions after an update.

    Args:
      place: turns that have passed, in the order of questions.
      rates: uid -> pass rate at the last visit.
      sat_out: uid -> turns since then, of questions outside the band.
    """

    place: int = 0
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    sat_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def measured(self, rates: Mapping[str, float]) -> "State":
        """The state after a visit that found these pass rates."""
        sat_out = {u: turns for u, turns in self.sat_out.items() if u not in rates}
        return State(self.place, {**self.rates, **rates}, sat_out)


class Choice(NamedTuple):
    """The questions of one update, the state once they are asked, and metrics."""

    questions: list[Question]
    state: State
    values: dict[str, float]


def is_on(c: ConfigDict) -> bool:
    """Whether there is a band that can leave a question out."""
    return c.curriculum.min_pass_rate > 0 or c.curriculum.max_pass_rate < 1


def saved(c: ConfigDict, state: State) -> dict[str, Any]:
    """The state as plain JSON, to be saved with a checkpoint; empty without a band."""
    return {_KEY: dataclasses.asdict(state)} if is_on(c) else {}


def restored(c: ConfigDict, extra: Mapping[str, Any], update: int) -> State:
    """The state that `saved` made; nothing is known where there was no band then."""
    return State(**extra.get(_KEY, {"place": update * c.rollout.questions}))


def choose(
    c: ConfigDict,
    questions: Sequence[Question],
    update: int,
    state: State,
    remeasure_every: int = REMEASURE_EVERY,
) -> Choice:
    """The questions of one rollout batch, which is full and holds none twice.

    Where the band leaves too few, those that sat out longest fill the batch.

    Args:
      c: the run's config.
      questions: all of them, in a fixed order; at least as many as a batch holds.
      update: rollout batches before this one.
      state: after them.
      remeasure_every: turns that a question outside the band sits out.

    Raises:
      ValueError: if every question was measured and none lies in the band.
    """
    count = c.rollout.questions
    if not is_on(c):
        batch = question_order.of_update(questions, update, count, c.seed)
        return Choice(batch, state, {})
    low, high = c.curriculum.min_pass_rate, c.curriculum.max_pass_rate
    # A question that was never visited may lie in the band.
    rates = [state.rates.get(q.uid, low) for q in questions]
    out = {i for i, rate in enumerate(rates) if not low <= rate <= high}
    if len(out) == len(questions):
        raise ValueError(
            f"none of the {len(rates)} training questions has a pass rate between "
            f"curriculum.min_pass_rate={low} and curriculum.max_pass_rate={high}: they "
            f"go from {min(rates):.3g} to {max(rates):.3g}; widen the band"
        )
    chosen, sat_out, passed = _turns(c, questions, state, out, remeasure_every)
    waiting = sorted(
        (i for i in out if i not in chosen),
        key=lambda i: (-sat_out.get(questions[i].uid, 0), i),
    )
    values = {
        "curriculum/kept": 1 - len(out) / len(questions),
        "curriculum/sat_out": float(
            sum(sat_out.values()) - sum(state.sat_out.values())
        ),
    }
    chosen += waiting[: count - len(chosen)]
    values["curriculum/remeasured"] = float(len(out.intersection(chosen)))
    after = State(state.place + passed, state.rates, sat_out)
    return Choice([questions[i] for i in chosen], after, values)


def _turns(
    c: ConfigDict,
    questions: Sequence[Question],
    state: State,
    out: set[int],
    remeasure_every: int,
) -> tuple[list[int], dict[str, int], int]:
    """Turn by turn, who is visited; how long others sat out, and the turns it took."""
    chosen, sat_out, passed = [], dict(state.sat_out), 0
    count = c.rollout.questions
    order = question_order.from_place(range(len(questions)), state.place, c.seed)
    # So many turns hold a whole pass, so that nobody in the band is missed.
    for i in itertools.islice(order, 2 * len(questions) - 1):
        if len(chosen) == count:
            break
        passed += 1
        uid = questions[i].uid
        if i in chosen:
            continue
        if i in out and sat_out.get(uid, 0) < remeasure_every:
            sat_out[uid] = sat_out.get(uid, 0) + 1
        else:
            chosen.append(i)
    return chosen, sat_out, passed
