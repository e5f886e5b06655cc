r"""Tool use: a response names the calls that a user's request needs.

A row is like those of the official SDPO repository, where ToolAlpaca's calls are
written as text:

  {"idx": 7, "prompt": "...", "answer":
      "[{\"Action\": \"search\", \"Action_Input\": \"{\\\"page\\\": 1}\"}]"}

and a response makes calls as

  Action: search
  Action Input: {"page": 1}

`grader="fixed"` compares whole calls, nested arguments included. Calls may come in any
order, but each as often as it is expected; one whose name begins with "[Optional]" may
be left out. Names of tools and arguments must be equal. Numbers are equal by value,
also to text that holds the number; text is equal up to case and white space around it;
the order of lists counts. An argument that is null or empty text equals an absent one.

`grader="official"` scores as the official code does: the tools' names as a multiset,
and the arguments of all calls merged into one object, in which the last value of a name
stays and calls with nested objects are lost.
"""

import collections
import decimal
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdpo_jax.envs import rows, wording
from sdpo_jax.envs.base import Question, Verdict
from sdpo_jax.envs.graded import Graded

INCORRECT_FORMAT = (
    "Incorrect Format: Write every call as two lines, 'Action: ' with the name of one "
    "tool, and 'Action Input: ' with one JSON object of its arguments."
)
OPTIONAL = "[Optional]"
# What a response may hold is bounded before it is compared.
_MOST_CALLS, _MOST_CHARS = 100, 100_000

_ACTION = re.compile(r"^[\s*_>#-]*Action[*_]*\s*:[*_]*(.*)$", re.MULTILINE)
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?(e[+-]?[0-9]{1,4})?")
_INPUT = re.compile(r"[\s*_>#-]*Action[ _]Input[*_]*\s*:[*_]*\s*(?:```(?:json)?\s*)?")


class Call(NamedTuple):
    """One call of a tool."""

    name: str
    arguments: Mapping[str, Any]


def environment(files: Mapping[str, str | Path], grader: str = "fixed") -> Graded:
    """An environment of requests that calls of tools must meet.

    Args:
      files: split ("train", "validation" or "heldout") -> file of questions.
      grader: "fixed" or "official".

    Raises:
      ValueError: if a row is malformed; names file, row and field.
    """
    grade = {"fixed": fixed, "official": official}[grader]
    return Graded(rows.load_splits(files, data), grade)


def data(row: rows.Row, where: str) -> dict[str, Any]:
    """The expected calls."""
    answer, where = row.get("answer"), f"{where}, field answer"
    if isinstance(answer, str):
        answer = _json(answer, where)
    if not isinstance(answer, list) or not answer:
        raise ValueError(f"{where}: expected a list of calls, got {answer!r:.80}")
    return {"calls": [_expected(call, where) for call in answer]}


def _expected(call: Any, where: str) -> Call:
    if not isinstance(call, dict) or not isinstance(call.get("Action"), str):
        raise ValueError(f"{where}: expected a call with an Action, got {call!r:.80}")
    arguments = call.get("Action_Input")
    if isinstance(arguments, str):
        arguments = _json(arguments, f"{where}, Action_Input of {call['Action']}")
    if not isinstance(arguments, dict):
        raise ValueError(
            f"{where}: Action_Input of {call['Action']}: expected an object, got "
            f"{arguments!r:.80}"
        )
    return Call(call["Action"], arguments)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: {text!r:.80} is not JSON: {error}") from error


def fixed(question: Question, response: str, truncated: bool) -> Verdict:
    """Grade the calls of `response`: score 1 if they are those expected, else 0."""
    expected = question.data["calls"]
    calls = made(response)
    if not calls:
        outcome = "Truncated" if truncated else "Incorrect Format"
        told = wording.TRUNCATED if truncated else INCORRECT_FORMAT
        return Verdict(0.0, outcome, told, {"format": 0.0})
    problems = _problems(calls, expected)
    if not problems:
        return Verdict(1.0, "Accepted", measurements={"format": 1.0})
    told = wording.feedback(["Wrong Answer", *problems])
    return Verdict(0.0, "Wrong Answer", told, {"format": 1.0})


