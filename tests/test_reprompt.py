import random

import pytest

from sdpo_jax import config, reprompt

DEFAULTS = config.default().reprompt
RESPONSES = ["first", "second", "third", "fourth"]
FEEDBACKS = ["wrong 0", "", "wrong 2", "wrong 3"]


def rules(**fields):
    names = reprompt.Rules.__dataclass_fields__
    return reprompt.Rules(**{name: DEFAULTS[name] for name in names} | fields)


def choose(solved, seed=0, responses=RESPONSES, feedbacks=FEEDBACKS, **fields):
    return reprompt.choose(
        rules(**fields), responses, solved, feedbacks, random.Random(seed)
    )


NONE = [False] * 4
ONE = [False, True, False, False]
TWO = [False, True, False, True]

# demonstration_from -> for each pattern of solved attempts, who may be shown to whom.
ELIGIBLE = {
    "peers": {
        "none": [set()] * 4,
        "one": [{1}, set(), {1}, {1}],
        "two": [{1, 3}, {3}, {1, 3}, {1}],
    },
    "own_if_solved": {
        "none": [set()] * 4,
        "one": [{1}, {1}, {1}, {1}],
        "two": [{1, 3}, {1}, {1, 3}, {3}],
    },
    "any_attempt": {
        "none": [set()] * 4,
        "one": [{1}, {1}, {1}, {1}],
        "two": [{1, 3}] * 4,
    },
    "nobody": {"none": [set()] * 4, "one": [set()] * 4, "two": [set()] * 4},
}
PATTERNS = {"none": NONE, "one": ONE, "two": TWO}
CASES = [(source, pattern) for source in ELIGIBLE for pattern in PATTERNS]


@pytest.mark.parametrize("source, pattern", CASES)
def test_demonstrations_are_drawn_from_all_that_are_eligible(source, pattern):
    draws = [
        choose(PATTERNS[pattern], seed, demonstration_from=source) for seed in range(40)
    ]

    for index, eligible in enumerate(ELIGIBLE[source][pattern]):
        seen = {draw[index].solution for draw in draws}
        # Forty fair draws of two miss one of them once in 2^39.
        assert seen == ({RESPONSES[i] for i in eligible} or {None})


@pytest.mark.parametrize("source, pattern", CASES)
@pytest.mark.parametrize("show", ["never", "without_solution", "always"])
def test_feedback_is_shown_as_the_rule_says(source, pattern, show):
    shown = choose(PATTERNS[pattern], demonstration_from=source, show_feedback=show)

    for index, eligible in enumerate(ELIGIBLE[source][pattern]):
        wanted = {
            "never": False,
            "without_solution": not eligible,
            "always": True,
        }[show]
        expected = FEEDBACKS[index] if wanted and FEEDBACKS[index] else None
        assert shown[index].feedback == expected


def test_a_sole_success_has_nothing_to_learn_from_its_peers():
    shown = choose(ONE, demonstration_from="peers", show_feedback="always")

    assert shown[1] == reprompt.Shown(None, None, None)
    assert [one.teaches for one in shown] == [True, False, True, True]


def test_an_attempt_without_solution_and_feedback_is_not_taught():
    shown = choose(NONE, feedbacks=[""] * 4)

    assert not any(one.teaches for one in shown)


def test_the_same_seed_draws_the_same_demonstrations():
    draw = lambda seed: choose([True] * 4, seed, demonstration_from="any_attempt")

    assert draw(7) == draw(7)
    assert len({tuple(draw(seed)) for seed in range(10)}) > 1


def test_the_attempt_stands_only_before_its_own_feedback():
    shown = choose(ONE, show_attempt=True, show_feedback="without_solution")
    alone = choose(NONE, show_attempt=True, show_feedback="without_solution")

    assert [one.attempt for one in shown] == [None] * 4
    assert [one.attempt for one in alone] == ["first", None, "third", "fourth"]


@pytest.mark.parametrize(
    "response, stripped",
    [
        ("<think>long\nthought</think>\n\nanswer", "answer"),
        ("a <think>x</think> b <think>y</think> c", "a b c"),
        ("answer <think>never closed", "answer "),
        ("plain ", "plain "),
    ],
)
def test_thinking_is_stripped_from_demonstrations(response, stripped):
    responses = ["failed", response]
    options = {"responses": responses, "feedbacks": ["", ""]}

    shown = choose([False, True], **options)
    kept = choose([False, True], strip_thinking=False, **options)

    assert shown[0].solution == stripped
    assert kept[0].solution == response


@pytest.mark.parametrize("source", ["peers", "own_if_solved", "any_attempt"])
def test_attempt_without_an_answer_is_no_demonstration(source):
    responses = ["<think>all of it", "<think>a</think>b", "<think>c</think> \n", "d"]
    draw = lambda seed, **fields: choose(
        [True] * 4, seed, responses, demonstration_from=source, **fields
    )

    draws = [[one.solution for one in draw(seed)] for seed in range(40)]

    assert {solution for shown in draws for solution in shown} == {"b", "d"}
    whole = [[s.solution for s in draw(n, strip_thinking=False)] for n in range(40)]
    assert {solution for shown in whole for solution in shown} == set(responses)


def test_sole_success_without_an_answer_leaves_the_feedback():
    texts = {"responses": ["<think>a</think>", "b"], "feedbacks": ["", "told"]}

    shown = choose([True, False], **texts)

    assert shown[1] == reprompt.Shown(None, None, "told")


# The words of the paper's configuration: exactly one newline between the sections.
CORRECTLY = "\n\nCorrectly solve the original question."
SOLUTION = "\nCorrect solution:\n\nS"
FEEDBACK = "\nThe following is feedback from your unsuccessful earlier attempt:\n\nF"
ATTEMPT = "\nYour earlier attempt:\n\nA"


@pytest.mark.parametrize(
    "shown, expected",
    [
        (("S", None, None), "Q" + SOLUTION + CORRECTLY),
        ((None, None, "F"), "Q" + FEEDBACK + CORRECTLY),
        (("S", None, "F"), "Q" + SOLUTION + FEEDBACK + CORRECTLY),
        ((None, "A", "F"), "Q" + ATTEMPT + FEEDBACK + CORRECTLY),
    ],
)
def test_the_paper_template_joins_its_sections(shown, expected):
    assert reprompt.render(rules(), "Q", reprompt.Shown(*shown)) == expected


def test_braces_in_what_is_shown_are_left_alone():
    tricky = '{solution} {0} {{}} {prompt!r} "{'

    found = reprompt.render(rules(), tricky, reprompt.Shown(tricky, tricky, tricky))

    assert found.count(tricky) == 4
