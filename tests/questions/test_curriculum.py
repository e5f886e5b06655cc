import json
import random

import pytest

from sdpo_jax import config
from sdpo_jax.questions import curriculum
from sdpo_jax.questions import order as question_order
from sdpo_jax.questions.question import Question


def settings(count, low=0.2, high=0.8):
    c = config.default()
    c.rollout.questions = count
    c.curriculum.min_pass_rate = low
    c.curriculum.max_pass_rate = high
    return c


def named(names):
    return [Question(name, f"{name}?") for name in names]


def visits(c, questions, rate_of, updates, state=None, first=0, every=2):
    """The names visited in each update, every choice, and the final state."""
    asked, choices = [], []
    state = curriculum.State() if state is None else state
    for update in range(first, updates):
        choice = curriculum.choose(c, questions, update, state, every)
        names = [q.uid for q in choice.questions]
        state = choice.state.measured({u: rate_of(u, update) for u in names})
        asked.append(names)
        choices.append(choice)
    return asked, choices, state


def hard_and_easy(uid, update):
    return {"a": 0.0, "b": 1.0}.get(uid, 0.5)


def any_rate(uid, update):
    if uid == "0":
        return 0.5
    return random.Random(f"{uid}/{update}").choice([0, 0.125, 0.2, 0.5, 0.8, 1])


@pytest.mark.parametrize("count", [1, 3, 7])
def test_without_a_band_every_turn_is_a_visit(count):
    c, questions = settings(count, low=0.0, high=1.0), named("abcdefg")

    asked, choices, state = visits(c, questions, hard_and_easy, 20)

    for update, choice in enumerate(choices):
        expected = question_order.of_update(questions, update, count, c.seed)
        assert choice.questions == expected and choice.values == {}
    assert curriculum.saved(c, state) == {}


def test_the_first_pass_is_in_the_usual_order():
    c, questions = settings(3), named("abcdefghi")

    asked, choices, _ = visits(c, questions, hard_and_easy, 3)

    usual = [question_order.of_update(questions, u, 3, c.seed) for u in range(3)]
    assert [choice.questions for choice in choices] == usual
    assert all(choice.values["curriculum/sat_out"] == 0 for choice in choices)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_question_outside_the_band_sits_out_the_configured_turns(every):
    c, questions = settings(1), named("abcd")
    order = question_order.from_place("abcd", 0, c.seed)

    asked, choices, state = visits(c, questions, hard_and_easy, 100, every=every)

    turns = [next(order) for _ in range(state.place)]
    visited = iter([names[0] for names in asked])
    expected, turns_of = [], {"a": -1, "b": -1}
    for name in turns:
        if name in turns_of:
            turns_of[name] += 1
        if name not in turns_of or turns_of[name] % (every + 1) == 0:
            expected.append(name)
    assert list(visited) == expected
    assert sum(c.values["curriculum/sat_out"] for c in choices) == len(turns) - 100
    again = sum(c.values["curriculum/remeasured"] for c in choices)
    assert again == expected.count("a") + expected.count("b") - 2
    assert choices[-1].values["curriculum/kept"] == 0.5


@pytest.mark.parametrize("low, high, rate", [(0.2, 1.0, 0.0), (0.0, 0.8, 1.0)])
def test_one_limit_makes_a_band(low, high, rate):
    c, questions = settings(1, low=low, high=high), named("abc")

    rate_of = lambda uid, update: rate if uid == "a" else 0.5

    asked, _, state = visits(c, questions, rate_of, 9, every=99)

    assert asked.count(["a"]) == 1 and state.sat_out["a"] > 0
    assert curriculum.saved(c, state)


def test_question_that_enters_the_band_is_visited_at_every_turn():
    c, questions = settings(1), named("abcd")
    # Solved from its second visit on.
    first_rate = iter([0.0])
    rate_of = lambda uid, update: next(first_rate, 0.5) if uid == "a" else 0.5

    asked, choices, state = visits(c, questions, rate_of, 60, every=3)

    assert sum(c.values["curriculum/sat_out"] for c in choices) == 3
    assert state.sat_out == {} and choices[-1].values["curriculum/kept"] == 1
    assert len(set(map(tuple, asked[-8:-4]))) == 4


