import json

import pytest

from sdpo_jax.envs import tool_use
from sdpo_jax.envs.single_turn import SingleTurn
from sdpo_jax.questions import rows
from sdpo_jax.questions.question import Question


def gold(*calls):
    return [{"Action": name, "Action_Input": arguments} for name, arguments in calls]


def said(*calls):
    return "\n".join(
        f"Thought: next\nAction: {name}\nAction Input: {arguments}"
        for name, arguments in calls
    )


def asked(answer):
    row = {"answer": answer if isinstance(answer, str) else json.dumps(answer)}
    return Question("1", "?", data=tool_use.data(row, "here"))


def scores(answer, response):
    """By the official rule, and by the fixed one."""
    return [
        grade(asked(answer), response, False).score
        for grade in (tool_use.official, tool_use.fixed)
    ]


# Expected arguments, given arguments (JSON) -> official and fixed score of one call.
ARGUMENTS = [
    ("{}", "{}", 1, 1),
    ("{}", '{"a": 1}', 0, 0),
    ('{"a": 1}', "{}", 0, 0),
    ('{"a": 1}', '{"a": 1}', 1, 1),
    ('{"a": 1}', '{"a":1}', 1, 1),
    ('{"a": 1}', '{ "a" : 1 }', 1, 1),
    ('{"a": 1}', '{\n  "a": 1\n}', 1, 1),
    ('{"a": 1}', '{"a": 2}', 0, 0),
    ('{"a": 1}', '{"b": 1}', 0, 0),
    ('{"a": 1}', '{"A": 1}', 0, 0),
    ('{"a": 1}', '{"a": 1, "b": 2}', 0, 0),
    ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', 1, 1),
    ('{"a": 1, "b": 2}', '{"a": 1}', 0, 0),
    # Numbers.
    ('{"a": 1}', '{"a": 1.0}', 1, 1),
    ('{"a": 1}', '{"a": "1"}', 0, 1),
    ('{"a": "1"}', '{"a": 1}', 0, 1),
    ('{"a": 1}', '{"a": "1.0"}', 0, 1),
    ('{"a": 1}', '{"a": "01"}', 0, 0),
    ('{"a": "01"}', '{"a": "1"}', 0, 0),
    ('{"a": "007"}', '{"a": 7}', 0, 0),
    ('{"a": 100}', '{"a": 1e2}', 1, 1),
    ('{"a": 0}', '{"a": -0.0}', 1, 1),
    ('{"a": 0.1}', '{"a": 0.10}', 1, 1),
    ('{"a": 0.3}', '{"a": 0.30000000000000004}', 0, 0),
    ('{"a": 0.1}', '{"a": 0.1000000000000000055}', 1, 0),
    ('{"a": -5}', '{"a": 5}', 0, 0),
    ('{"a": 1}', '{"a": true}', 1, 0),
    ('{"a": 0}', '{"a": false}', 1, 0),
    ('{"a": 0}', '{"a": null}', 0, 0),
    ('{"a": "10000000000000001"}', '{"a": "10000000000000002"}', 0, 0),
    ('{"a": "1"}', '{"a": "\\u0661"}', 0, 0),
    ('{"a": 1}', '{"a": NaN}', 0, 0),
    ('{"a": 1}', '{"a": Infinity}', 0, 0),
    ('{"a": 1}', '{"a": 01}', 0, 0),
    # Text.
    ('{"a": "wild"}', '{"a": "wild"}', 1, 1),
    ('{"a": "wild"}', '{"a": "Wild"}', 0, 1),
    ('{"a": "Wild Axolotl"}', '{"a": "wild axolotl"}', 0, 1),
    ('{"a": "wild"}', '{"a": " wild "}', 0, 1),
    ('{"a": "wild one"}', '{"a": "wild  one"}', 0, 0),
    ('{"a": "wild"}', '{"a": "wil"}', 0, 0),
    ('{"a": "stra\\u00dfe"}', '{"a": "STRASSE"}', 0, 1),
    ('{"a": "x"}', '{"a": ["x"]}', 0, 0),
    ('{"a": "true"}', '{"a": true}', 0, 0),
    ('{"a": "null"}', '{"a": null}', 0, 0),
    ('{"a": "a}b"}', '{"a": "a}b"}', 0, 1),
    ('{"a": "say \\"hi\\""}', '{"a": "say \\"hi\\""}', 1, 1),
    ('{"a": "\\u00e9"}', '{"a": "é"}', 1, 1),
    ('{"a": "it\'s"}', '{"a": "it\'s"}', 1, 1),
    ('{"a": "x"}', "{'a': 'x'}", 0, 0),
    ('{"a": "x"}', '{a: "x"}', 0, 0),
    ('{"a": "x"}', '{"a": "x",}', 0, 0),
    ('{"a": "x"}', '{"a": "x"', 0, 0),
    ('{"a": "aB3"}', '{"a": "Ab3"}', 0, 0),
    ('{"a": "http://x/A"}', '{"a": "http://x/a"}', 0, 0),
    ('{"a": "1.10"}', '{"a": "1.1"}', 0, 0),
    ('{"a": "1e5"}', '{"a": 100000}', 0, 0),
    ('{"a": "12e4"}', '{"a": "120000"}', 0, 0),
    ('{"a": "Action: b"}', '{"a": "Action: b"}', 0, 1),
    # Absent and empty.
    ('{"a": "x", "b": ""}', '{"a": "x", "b": ""}', 1, 1),
    ('{"a": "x", "b": ""}', '{"a": "x"}', 0, 1),
    ('{"a": "x"}', '{"a": "x", "b": ""}', 0, 1),
    ('{"a": "x"}', '{"a": "x", "b": null}', 0, 1),
    ('{"a": "x"}', '{"a": "x", "b": " "}', 0, 1),
    ('{"a": "x"}', '{"a": "x", "b": []}', 0, 0),
    ('{"a": "x"}', '{"a": "x", "b": 0}', 0, 0),
    ('{"a": ""}', "{}", 0, 1),
    # Nested: the official rule loses what holds an object.
    ('{"a": {"b": 1}}', '{"a": {"b": 1}}', 0, 1),
    ('{"a": {"b": 1}}', '{"a": {"b": 2}}', 0, 0),
    ('{"a": {"b": "Xy"}}', '{"a": {"b": "xy"}}', 0, 1),
    ('{"a": {"b": {"c": [1, 2]}}}', '{"a": {"b": {"c": [1, 2]}}}', 0, 1),
    ('{"a": {"b": 1, "c": ""}}', '{"a": {"b": 1}}', 0, 1),
    ('{"a": {}}', '{"a": {}}', 0, 1),
    ('{"a": {}}', "{}", 0, 0),
    # Lists.
    ('{"a": [1, 2]}', '{"a": [1, 2]}', 1, 1),
    ('{"a": [1, 2]}', '{"a": [2, 1]}', 0, 0),
    ('{"a": [1, 2]}', '{"a": [1]}', 0, 0),
    ('{"a": ["Spam"]}', '{"a": ["spam"]}', 0, 1),
    ('{"a": "aBc"}', '{"a": "AbC"}', 0, 0),
    ('{"a": "token-Abc"}', '{"a": "token-abc"}', 0, 0),
    ('{"a": "m"}', '{"a": "M"}', 0, 0),
    ('{"a": "NEW YORK"}', '{"a": "New York"}', 0, 1),
    ('{"a": [1]}', '{"a": 1}', 0, 0),
    ('{"a": []}', '{"a": []}', 1, 1),
    ('{"a": ["1"]}', '{"a": [1]}', 0, 1),
    ('{"a": [{"b": 1}]}', '{"a": [{"b": 1}]}', 0, 1),
    ('{"a": [{"b": 1}]}', '{"a": [{"b": 2}]}', 0, 0),
    # The last of repeated names counts officially; given twice is no JSON object here.
    ('{"a": 2}', '{"a": 1, "a": 2}', 1, 0),
]


