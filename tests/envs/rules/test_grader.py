import importlib.util
import json
import sys
import time

import pytest

from sdpo_jax.envs.base import GraderFailure
from sdpo_jax.envs.rules import check, grader
from sdpo_jax.questions.question import Question
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Limits

needs_jsonschema = pytest.mark.skipif(
    importlib.util.find_spec("jsonschema") is None, reason="jsonschema is not installed"
)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(Limits(cpu_s=2.0), workers=1) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def schemas():
    packages = grader._packages(schemas=True)
    with Sandbox(Limits(cpu_s=2.0), workers=1, packages=packages) as sandbox:
        yield sandbox


def verdict(sandbox, rule, response, truncated=False):
    asked = Question("q", "?", data=grader.data({"rule": rule}, "here"))
    return grader.grade(sandbox, asked, response, truncated)


def accepts(sandbox, rule, response, truncated=False):
    return verdict(sandbox, rule, response, truncated).score == 1


EXACT = {"kind": "exact", "answer": "Bern"}
LOOSE = EXACT | {"ignore_case": True}
TAG, BOX = {"answer_in": "tag"}, {"answer_in": "box"}
CODE, LINE = {"answer_in": "code_block"}, {"answer_in": "last_line"}


@pytest.mark.parametrize(
    "rule, response, right",
    [
        (EXACT, "Bern", True),
        (EXACT, " Bern\n", True),
        (EXACT | {"answer": " Bern\n"}, "Bern", True),
        (EXACT, "bern", False),
        (EXACT, "Bern.", False),
        (EXACT, "It is Bern", False),
        (EXACT, "Bern or Basel", False),
        (EXACT, "B e r n", False),
        (EXACT, "", False),
        (EXACT, "\u0392ern", False),
        (LOOSE, "BERN", True),
        (LOOSE, "Basel", False),
        (EXACT | TAG, "I say <answer>Bern</answer>.", True),
        (EXACT | TAG, "Bern", False),
        (EXACT | TAG, "<answer>Bern</answer> no <answer>Basel</answer>", False),
        (EXACT | TAG, "<answer>Basel</answer> no <answer>Bern</answer>", True),
        (EXACT | TAG, "<answer></answer>Bern", False),
        (EXACT | BOX, "\\boxed{Bern}", True),
        (EXACT | BOX, "\\boxed{Bern} or \\boxed{Basel}", False),
        (EXACT | CODE, "```\nBern\n```", True),
        (EXACT | CODE, "```\nBern\n``` or ```\nGeneva\n```", False),
        (EXACT | LINE, "Basel\nno\nBern\n\n", True),
        (EXACT | LINE, "Bern\nno", False),
        (EXACT | LINE, "Bern", True),
    ],
)
def test_exact_answer_is_all_that_stands_in_its_place(rule, response, right):
    assert accepts(None, rule, response) == right


@pytest.mark.parametrize(
    "place, response, right",
    [
        ("response", "Bern", False),
        ("last_line", "x\nBern", False),
        ("tag", "<answer>Bern", False),
        ("tag", "<answer>Bern</answer> and", True),
        ("box", "\\boxed{Bern", False),
        ("box", "\\boxed{Bern} and", True),
        ("code_block", "```\nBern\n", False),
        ("code_block", "```\nBern\n``` and", True),
    ],
)
def test_of_a_response_that_was_cut_off_only_what_is_closed_counts(
    place, response, right
):
    found = verdict(None, EXACT | {"answer_in": place}, response, truncated=True)

    assert found.score == right
    if not right:
        assert (found.outcome, found.measurements) == ("Truncated", {"format": 0.0})


HALF = {"kind": "number", "answer": 0.5}
TENTH = {"kind": "number", "answer": 0.1}
WHOLE = {"kind": "number", "answer": 1234}
NEAR = {"kind": "number", "answer": 200, "absolute": 0.5}
SHARE = {"kind": "number", "answer": -200, "relative": 0.01}
BOTH = {"kind": "number", "answer": 10, "absolute": 1, "relative": 0.2}


