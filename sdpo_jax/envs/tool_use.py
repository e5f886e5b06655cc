r"""Tool use: a response lists the tool calls that a user's request needs.

A row is like those of the official SDPO repository, which hold ToolAlpaca's calls as
text:

  {"idx": 7, "prompt": "...", "answer":
      "[{\"Action\": \"search\", \"Action_Input\": \"{\\\"page\\\": 1}\"}]"}

and a response makes calls as

  Action: search
  Action Input: {"page": 1}

`grader="fixed"` compares complete calls, including nested arguments. Calls may come in
any order, but each as often as expected; a call whose expected name begins with
"[Optional]" may be left out. A response that mentions an action anywhere else has no
readable calls. Names of tools and arguments must be equal. Numbers are compared by
value, also with text that holds a number; text is compared without surrounding white
space, plain words also without case; the order of lists matters. An argument that is
null or empty equals an absent one.

`grader="official"` scores as the official code does: it compares the tools' names as a
multiset, and the arguments of all calls merged into one object, in which the last value
of a name wins and calls with nested objects are lost.
"""

import collections
import decimal
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sdpo_jax.envs import feedback_text, task
from sdpo_jax.envs.base import Verdict
from sdpo_jax.envs.single_turn import unreadable
from sdpo_jax.questions import rows
from sdpo_jax.questions.question import Question

INCORRECT_FORMAT = (
    "Incorrect Format: Write every call as two lines, 'Action: ' with the name of one "
    "tool, and 'Action Input: ' with one JSON object of its arguments."
)
OPTIONAL = "[Optional]"
# Limits on a response: calls, characters of one call's arguments, and their nesting.
_MAX_CALLS, _MAX_CHARS, _MAX_DEPTH = 100, 100_000, 50

_ACTION = re.compile(
    r"^(?:[ \t*_>#\u2022-]|\d+[.)])*Action[*_]*[ \t]*:[*_]*[ \t]*(?:\r?\n[ \t]*)?"
    r"(?P<name>[^\n]*?)(?=\n|\Z|Action[ _]Input)",
    re.MULTILINE,
)
_INPUT = re.compile(
    r"\s*[*_>#\u2022-]*[ \t]*Action[ _]?Input[*_]*[ \t]*:[*_]*"
    r"\s*(?:```(?:json)?\s*|`)?",
    re.IGNORECASE,
)
_NO_ARGUMENTS = re.compile(r"(?:none|null|n/a)?[ \t\r]*(?=\n|$)", re.IGNORECASE)
_MENTION = re.compile(r"Action(?:[ _]?Input)?[\s\d*_`\"']*[:\uff1a]", re.IGNORECASE)
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")


class Call(NamedTuple):
    """One call of a tool."""

    name: str
    arguments: Mapping[str, Any]


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
    rows.check_finite(arguments, f"{where}, Action_Input of {call['Action']}")
    return Call(call["Action"], arguments)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: {text!r:.80} is not JSON: {error}") from error


def fixed(question: Question, response: str, truncated: bool) -> Verdict:
    """Grade the calls of `response`: score 1 if they are the expected ones, else 0."""
    expected = question.data["calls"]
    calls = read_calls(response)
    if not calls:
        return unreadable(INCORRECT_FORMAT, truncated)
    problems = _problems(calls, expected)
    if not problems:
        return Verdict(1.0, "Accepted", measurements={"format": 1.0})
    feedback = feedback_text.feedback(["Wrong Answer", *problems])
    return Verdict(0.0, "Wrong Answer", feedback, {"format": 1.0})


def read_calls(response: str) -> list[Call] | None:
    """The calls that a response makes; None if any of them cannot be read."""
    calls, rest, position = [], [], 0
    while action := _ACTION.search(response, position):
        label = _INPUT.match(response, action.end())
        if label is None or len(calls) == _MAX_CALLS:
            return None
        arguments_and_end = _object(response, label.end())
        if arguments_and_end is None:
            return None
        arguments, end = arguments_and_end
        calls.append(Call(action["name"].strip().strip("*`\"'"), arguments))
        rest.append(response[position : action.start()])
        position = end
    rest.append(response[position:])
    return None if any(map(_MENTION.search, rest)) else calls


