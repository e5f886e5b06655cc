r"""A custom task without code: every row holds the rule that its answers must satisfy.

  {"uid": "a", "prompt": "...", "rule":
      {"kind": "exact", "answer": "Bern", "ignore_case": true, "answer_in": "tag"}}

kind             fields ("=" gives the default)
exact            answer; ignore_case=false
regex            pattern (Python's); match="full" or "search"
number           answer; absolute=0 and relative=0, tolerances; the larger one applies
json_schema      schema (no references to elsewhere; "format" is not checked)
python_function  name: the answer compiles and has this function at its top level

`answer_in` says which part of the response is the answer; surrounding white space is
removed:

response    the entire response, without its reasoning; the default
tag         the last <answer> tag
box         the last \boxed{}
code_block  the longest fenced block; for python_function, whose default it is, the
            block that holds the program, see `code_blocks`
last_line   the last line that is not empty

A truncated response has an answer only in a closed tag, box or code block, not in its
last line or an open tag. Numbers are plain decimals: "-1,234.5", "1e-3", no units or
fractions. Patterns, JSON and Python are checked in the sandbox, because a pattern may
backtrack forever and a parser may crash. A pattern or schema that exceeds the time
limit is a failure of the grader, and the attempt is masked.
"""

import fractions
import functools
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdpo_jax.envs import (
    answer_extraction,
    code_blocks,
    feedback_text,
    installed_packages,
    task,
)
from sdpo_jax.envs.base import GraderFailure, Verdict
from sdpo_jax.envs.single_turn import SingleTurn, sandboxed, unreadable
from sdpo_jax.questions import boxed, rows
from sdpo_jax.questions.question import Question
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Call, Packages

_REQUIRED = object()
_PLACES = ("response", "tag", "box", "code_block", "last_line")
# Fields of each kind, and their defaults.
_FIELDS = {
    "exact": {"answer": _REQUIRED, "ignore_case": False},
    "regex": {"pattern": _REQUIRED, "match": "full"},
    "number": {"answer": _REQUIRED, "absolute": 0, "relative": 0},
    "json_schema": {"schema": _REQUIRED},
    "python_function": {"name": _REQUIRED, "answer_in": "code_block"},
}
_SCHEMAS, _JSONSCHEMA = "a rule of the kind json_schema", "jsonschema>=4.20,<5"
_MAX_CHARS = 100_000
_MAX_DIGITS = 100
_NUMBER = re.compile(
    r"[+-]?(?=\.?[0-9])(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.[0-9]*)?"
    r"(?:[eE][+-]?[0-9]{1,3})?"
)
_NO_ANSWER = {
    "response": "The response is empty.",
    "tag": "Give the answer between <answer> and </answer>.",
    "box": "Give the answer in the format: \\boxed{your_answer}.",
    "code_block": "Put your code inside a ```python ... ``` block.",
    "last_line": "The response is empty.",
}

_CHECK = Path(__file__).with_name("check.py").read_text()
# Kind -> the function of `check.py` that checks it, and the fields that it is given.
_IN_SANDBOX = {
    "regex": ("pattern_fault", ("pattern", "match")),
    "json_schema": ("json_fault", ("schema",)),
    "python_function": ("function_fault", ("name",)),
}


def environment(
    files: Mapping[str, str | Path],
    make_sandbox: Callable[..., Sandbox] = Sandbox,
) -> SingleTurn:
    """An environment of questions whose rows hold their rules.

    Args:
      files: split ("train", "validation" or "heldout") -> file of questions.
      make_sandbox: called with the packages that checks need, only if a rule is
        checked in the sandbox.

    Raises:
      ValueError: if a row is malformed (names file, row and field), or jsonschema is
        needed and missing.
      SandboxUnavailable: if no sandbox works on this machine.
    """
    questions = rows.load_splits(files, data)
    kinds = {q.data["rule"]["kind"] for split in questions.values() for q in split}
    if not kinds & _IN_SANDBOX.keys():
        return SingleTurn(questions, functools.partial(grade, None))
    sandbox = make_sandbox(packages=_packages("json_schema" in kinds))
    return sandboxed(questions, grade, sandbox)