@pytest.mark.parametrize(
    "rule, response, right",
    [
        (HALF, "0.5", True),
        (HALF, ".5", True),
        (HALF, "5e-1", True),
        (HALF, "+0.50", True),
        (HALF, "0.500000000000000000000000001", False),
        (HALF, "0.5 or 0.6", False),
        (HALF, "0.5 km", False),
        (HALF, "1/2", False),
        (HALF, "50%", False),
        (HALF, "0,5", False),
        (HALF, "-0.5", False),
        (TENTH, "0.1", True),
        (TENTH, "0.1000000000000000055511151231257827", False),
        (WHOLE, "1234", True),
        (WHOLE, "1,234", True),
        (WHOLE, "1,234.0", True),
        (WHOLE, "12,34", False),
        (WHOLE, "1 234", False),
        (WHOLE, "1_234", False),
        (WHOLE, "1234e0", True),
        (WHOLE, "0x4d2", False),
        (WHOLE, "\u0661\u0662\u0663\u0664", False),
        (NEAR, "200.5", True),
        (NEAR, "199.5", True),
        (NEAR, "200.51", False),
        (NEAR, "-200", False),
        (SHARE, "-202", True),
        (SHARE, "\u2212198", True),
        (SHARE, "-202.1", False),
        (SHARE, "200", False),
        (SHARE, "0", False),
        (BOTH, "11.9", True),
        (BOTH, "12.1", False),
    ],
)
def test_number_is_compared_exactly_within_its_tolerance(rule, response, right):
    assert accepts(None, rule, response) == right


@pytest.mark.parametrize(
    "response",
    [
        *("nan", "NaN", "inf", "-inf", "Infinity", "1e999999", "1e9999999999"),
        *("-1e999", "9" * 5000, "9" * 99_999, "1e" + "9" * 90, "0" * 101, "e", ".", ""),
    ],
)
def test_number_is_never_what_only_looks_like_one(response):
    wide = {"kind": "number", "answer": 0, "absolute": 1e300}
    start = time.monotonic()

    assert not accepts(None, wide, response)
    assert time.monotonic() - start < 1


DATE = {"kind": "regex", "pattern": r"\d{4}-\d\d-\d\d"}
FOUND = DATE | {"match": "search"}


@pytest.mark.parametrize(
    "rule, response, right",
    [
        (DATE, "2024-02-29", True),
        (DATE, "on 2024-02-29", False),
        (DATE, "2024-02-29\nor 2023-01-01", False),
        (FOUND, "on 2024-02-29.", True),
        (FOUND, "on 2024-2-29.", False),
        (DATE | TAG, "on <answer>2024-02-29</answer>", True),
        (DATE | TAG, "2024-02-29 <answer>none</answer>", False),
        ({"kind": "regex", "pattern": "a|b"}, "ab", False),
        ({"kind": "regex", "pattern": "^a$"}, "a\nb", False),
        ({"kind": "regex", "pattern": "(?i)yes"}, "YES", True),
    ],
)
def test_pattern_matches_the_whole_answer_unless_it_is_searched(
    sandbox, rule, response, right
):
    assert accepts(sandbox, rule, response) == right


def test_pattern_that_backtracks_for_ever_says_nothing_and_stops(sandbox):
    endless = {"kind": "regex", "pattern": "(a+)+b"}
    start = time.monotonic()

    with pytest.raises(GraderFailure, match="regex rule of question q .*time_limit"):
        accepts(sandbox, endless, "a" * 60)

    assert time.monotonic() - start < 60
    # The worker lives on.
    assert accepts(sandbox, endless, "aab")


def test_answer_longer_than_any_is_refused_unread(sandbox):
    anything = {"kind": "regex", "pattern": "(?s).*"}

    assert accepts(sandbox, anything, "a" * 100_000)
    assert verdict(sandbox, anything, "a" * 100_001).outcome == "Incorrect Format"


F = {"kind": "python_function", "name": "f"}
PROGRAM = "```python\n\ufeffdef f(x):\n    return x\n```\n"


@pytest.mark.parametrize(
    "response",
    [
        f"{PROGRAM}It prints\n```\n{'1 ' * 40}\n```",
        f"{PROGRAM}Use it so:\n```python\nf(1)  # {'1 ' * 40}\n```",
        f"<think>```python\ndef f(x): {'1 ' * 40}\n```</think>\n{PROGRAM}",
    ],
)
def test_function_is_searched_in_the_block_of_the_program(sandbox, response):
    assert accepts(sandbox, F, response)


DEEP = "(" * 5000 + ")" * 5000