@pytest.mark.parametrize("expected, given, official, fixed", ARGUMENTS)
def test_arguments_of_one_call(expected, given, official, fixed):
    found = scores(gold(("search", expected)), said(("search", given)))

    assert found == [official, fixed]


@pytest.mark.parametrize("given", [given for *_, given, _, _ in ARGUMENTS])
def test_nothing_but_its_own_arguments_makes_a_call_right(given):
    found = scores(gold(("search", '{"zz": "other"}')), said(("search", given)))

    assert found == [0, 0]


@pytest.mark.parametrize("given", ["None", "null", "", "N/A", "none"])
def test_calls_without_arguments_may_say_so(given):
    assert scores(gold(("a", "{}")), said(("a", given))) == [1, 1]
    assert scores(gold(("a", '{"x": 1}')), said(("a", given))) == [0, 0]


A, B = ("a", '{"x": 1}'), ("b", '{"y": 2}')
A2, C = ("a", '{"x": 2}'), ("c", '{"z": {"w": 3}}')
B2 = ("b", '{"x": 1}')
MAYBE_B = ("[Optional]b", B[1])
# Expected calls, made calls -> official and fixed score.
CALLS = [
    ([A], [A], 1, 1),
    ([A], [B], 0, 0),
    ([A], [], 0, 0),
    ([A], [A, A], 0, 0),
    ([A, A], [A], 0, 0),
    ([A, A], [A, A], 1, 1),
    ([A], [A2], 0, 0),
    ([A], [B2], 0, 0),
    ([A, B], [A, B], 1, 1),
    ([A, B], [B, A], 1, 1),
    ([A, B], [A], 0, 0),
    ([A, B], [B], 0, 0),
    ([A], [A, B], 0, 0),
    # Officially the last value of a name stays: the first call may hold anything.
    ([A, A2], [A, A2], 1, 1),
    ([A, A2], [A2, A], 0, 1),
    ([A, A2], [A2, A2], 1, 0),
    ([A, A2], [("a", '{"x": 9}'), A2], 1, 0),
    ([A, A2], [A, A], 0, 0),
    ([A, A2], [A], 0, 0),
    # Arguments that have changed places between calls.
    ([A, B], [("a", '{"y": 2}'), ("b", '{"x": 1}')], 1, 0),
    ([A, B], [("a", '{"x": 1, "y": 2}'), ("b", "{}")], 1, 0),
    ([C], [C], 0, 1),
    ([A, C], [A, C], 0, 1),
    ([A, C], [C, A], 0, 1),
    ([A, C], [A], 0, 0),
    ([A, MAYBE_B], [A, B], 0, 1),
    ([A, MAYBE_B], [A], 0, 1),
    ([A, MAYBE_B], [B], 0, 0),
    ([A, MAYBE_B], [A, A2], 0, 0),
    ([A, MAYBE_B], [A, B, B], 0, 0),
    ([A, MAYBE_B], [A, ("b", '{"y": 3}')], 0, 0),
    ([B, MAYBE_B], [B], 0, 1),
    ([B, MAYBE_B], [B, B], 0, 1),
    ([B, MAYBE_B], [], 0, 0),
    ([A, ("[Optional] b", B[1])], [A, B], 0, 1),
]


