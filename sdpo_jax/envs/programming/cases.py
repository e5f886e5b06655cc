r"""Reads the hidden tests of a programming question from its row.

`tests` of a row is an object, or a string that holds its JSON:

  {"inputs": ["1 2\n", ...], "outputs": ["3\n", ...], "testtype": "stdin"}
  {"inputs": [[1, 2], ...], "outputs": [3, ...], "testtype": "functional",
   "fn_name": "add", "time_limit": 6}
  {"inputs": ["assert add(1, 2) == 3", ...], "testtype": "asserts", "fn_name": "add"}

Tests with neither testtype nor fn_name are of a script, as in verl's data sets.

Inputs of functions are a list of positional arguments, an object of named arguments, or
text with one JSON value after another; outputs of functions are JSON values, or text
that holds one. Asserts are those of MBPP and HumanEval; see `asserts`.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_jax.envs.programming import asserts
from sdpo_jax.questions import rows
from sdpo_jax.sandbox.values import Call, Stdin

TYPES = ("stdin", "functional", "asserts")


@dataclasses.dataclass(frozen=True)
class Cases:
    """The tests of one question, which the policy does not see.

    Args:
      inputs: sent to the sandbox.
      outputs: the expected results: text for a script, a JSON value for a call, an
        `Asserted` for an assert.
      shown: each input as feedback shows it.
      functions: names, of which a program must define one; empty for a script.
      time_limit: processor seconds per test; None for the sandbox's own limit.
      appended: source appended to every program; contains inputs only.
    """

    inputs: Sequence[Call | Stdin]
    outputs: Sequence[Any]
    shown: Sequence[str]
    functions: Sequence[str] = ()
    time_limit: float | None = None
    appended: str = ""


def read_cases(row: rows.Row, where: str, *, raw: bool = False) -> dict[str, Cases]:
    """The `data` of a question: its tests, under "tests".

    Args:
      row: a row of a file of questions.
      where: that file and row, for messages.
      raw: keep the inputs of functions as they are in the row, unparsed.

    Raises:
      ValueError: if they are malformed; names file, row (from 1) and field.
    """
    tests, where = _object(row, where)
    inputs, outputs = tests["inputs"], tests.get("outputs")
    limit = tests.get("time_limit")
    if tests["testtype"] == "asserts":
        return {"tests": _asserts(tests, where, limit)}
    if tests["testtype"] == "stdin":
        scripts = list(map(Stdin, inputs))
        return {"tests": Cases(scripts, outputs, inputs, time_limit=limit)}
    calls = [
        Call(tests["fn_name"], _arguments(value, f"{where}, field inputs[{index}]"))
        for index, value in enumerate(inputs)
    ]
    shown = list(map(_show, calls))
    expected = [
        _expected(value, f"{where}, field outputs[{index}]")
        for index, value in enumerate(outputs)
    ]
    if raw:
        calls = [Call(tests["fn_name"], value) for value in inputs]
    return {"tests": Cases(calls, expected, shown, [tests["fn_name"]], limit)}


def _object(row: rows.Row, where: str) -> tuple[dict, str]:
    """The tests' object, with fields of the right types, and its place for messages."""
    tests = row.get("tests")
    where = f"{where}, field tests"
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except ValueError as error:
            raise ValueError(f"{where}: is not JSON: {error}") from error
    if not isinstance(tests, dict):
        raise ValueError(f"{where}: expected an object, got {tests!r:.80}")
    if not tests.keys() & {"testtype", "fn_name"}:
        tests = {"testtype": "stdin", **tests}
    kind = rows.field(tests, "testtype", str, where)
    if kind not in TYPES:
        names = ", ".join(f'"{name}"' for name in TYPES)
        raise ValueError(f"{where}, field testtype: expected {names}, got {kind!r}")
    limit = tests.get("time_limit")
    if limit is not None and not (type(limit) in (int, float) and limit > 0):
        raise ValueError(
            f"{where}, field time_limit: expected seconds above 0, got {limit!r}"
        )
    _check_lists(tests, kind, where)
    if kind == "functional" and not rows.field(tests, "fn_name", str, where):
        raise ValueError(f"{where}, field fn_name: is empty")
    return tests, where


def _check_lists(tests: Mapping, kind: str, where: str) -> None:
    """Refuse inputs and outputs that are not lists of equal length, or not text."""
    lists = ["inputs"] if kind == "asserts" else ["inputs", "outputs"]
    counts = [len(rows.field(tests, name, list, where)) for name in lists]
    if not counts[0] or counts[0] != counts[-1]:
        raise ValueError(
            f"{where}: {counts[0]} inputs and {counts[-1]} outputs; expected equal "
            "numbers, at least one of each"
        )
    for name in lists if kind != "functional" else ():
        for index, text in enumerate(tests[name]):
            if not isinstance(text, str):
                raise ValueError(
                    f"{where}, field {name}[{index}]: expected text, got {text!r:.80}"
                )


def _asserts(tests: Mapping, where: str, limit: float | None) -> Cases:
    function = tests.get("fn_name") or ""
    pairs = [
        pair
        for index, text in enumerate(tests["inputs"])
        for pair in asserts.read(text, function, f"{where}, field inputs[{index}]")
    ]
    if not pairs:
        raise ValueError(f"{where}, field inputs: asserts nothing about a function")
    calls, expected = zip(*pairs, strict=True)
    names, appended = asserts.callable_names(calls)
    inputs = [Call(name, []) for name in names]
    functions = sorted({call.partition("(")[0] for call in calls})
    return Cases(inputs, expected, calls, functions, limit, appended)


def _arguments(value: Any, where: str) -> list | dict:
    """Positional or named arguments; text holds one JSON value after another."""
    if isinstance(value, list | dict):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected a list, an object or text, got {value!r}")
    decoder, position, values = json.JSONDecoder(), 0, []
    text = value.strip()
    while position < len(text):
        try:
            item, position = decoder.raw_decode(text, position)
        except ValueError as error:
            raise ValueError(
                f"{where}: expected JSON values, got {value!r:.80} ({error})"
            ) from error
        values.append(item)
        position += len(text[position:]) - len(text[position:].lstrip())
    return values


def _expected(value: Any, where: str) -> Any:
    """The JSON value that a call must return."""
    try:
        expected = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ValueError(
            f"{where}: {value!r:.80} is not JSON; write a string with its quotes, as "
            r'"\"text\""'
        ) from error
    rows.check_finite(expected, where)
    return expected


def _show(call: Call) -> str:
    if isinstance(call.arguments, Mapping):
        pairs = call.arguments.items()
        return "\n".join(f"{name} = {json.dumps(value)}" for name, value in pairs)
    return "\n".join(map(json.dumps, call.arguments))