def _object(text: str, start: int) -> tuple[dict[str, Any], int] | None:
    """The JSON object at `start`, empty if nothing is there, and where it ends."""
    if nothing := _NO_ARGUMENTS.match(text, start):
        return {}, nothing.end()
    try:
        value, end = _DECODER.raw_decode(text[start : start + _MAX_CHARS])
    except (ValueError, RecursionError, ArithmeticError):
        return None
    if not isinstance(value, dict) or _depth(value) > _MAX_DEPTH:
        return None
    return value, start + end


def _depth(value: Any) -> int:
    """The nesting depth of a value, counted up to one above the limit."""
    layer, depth = [value], 0
    while layer and depth <= _MAX_DEPTH:
        inner = [v.values() if isinstance(v, dict) else v for v in layer]
        layer = [x for values in inner for x in values if isinstance(x, dict | list)]
        depth += 1
    return depth


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
    """Descriptions of the faults, without the expected values; empty for none."""
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
        tried = next((other for other in extra if other.name == call.name), None)
        if tried is None:
            problems.append("A call that is needed is missing.")
        else:
            extra.remove(tried)
            problems += _wrong_arguments(tried, call)
    problems += [f"This call of {_shown(call.name)} is not needed." for call in extra]
    return list(dict.fromkeys(problems))


def _unmatched(calls: Sequence[Call], others: Sequence[Call]) -> list[Call]:
    """`calls` without those that equal one of `others`, each of which matches once."""
    unused, left = list(others), []
    for call in calls:
        equal = next((other for other in unused if _same_call(call, other)), None)
        if equal is None:
            left.append(call)
        else:
            unused.remove(equal)
    return left


def _wrong_arguments(call: Call, expected: Call) -> list[str]:
    """How two unequal calls of one tool differ; never empty."""
    given, right = (_present(c.arguments) for c in (call, expected))
    wrong = {
        "is missing": [name for name in right if name not in given],
        "is not needed": [name for name in given if name not in right],
        "has a wrong value": [
            name
            for name in right
            if name in given and not _same(given[name], right[name])
        ],
    }
    return [
        f"{_shown(call.name)}: the argument {_shown(name)} {fault}."
        for fault, names in wrong.items()
        for name in names
    ]


def _shown(name: str) -> str:
    """A name, shortened to fit into one line of feedback."""
    return feedback_text.cut(" ".join(name.split()))


def _same_call(call: Call, other: Call) -> bool:
    return call.name == other.name and _same(call.arguments, other.arguments)


def _present(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are neither null nor empty text."""
    is_empty = lambda v: v is None or (isinstance(v, str) and not v.strip())
    return {name: value for name, value in arguments.items() if not is_empty(value)}


def _same(a: Any, b: Any) -> bool:
    """Whether two values are equal by the rules in the module's docstring."""
    if isinstance(a, dict) and isinstance(b, dict):
        a, b = _present(a), _present(b)
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, str) and isinstance(b, str):
        a, b = a.strip(), b.strip()
        return a == b or (_are_words(a, b) and a.casefold() == b.casefold())
    if any(isinstance(x, bool | dict | list) or x is None for x in (a, b)):
        return a is b
    a, b = _number(a), _number(b)
    return a is not None and a == b


def _are_words(*texts: str) -> bool:
    """Whether all texts are plain words, not names in which case matters."""
    words = [word.rstrip(",.!?") for text in texts for word in text.split()]
    cased = lambda w: w.islower() or w.isupper() or w.istitle()
    are_long = all(len(text) > 1 for text in texts)
    return are_long and all(word.isalpha() and cased(word) for word in words)


def _number(value: Any) -> decimal.Decimal | None:
    """The exact value of a number, or of text that holds one."""
    text = str(value).strip()
    if isinstance(value, str) and not _NUMBER.fullmatch(text):
        return None
    return decimal.Decimal(text)


def official(question: Question, response: str, truncated: bool) -> Verdict:
    """Score as the official code does: without feedback, truncated or not."""
    expected = question.data["calls"]
    names = collections.Counter(call.name for call in expected)
    merged = {k: v for call in expected for k, v in call.arguments.items()}
    called = collections.Counter(re.findall(r"Action:\s*(\w+)", response))
    arguments: dict[str, Any] = {}
    for block in re.findall(r"Action Input:\s*({.*?})", response, re.DOTALL):
        try:
            arguments |= json.loads(block)
        except (ValueError, RecursionError):
            continue
    right = called == names and arguments == merged
    return Verdict(float(right), "Accepted" if right else "Wrong Answer")


TASK = task.answered(data, fixed=fixed, official=official)