@pytest.mark.parametrize("expected, made, official, fixed", CALLS)
def test_several_calls(expected, made, official, fixed):
    assert scores(gold(*expected), said(*made)) == [official, fixed]


# A whole response to the one call A -> official and fixed score.
WRITTEN = [
    ('Action: a\nAction Input: {"x": 1}', 1, 1),
    ('Action:a\nAction Input:{"x": 1}', 1, 1),
    ('Action: a \nAction Input: {"x": 1}\n', 1, 1),
    ('Action: a\n\nAction Input: {"x": 1}', 1, 1),
    ('Action: a\nAction Input:\n{"x": 1}', 1, 1),
    ('  Action: a\n  Action Input: {"x": 1}', 1, 1),
    ('Thought: Action is needed.\nAction: a\nAction Input: {"x": 1}', 1, 1),
    ('Action: a\nAction Input: {"x": 1}\nDone.', 1, 1),
    ('Action: a\nAction Input: {"x": 1} and {"x": 2}', 1, 1),
    ('**Action:** a\n**Action Input:** {"x": 1}', 0, 1),
    ('**Action**: a\n**Action Input**: {"x": 1}', 0, 1),
    ('- Action: a\n- Action Input: {"x": 1}', 1, 1),
    ('Action: `a`\nAction Input: {"x": 1}', 0, 1),
    ('Action: "a"\nAction Input: {"x": 1}', 0, 1),
    ('Action: a\nAction Input: ```json\n{"x": 1}\n```', 0, 1),
    ('Action: a\nAction Input: ```\n{"x": 1}\n```', 0, 1),
    ('Action: a\nAction_Input: {"x": 1}', 0, 1),
    ('action: a\naction input: {"x": 1}', 0, 0),
    ('Action: A\nAction Input: {"x": 1}', 0, 0),
    ('Action: a()\nAction Input: {"x": 1}', 1, 0),
    ('Action: a b\nAction Input: {"x": 1}', 1, 0),
    ('Action: aa\nAction Input: {"x": 1}', 0, 0),
    ("Action: a\nAction Input: x=1", 0, 0),
    ("Action: a\nAction Input: [1]", 0, 0),
    ("Action: a\nAction Input: 1", 0, 0),
    ("Action: a\nAction Input:", 0, 0),
    ("Action: a", 0, 0),
    ('Action Input: {"x": 1}', 0, 0),
    ('a {"x": 1}', 0, 0),
    ("", 0, 0),
    ("I cannot help.", 0, 0),
    ('Action: a\nObservation: no\nAction Input: {"x": 1}', 1, 0),
    ('Action: a\nAction: b\nAction Input: {"x": 1}', 0, 0),
    ('Action: b\nAction Input: {}\nAction: a\nAction Input: {"x": 1}', 0, 0),
    ('Action: a\nAction Input: {"x": 1}\nAction Input: {"x": 2}', 0, 0),
    ('I might say Action: b here.\nAction: a\nAction Input: {"x": 1}', 0, 0),
    ('Action: b\nAction Input: {"y": 2} Action: a\nAction Input: {"x": 1}', 0, 0),
    ('First Action: b\nAction Input: {}\nAction: a\nAction Input: {"x": 1}', 0, 0),
    ('action: b\naction input: {}\nAction: a\nAction Input: {"x": 1}', 1, 0),
    ('1. Action: b\nAction Input: {}\n2. Action: a\nAction Input: {"x": 1}', 0, 0),
    ('Action: a\nAction Input: {"x": 1}\nAction 2: b\nAction Input 2: {}', 1, 0),
    ('Action: a\nAction Input: {"x": 1}\n"Action": "b", "Action_Input": {}', 1, 0),
    ('Action: a\nAction Input: {"x": 1}\nNextAction: b', 0, 0),
    ('1. Action: a\nAction Input: {"x": 1}', 1, 1),
    ('\u2022 Action: a\n\u2022 Action Input: {"x": 1}', 1, 1),
    ('Action:\na\nAction Input:\n{"x": 1}', 1, 1),
    ('Action: a\r\nAction Input: {"x": 1}\r\n', 1, 1),
    ('Action: a Action Input: {"x": 1}', 1, 1),
    ('Action: a\nAction Input: `{"x": 1}`', 0, 1),
    ('Action: a\nAction Input: ```JSON\n{"x": 1}```', 0, 1),
    ('Action: a\nActionInput: {"x": 1}', 0, 1),
    ('Action: a\nAction Input: {"x": "Action: b"}', 0, 0),
    ('Action: a\nAction Input: {"x": 1e9999999999999999999}', 0, 0),
    ('Action: a\nAction Input: {"x": ' + "[" * 500 + "]" * 500 + "}", 0, 0),
    ("Action: a\nAction Input: " + '{"x": ' * 330 + "1" + "}" * 330, 0, 0),
    ("\n" * 32_000, 0, 0),
    ("*\n" * 16_000, 0, 0),
    ("- \n" * 10_000, 0, 0),
    ("Action" + " " * 200_000, 0, 0),
    ("Action: a" + " " * 200_000, 0, 0),
    ('Action: a\nAction Input: {"x": ' + "[" * 5000, 0, 0),
    ("Action: a\nAction Input: " + '{"x": ' * 5000, 0, 0),
    ('Action: a\nAction Input: {"x": 1' + "0" * 9000 + "}", 0, 0),
    ('Action: a\nAction Input: {"x": 1}\n' * 200, 0, 0),
]