@pytest.mark.parametrize("size, count", [(3, 3), (5, 3), (8, 2), (9, 8), (20, 4)])
@pytest.mark.parametrize("every", [1, 3, 1000])
def test_every_batch_is_full_and_has_no_duplicates(size, count, every):
    c, questions = settings(count), named(map(str, range(size)))

    asked, choices, _ = visits(c, questions, any_rate, 80, every=every)

    assert all(len(names) == len(set(names)) == count for names in asked)
    assert any(choice.values["curriculum/kept"] < 1 for choice in choices)


def test_no_question_in_the_band_is_missed():
    c, questions = settings(2), named(map(str, range(9)))
    rate_of = lambda uid, update: 0.5 if int(uid) < 3 else 0.0

    asked, _, _ = visits(c, questions, rate_of, 50, every=1000)

    visited = [uid for names in asked[10:] for uid in names]
    assert set(visited) == {"0", "1", "2"}
    counts = sorted(map(visited.count, "012"))
    assert counts[-1] - counts[0] <= 3


def test_batch_that_the_band_cannot_fill_takes_those_that_sat_out_longest():
    c, questions = settings(2), named("abcd")
    state = curriculum.State(
        rates={"a": 0.0, "b": 0.5, "c": 1.0, "d": 0.0}, sat_out={"a": 1, "c": 9}
    )

    choice = curriculum.choose(c, questions, 7, state, remeasure_every=100)

    assert [q.uid for q in choice.questions] == ["b", "c"]
    assert choice.values["curriculum/kept"] == 1 / 4
    assert choice.values["curriculum/remeasured"] == 1
    assert "c" not in choice.state.measured({"b": 0.5, "c": 1.0}).sat_out


@pytest.mark.parametrize("rate, stays", [(0.2, True), (0.8, True), (0.1, False)])
def test_limits_of_the_band_are_inside_it(rate, stays):
    c, questions = settings(1), named("ab")
    state = curriculum.State(rates={"a": rate, "b": 0.5})

    kept = curriculum.choose(c, questions, 0, state).values["curriculum/kept"]

    assert kept == (1 if stays else 0.5)


def test_no_question_in_the_band_is_an_error_once_all_are_known():
    c, questions = settings(2, low=0.3, high=0.6), named("abcd")
    rates = {"a": 0.0, "b": 0.25, "c": 1.0}
    curriculum.choose(c, questions, 2, curriculum.State(rates=rates))

    message = (
        "none of the 4 training questions has a pass rate between "
        "curriculum.min_pass_rate=0.3 and curriculum.max_pass_rate=0.6: they range "
        "from 0 to 1; widen the band"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        state = curriculum.State(rates={**rates, "d": 0.0})
        curriculum.choose(c, questions, 2, state)


def test_question_that_was_not_graded_is_visited_at_its_next_turn():
    c, questions = settings(1), named("abc")
    state = curriculum.State(rates={"a": 0.0, "b": 0.5, "c": 0.5}, sat_out={"a": 2})
    asked, before = [], state
    for update in range(6):
        choice = curriculum.choose(c, questions, update, before, remeasure_every=2)
        # The grader failed on all attempts.
        before = choice.state.measured({})
        asked += [q.uid for q in choice.questions]

    assert asked.count("a") == 2 and before.rates == state.rates


@pytest.mark.parametrize("stopped", [1, 5, 17])
def test_restored_state_continues_as_if_uninterrupted(stopped):
    c, questions = settings(3), named(map(str, range(8)))
    uninterrupted, _, end = visits(c, questions, any_rate, 30)

    before, _, state = visits(c, questions, any_rate, stopped)
    text = json.dumps(curriculum.saved(c, state))
    state = curriculum.restored(c, json.loads(text), stopped)
    after, _, state = visits(c, questions, any_rate, 30, state, first=stopped)

    assert before + after == uninterrupted and state == end


def test_run_without_a_saved_state_has_no_rates_and_continues_in_the_order():
    c, questions = settings(2), named("abcdefgh")

    state = curriculum.restored(c, {}, 3)

    assert state == curriculum.State(place=6)
    chosen = curriculum.choose(c, questions, 3, state).questions
    assert chosen == question_order.of_update(questions, 3, 2, c.seed)


def test_choosing_changes_nothing_until_the_visit_is_measured():
    c, questions = settings(3), named(map(str, range(8)))
    _, _, state = visits(c, questions, any_rate, 9)
    before = json.dumps(curriculum.saved(c, state))

    first = curriculum.choose(c, questions, 9, state)

    assert curriculum.choose(c, questions, 9, state) == first
    assert json.dumps(curriculum.saved(c, state)) == before