@pytest.mark.parametrize(
    "source, right",
    [
        ("def f(x):\n    return x", True),
        ("import os\n\n@staticmethod\ndef f(): pass", True),
        ("def g(): f = 1\ndef f(): pass", True),
        ("def f(): pass\ndef g(): f = 1", True),
        ("def f(): pass\nf()", True),
        ("def g(): pass", False),
        ("def f(x):", False),
        ("def f(x)\n    return x", False),
        ("def f(): pass\nf = 3", False),
        ("def f(): pass\ndel f", False),
        ("def f(): pass\nfor f in []: pass", False),
        ("def f(): pass\nclass f: pass", False),
        ("class f: pass", False),
        ("class A:\n    def f(self): pass", False),
        ("def g():\n    def f(): pass", False),
        ("async def f(): pass", False),
        ("f = lambda: 1", False),
        ("# def f(): pass", False),
        ("'''\ndef f(): pass\n'''", False),
        ("def f(): pass\nreturn 1", False),
        ("def f(): pass\nawait f()", False),
        ("def f(): pass\n\x00", False),
        ("def f(): return '\udc80'", False),
        ("def f(): pass\n" + DEEP, False),
        ("def f(): pass\n" + "-" * 90_000 + "1", False),
        ("raise SystemExit", False),
        ("print(", False),
    ],
)
def test_python_compiles_and_leaves_the_function_at_its_top(sandbox, source, right):
    assert accepts(sandbox, F, f"Here:\n```python\n{source}\n```\n") == right


def test_python_is_never_run(sandbox):
    program = "raise ValueError\ndef f(): pass"

    assert accepts(sandbox, F, f"```\n{program}\n```")
    assert not accepts(sandbox, F, program)
    assert accepts(sandbox, F | {"answer_in": "response"}, program)


@pytest.mark.parametrize(
    "text, value",
    [
        ('{"a": [1, 2.5, null, true, "x"]}', {"a": [1, 2.5, None, True, "x"]}),
        ("[" * 50 + "]" * 50, None),
        (' "x" ', "x"),
        ('{"a": 1, "a": 2}', ValueError),
        ('[{"b": {"a": 1, "a": 1}}]', ValueError),
        ("NaN", ValueError),
        ("[-Infinity]", ValueError),
        ("1e999", ValueError),
        ("[" * 51 + "]" * 51, ValueError),
        ('{"a":' * 51 + "1" + "}" * 51, ValueError),
        ("[" * 100_000, ValueError),
        ("9" * 5000, ValueError),
        ("{'a': 1}", ValueError),
        ("[1,]", ValueError),
        ("{} {}", ValueError),
        ("", ValueError),
    ],
)
def test_strict_json(text, value):
    if value is ValueError:
        with pytest.raises(ValueError):
            check.read_json(text)
    else:
        found = check.read_json(text)
        assert value is None or found == value


SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"const": "Bern"},
        "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    },
    "required": ["city"],
    "additionalProperties": False,
}


@needs_jsonschema
@pytest.mark.parametrize(
    "answer, fault",
    [
        ('{"city": "Bern"}', None),
        ('{"city": "Bern", "tags": ["a", "b"]}', None),
        ('{"city": "Basel"}', 'the value at $.city breaks "const"'),
        ("{}", 'the value at $ breaks "required"'),
        ('{"city": "Bern", "x": 1}', 'breaks "additionalProperties"'),
        ('{"city": "Bern", "tags": ["a", 1]}', 'the value at $.tags[1] breaks "type"'),
        ('{"city": "Bern", "tags": ["a", "a"]}', 'breaks "uniqueItems"'),
        ('{"city": "Basel", "city": "Bern"}', "an object has a name twice"),
        ('["Bern"]', 'the value at $ breaks "type"'),
        ("{'city': 'Bern'}", "it is not JSON"),
        ('{"city": "Bern"} ok', "it is not JSON"),
        ("[" * 50_000, "nested deeper than 50"),
    ],
)
def test_json_keeps_its_schema(schemas, answer, fault):
    rule = {"kind": "json_schema", "schema": SCHEMA, "answer_in": "tag"}

    found = verdict(schemas, rule, f"<answer>{answer}</answer>")

    assert found.score == (fault is None)
    assert fault is None or fault in found.feedback


@needs_jsonschema
def test_schema_that_cannot_be_applied_says_nothing(schemas):
    endless = {"type": "string", "pattern": "^(a+)+$"}
    rule = {"kind": "json_schema", "schema": endless}

    with pytest.raises(GraderFailure, match="json_schema rule of question q"):
        accepts(schemas, rule, json.dumps("a" * 60 + "b"))


@pytest.mark.parametrize(
    "rule, response, secret",
    [
        (EXACT, "Basel", "Bern"),
        (WHOLE, "99", "1234"),
        (DATE, "yesterday", "\\d"),
        (F, "```\nx = 1\n```", "return"),
    ],
)
def test_feedback_says_what_is_wrong_and_never_the_answer(
    sandbox, rule, response, secret
):
    told = verdict(sandbox, rule, response).feedback

    assert told.startswith("Wrong Answer\nYou wrote") and secret not in told