@pytest.mark.parametrize("response, official, fixed", WRITTEN)
def test_ways_to_write_a_call(response, official, fixed):
    assert scores(gold(A), response) == [official, fixed]


@pytest.mark.parametrize("count, right", [(100, 1), (101, 0)])
def test_no_more_calls_are_read_than_are_allowed(count, right):
    calls = [A] * count

    assert scores(gold(*calls), said(*calls)) == [1, right]


@pytest.mark.parametrize("depth, right", [(50, 1), (51, 0)])
def test_no_deeper_arguments_are_read_than_are_allowed(depth, right):
    # The object itself is the first level.
    nested = '{"x": ' + "[" * (depth - 1) + "1" + "]" * (depth - 1) + "}"

    assert scores(gold(("a", nested)), said(("a", nested))) == [1, right]


@pytest.mark.parametrize("given", ['{"x": NaN}', '{"x": Infinity}', '{"x": 1, "x": 1}'])
def test_what_is_no_json_object_is_no_call(given):
    verdict = tool_use.fixed(asked(gold(A)), said(("a", given)), False)

    assert verdict.outcome == "Incorrect Format"


def test_names_that_the_policy_made_up_are_short_and_harmless_in_feedback():
    name = "<|im_end|>" + "n" * 1000
    made = said(("a", json.dumps({"x": 1, f"two\nlines {name}": 1})), (name, "{}"))

    told = tool_use.fixed(asked(gold(A)), made, False).feedback.split("\n")

    assert [line[:24] for line in told] == [
        "Wrong Answer",
        "a: the argument two line",
        "This call of < |im_end| ",
    ]
    assert max(map(len, told)) < 350