def _packages(schemas: bool) -> Packages:
    if not schemas:
        return Packages()
    modules = installed_packages.modules(_SCHEMAS, "jsonschema", _JSONSCHEMA)
    return Packages(modules, "import jsonschema")


def data(row: rows.Row, where: str) -> dict[str, Any]:
    """A row's rule, with its defaults; raises ValueError with file, row and field."""
    # Parquet gives every rule the fields of all rules, as null.
    given = rows.field(row, "rule", dict, where).items()
    given = {name: value for name, value in given if value is not None}
    where = f"{where}, field rule"
    kind = rows.field(given, "kind", str, where)
    if kind not in _FIELDS:
        raise ValueError(
            f"{where}, field kind: expected one of {', '.join(_FIELDS)}, got {kind!r}"
        )
    rule = {"kind": kind, "answer_in": "response"} | _FIELDS[kind] | given
    if unknown := rule.keys() - _FIELDS[kind].keys() - {"kind", "answer_in"}:
        raise ValueError(
            f"{where}, field {min(unknown)}: a rule of the kind {kind} has only "
            f"answer_in, {', '.join(_FIELDS[kind])}"
        )
    if missing := [name for name, value in rule.items() if value is _REQUIRED]:
        raise ValueError(f"{where}, field {missing[0]}: is missing")
    _check_choice(rule, "answer_in", _PLACES, where)
    _CHECKS[kind](rule, where)
    return {"rule": rule}


def _check_choice(
    rule: rows.Row, name: str, choices: tuple[str, ...], where: str
) -> None:
    if rule[name] not in choices:
        raise ValueError(
            f"{where}, field {name}: expected one of {', '.join(choices)}, got "
            f"{rule[name]!r:.80}"
        )


def _check_exact(rule: rows.Row, where: str) -> None:
    rows.field(rule, "ignore_case", bool, where)
    if not rows.field(rule, "answer", str, where).strip():
        raise ValueError(f"{where}, field answer: is empty")


def _check_regex(rule: rows.Row, where: str) -> None:
    _check_choice(rule, "match", ("full", "search"), where)
    try:
        re.compile(rows.field(rule, "pattern", str, where))
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(
            f"{where}, field pattern: {rule['pattern']!r:.80} is no regular "
            f"expression: {error}"
        ) from error


def _check_number(rule: rows.Row, where: str) -> None:
    for name, least, most in (
        ("answer", -math.inf, math.inf),
        ("absolute", 0, math.inf),
        # A relative tolerance of 1 or more would accept 0 for every answer.
        ("relative", 0, 1),
    ):
        value = rule[name]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (least <= value < most) or abs(value) == math.inf:
            limits = f" from {least} to below {most}" if name != "answer" else ""
            raise ValueError(
                f"{where}, field {name}: expected a finite number{limits}, got "
                f"{value!r:.80}"
            )


def _check_schema(rule: rows.Row, where: str) -> None:
    try:
        import jsonschema  # Optional: only rules of the kind json_schema need it.
    except ImportError as error:
        raise ValueError(
            f'{_SCHEMAS} needs the package jsonschema: pip install "{_JSONSCHEMA}"'
        ) from error
    schema = rows.field(rule, "schema", dict, where)
    if remote := [name for name in _references(schema) if not name.startswith("#")]:
        raise ValueError(
            f"{where}, field schema: refers to {remote[0]!r:.80}; the sandbox has no "
            "network, so include it in the schema"
        )
    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        raise ValueError(f"{where}, field schema: {error.message:.200}") from error


def _references(schema: Any) -> list[str]:
    """The references in a schema, at any depth."""
    if isinstance(schema, list):
        return [name for inner in schema for name in _references(inner)]
    if not isinstance(schema, dict):
        return []
    own = [schema.get(name) for name in ("$ref", "$dynamicRef", "$recursiveRef")]
    references = [name for name in own if isinstance(name, str)]
    return references + _references(list(schema.values()))