def made(response: str) -> list[Call] | None:
    """The calls that a response makes; None if one of them cannot be read."""
    calls = []
    for action in _ACTION.finditer(response):
        found = _INPUT.match(response, action.end())
        if found is None or len(calls) == _MOST_CALLS:
            return None
        arguments = _object(response[found.end() : found.end() + _MOST_CHARS])
        if arguments is None:
            return None
        calls.append(Call(action[1].strip(" \t*_`\"'"), arguments))
    return calls


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` begins with, if it is one."""
    try:
        found, _ = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("an argument is given twice")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_without_repeats,
    parse_constant=_no_constant,
    parse_float=decimal.Decimal,
)


def _problems(calls: Sequence[Call], expected: Sequence[Call]) -> list[str]:
    """What is wrong, without the expected values; empty if nothing is."""
    needed = [call for call in expected if not call.name.startswith(OPTIONAL)]
    optional = [
        call._replace(name=call.name.removeprefix(OPTIONAL).strip())
        for call in expected
        if call.name.startswith(OPTIONAL)
    ]
    missing = _unmatched(needed, calls)
    extra = _unmatched(_unmatched(calls, needed), optional)
    problems = []
    for call in missing:
        tried = next((made for made in extra if made.name == call.name), None)
        if tried is None:
            problems.append("A call that is needed is missing.")
        else:
            extra.remove(tried)
            problems += _wrong_arguments(tried, call)
    problems += [f"This call of {call.name} is not needed." for call in extra]
    return list(dict.fromkeys(problems))


def _unmatched(calls: Sequence[Call], others: Sequence[Call]) -> list[Call]:
    """`calls` without those that stand among `others`, each of them used once."""
    unused = collections.Counter(map(_canonical, others))
    left = []
    for call in calls:
        key = _canonical(call)
        if unused[key]:
            unused[key] -= 1
        else:
            left.append(call)
    return left


def _wrong_arguments(made: Call, expected: Call) -> list[str]:
    """How two unequal calls of one tool differ; never empty."""
    given, right = (_arguments(call.arguments) for call in (made, expected))
    wrong = {
        "is missing": [name for name in right if name not in given],
        "is not needed": [name for name in given if name not in right],
        "has a wrong value": [
            name
            for name in right
            if name in given and _key(given[name]) != _key(right[name])
        ],
    }
    return [
        f"{made.name}: the argument {name} {what}."
        for what, names in wrong.items()
        for name in names
    ]


def _canonical(call: Call) -> str:
    """The same text for equal calls."""
    return _key([call.name, _arguments(call.arguments)])


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in one spelling, so that those equal to each other are the same."""
    values = {name: _spelled(value) for name, value in arguments.items()}
    return {name: value for name, value in values.items() if value not in (None, "")}


def _spelled(value: Any) -> Any:
    if isinstance(value, dict):
        return _arguments(value)
    if isinstance(value, list):
        return [_spelled(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    text = str(value).strip().casefold()
    return _number(text) if _NUMBER.fullmatch(text) else text


def _number(text: str) -> str:
    """The same text for equal numbers."""
    sign, digits, exponent = decimal.Decimal(text).as_tuple()
    whole = "".join(map(str, digits)).lstrip("0")
    short = whole.rstrip("0")
    exponent += len(whole) - len(short)
    return f"{'-' * sign}{short}e{exponent}" if short else "0"


def official(question: Question, response: str, truncated: bool) -> Verdict:
    """Score as the official code: no feedback, and no regard to truncation."""
    expected = question.data["calls"]
    names = collections.Counter(call.name for call in expected)
    merged = {k: v for call in expected for k, v in call.arguments.items()}
    found = collections.Counter(re.findall(r"Action:\s*(\w+)", response))
    arguments: dict[str, Any] = {}
    for block in re.findall(r"Action Input:\s*({.*?})", response, re.DOTALL):
        try:
            arguments |= json.loads(block)
        except (ValueError, RecursionError):
            continue
    right = found == names and arguments == merged
    return Verdict(float(right), "Accepted" if right else "Wrong Answer")