@pytest.mark.parametrize(
    "expected, made, told",
    [
        ([A], [("a", '{"x": 5}')], ["a: the argument x has a wrong value."]),
        ([A], [("a", "{}")], ["a: the argument x is missing."]),
        ([A], [("a", '{"x": 1, "q": 2}')], ["a: the argument q is not needed."]),
        ([A], [("a", '{"x": true}')], ["a: the argument x has a wrong value."]),
        ([A, B], [A], ["A call that is needed is missing."]),
        ([A], [A, B], ["This call of b is not needed."]),
        (
            [A],
            [B],
            ["A call that is needed is missing.", "This call of b is not needed."],
        ),
        ([A, B, C], [], None),
    ],
)
def test_feedback_says_what_is_wrong_and_never_what_is_right(expected, made, told):
    verdict = tool_use.fixed(asked(gold(*expected)), said(*made), False)

    assert verdict.score == 0
    if told is None:
        assert verdict.outcome == "Incorrect Format"
        assert "Action Input: " in verdict.feedback
    else:
        assert verdict.outcome == "Wrong Answer"
        assert verdict.feedback.split("\n") == ["Wrong Answer", *told]


def test_response_cut_off_before_its_call_is_told_so():
    verdict = tool_use.fixed(asked(gold(A)), "Thought: first", True)

    assert verdict.outcome == "Truncated"
    assert "cut off" in verdict.feedback


def test_environment_grades_rows_of_its_files(tmp_path):
    file = tmp_path / "test.json"
    row = {"idx": 3, "prompt": "Search.", "system": None, "tests": None}
    file.write_text(json.dumps(row | {"answer": json.dumps(gold(C))}))

    questions = rows.load_splits({"heldout": file}, tool_use.data)
    environment = SingleTurn(questions, tool_use.fixed)

    (question,) = environment.questions("heldout")
    assert environment.start(question).act(said(C), False).score == 1
    assert environment.start(question).act(said(A), False).score == 0


@pytest.mark.parametrize(
    "answer, message",
    [
        (None, "expected a list of calls, got None"),
        ("[]", r"expected a list of calls, got \[\]"),
        ("{", "is not JSON"),
        ("[1]", "expected a call with an Action, got 1"),
        ('[{"Action": "a"}]', "Action_Input of a: expected an object, got None"),
        (
            '[{"Action": "a", "Action_Input": "{"}]',
            "Action_Input of a: '{' is not JSON",
        ),
        (
            '[{"Action": "a", "Action_Input": "{\\"x\\": [NaN]}"}]',
            "Action_Input of a: expected finite numbers, got {'x': .nan.}",
        ),
    ],
)
def test_row_with_a_wrong_answer_is_rejected_by_name(tmp_path, answer, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"idx": 3, "prompt": "Search.", "answer": answer}))

    with pytest.raises(ValueError, match=f"rows.jsonl, row 1, field answer.*{message}"):
        rows.load_splits({"train": file}, tool_use.data)