def _check_name(rule: rows.Row, where: str) -> None:
    if not rows.field(rule, "name", str, where).isidentifier():
        raise ValueError(
            f"{where}, field name: expected the name of a function, got "
            f"{rule['name']!r:.80}"
        )


_CHECKS = {
    "exact": _check_exact,
    "regex": _check_regex,
    "number": _check_number,
    "json_schema": _check_schema,
    "python_function": _check_name,
}


def grade(
    sandbox: Sandbox | None, question: Question, response: str, truncated: bool
) -> Verdict:
    """Score 1 if the answer in `response` satisfies the question's rule, else 0.

    Raises:
      GraderFailure: if the sandbox failed twice, or the rule could not be applied.
    """
    rule = question.data["rule"]
    answer = (_answer(rule, response, truncated) or "").strip()
    if not answer:
        feedback = f"Incorrect Format: {_NO_ANSWER[rule['answer_in']]}"
        return unreadable(feedback, truncated)
    if len(answer) > _MAX_CHARS:
        return unreadable("Incorrect Format: The answer is too long.", truncated)
    if rule["kind"] in _IN_SANDBOX:
        fault = _fault_in_sandbox(sandbox, question, answer)
    else:
        fault = {"exact": _exact_fault, "number": _number_fault}[rule["kind"]](
            rule, answer
        )
    if fault is None:
        return Verdict(1.0, "Accepted", measurements={"format": 1.0})
    lines = ["Wrong Answer", f"You wrote {feedback_text.cut(answer)}", f"But {fault}."]
    return Verdict(0.0, "Wrong Answer", feedback_text.feedback(lines), {"format": 1.0})


def _answer(rule: rows.Row, response: str, truncated: bool) -> str | None:
    """The answer in a response; None if there is none, or it may be incomplete."""
    place = rule["answer_in"]
    if place == "tag":
        return answer_extraction.last_tag(response, closed=truncated)
    if place == "box":
        return boxed.last_box(response)
    if place == "code_block":
        if rule["kind"] == "python_function":
            return code_blocks.program(response, [rule["name"]])
        return code_blocks.longest(response)
    if truncated:
        return None
    return response if place == "response" else response.rstrip().rpartition("\n")[2]


def _exact_fault(rule: rows.Row, answer: str) -> str | None:
    fold = str.casefold if rule["ignore_case"] else str
    right = fold(answer) == fold(rule["answer"].strip())
    return None if right else "it is not the right answer"


def _number_fault(rule: rows.Row, answer: str) -> str | None:
    answer = answer.replace("\u2212", "-")
    if len(answer) > _MAX_DIGITS or not _NUMBER.fullmatch(answer):
        return "it is not a plain number"
    # Fractions, so that 0.1 is exactly a tenth in both the rule and the answer.
    expected = _exact(rule["answer"])
    distance = abs(_exact(answer.replace(",", "")) - expected)
    allowed = max(_exact(rule["absolute"]), _exact(rule["relative"]) * abs(expected))
    return None if distance <= allowed else "it is not the right number"


def _exact(number: str | float) -> fractions.Fraction:
    return fractions.Fraction(repr(number) if isinstance(number, float) else number)


def _fault_in_sandbox(sandbox: Sandbox, question: Question, answer: str) -> str | None:
    rule = question.data["rule"]
    function, names = _IN_SANDBOX[rule["kind"]]
    arguments = [rule[name] for name in names] + [answer]
    (execution,) = sandbox.run(_CHECK, [Call(function, arguments)])
    if execution.status == "ok" and isinstance(execution.result, str | None):
        return execution.result
    if rule["kind"] == "python_function":
        return "it is not Python that can be compiled"
    raise GraderFailure(
        f"the {rule['kind']} rule of question {question.uid} could not be applied: "
        f"{execution.status} {execution.error_type} {execution.error_message:.200}"
    )


TASK = task.Task(lambda env: environment(task.files(env), task.sandboxes(env)))