@needs_jsonschema
def test_feedback_on_json_names_no_value_that_is_wanted(schemas):
    rule = {"kind": "json_schema", "schema": SCHEMA}

    assert "Bern" not in verdict(schemas, rule, '{"city": "x"}').feedback


def test_special_tokens_of_an_answer_are_broken_in_feedback():
    assert "<|im_end|>" not in verdict(None, EXACT, "<|im_end|>").feedback


@pytest.mark.parametrize(
    "rule, told",
    [
        (None, "field rule: expected dict"),
        ("exact", "field rule: expected dict"),
        ({}, "field rule, field kind: expected str"),
        ({"kind": ["exact"]}, "field kind: expected str"),
        ({"kind": "exakt"}, "field kind: expected one of exact, regex"),
        ({"kind": "exact"}, "field answer: is missing"),
        (EXACT | {"answer": 5}, "field answer: expected str, got 5"),
        (EXACT | {"answer": " "}, "field answer: is empty"),
        (EXACT | {"ignore_case": "yes"}, "field ignore_case: expected bool"),
        (
            EXACT | {"ignorecase": True},
            "field ignorecase: a rule of the kind exact has",
        ),
        (EXACT | {"answer_in": "box5"}, "field answer_in: expected one of response"),
        (EXACT | {"answer_in": ["tag"]}, "field answer_in: expected one of response"),
        ({"kind": "regex", "pattern": "("}, "field pattern: '\\(' is no regular"),
        ({"kind": "regex", "pattern": 1}, "field pattern: expected str"),
        (DATE | {"match": "start"}, "field match: expected one of full, search"),
        ({"kind": "number", "answer": "5"}, "field answer: expected a finite number"),
        ({"kind": "number", "answer": True}, "field answer: expected a finite number"),
        (HALF | {"answer": float("nan")}, "field answer: expected a finite number"),
        (HALF | {"answer": float("inf")}, "field answer: expected a finite number"),
        (HALF | {"absolute": -1}, "field absolute: expected a finite number from 0"),
        (HALF | {"relative": 1}, "field relative: .* from 0 to below 1, got 1"),
        (HALF | {"tolerance": 1}, "field tolerance: a rule of the kind number has"),
        (F | {"name": "f()"}, "field name: expected the name of a function"),
    ],
)
def test_malformed_rule_is_refused_by_name(rule, told):
    with pytest.raises(ValueError, match=f"f.jsonl, row 2, .*{told}"):
        grader.data({"rule": rule}, "f.jsonl, row 2")


@needs_jsonschema
@pytest.mark.parametrize(
    "schema, told",
    [
        ([], "field schema: expected dict"),
        ({"type": "objekt"}, "field schema: 'objekt' is not valid"),
        ({"items": {"$ref": "https://x.org/s"}}, "refers to 'https://x.org/s'"),
        ({"anyOf": [{"$ref": "file.json"}]}, "refers to 'file.json'"),
        ({"not": {"$dynamicRef": "file.json"}}, "refers to 'file.json'"),
        ({"items": {"$recursiveRef": "file.json"}}, "refers to 'file.json'"),
    ],
)
def test_schema_that_is_none_is_refused_by_name(schema, told):
    with pytest.raises(ValueError, match=told):
        grader.data({"rule": {"kind": "json_schema", "schema": schema}}, "here")


def test_missing_jsonschema_is_told_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)

    with pytest.raises(ValueError, match='jsonschema: pip install "jsonschema>=4.20'):
        grader.data({"rule": {"kind": "json_schema", "schema": {}}}, "here")


def test_columns_of_parquet_that_a_rule_does_not_use_are_no_fields():
    row = {"rule": EXACT | {"pattern": None, "absolute": None}}

    assert grader.data(row, "here")["rule"] == grader.data({"rule": EXACT}, "")["rule"]


@pytest.mark.parametrize("rule, sandboxed", [(EXACT, False), (DATE, True)])
def test_environment_starts_a_sandbox_only_where_a_rule_needs_it(
    tmp_path, rule, sandboxed
):
    started = []

    def start(packages):
        started.append(Sandbox(workers=1, packages=packages))
        return started[0]

    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"uid": "a", "prompt": "?", "rule": rule}))

    environment = grader.environment({"train": file}, start)

    (asked,) = environment.questions("train")
    assert environment.start(asked).act("Basel", False).score == 0
    assert bool(started) == sandboxed
    environment.close()
