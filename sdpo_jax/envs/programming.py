r"""Programming tasks: a response holds a program, hidden tests decide.

A file of questions is JSON lines, or one JSON list, of rows like those of the official
SDPO repository:

  {"idx": 7, "prompt": "...", "system": "...", "tests": {
      "inputs": ["1 2\n", ...], "outputs": ["3\n", ...], "testtype": "stdin"}}
  {"uid": "add", "prompt": "...", "tests": {
      "inputs": [[1, 2], ...], "outputs": [3, ...], "testtype": "functional",
      "fn_name": "add", "time_limit": 6}}

`tests` may also be a string that holds this JSON. Inputs of functions are a list of
positional arguments, an object of named ones, or text with one JSON value after
another; outputs of functions are JSON values, or text that holds one.

Deviations from the official grader: `class Solution` and every standard module work;
a number equals its float; standard output is compared word by word; the expected
outputs are compared here and never come near the program.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo_jax.envs import marked, rows, wording
from sdpo_jax.envs.base import Question, Verdict
from sdpo_jax.envs.graded import Graded, unreadable
from sdpo_jax.envs.sandbox import Call, Execution, Sandbox, Stdin

INCORRECT_FORMAT = {
    "fenced": "Incorrect Format: Put your code inside a ```python ... ``` block.",
    "whole": "Incorrect Format: The response was empty; it must be a Python program.",
}
LIMIT_NAMES = {
    "time_limit": "Time Limit Exceeded",
    "memory_limit": "Memory Limit Exceeded",
    "output_limit": "Output Limit Exceeded",
}


@dataclasses.dataclass(frozen=True)
class Cases:
    """The tests of one question, which the policy does not see.

    Args:
      inputs: what the sandbox is given.
      outputs: what must come back; text for a script, a JSON value for a call.
      shown: each input as feedback shows it.
      time_limit: processor seconds per test; None for the sandbox's own.
    """

    inputs: Sequence[Call | Stdin]
    outputs: Sequence[Any]
    shown: Sequence[str]
    time_limit: float | None = None


class Programming(Graded):
    """An environment whose responses are Python programs.

    Args:
      files: split ("train", "validation" or "heldout") -> file of questions.
      sandbox: where programs run; closed with the environment.
      extract: "fenced" takes the longest fenced code block as the program, "whole"
        the response as it is.
      wrong_answers_shown: most failed tests that one feedback names.

    Raises:
      ValueError: if a row is malformed; names file, row and field.
    """

    def __init__(
        self,
        files: Mapping[str, str | Path],
        sandbox: Sandbox,
        *,
        extract: str = "fenced",
        wrong_answers_shown: int = 2,
    ):
        if extract not in ("fenced", "whole"):
            raise ValueError(f'extract must be "fenced" or "whole", got {extract!r}')
        if wrong_answers_shown < 0:
            raise ValueError(
                f"wrong_answers_shown must not be negative, got {wrong_answers_shown}"
            )
        self.sandbox = sandbox
        self.extract = extract
        self.wrong_answers_shown = wrong_answers_shown
        super().__init__(rows.load_splits(files, cases), self._grade, sandbox.close)

    def _grade(self, question: Question, response: str, truncated: bool) -> Verdict:
        """Score 1 if the program in `response` passes every test, else 0.

        Raises:
          GraderFailure: if the sandbox failed twice; nothing is known of the program.
        """
        program = self._program(response, truncated)
        if program is None:
            told = INCORRECT_FORMAT[self.extract]
            return unreadable(told, truncated, "tests_passed")
        tests = question.data["tests"]
        executions = self.sandbox.run(program, tests.inputs, cpu_s=tests.time_limit)
        passed = [
            is_right(execution, test, expected)
            for execution, test, expected in zip(
                executions, tests.inputs, tests.outputs, strict=True
            )
        ]
        # Only what the program decides: seconds would differ when a run is repeated.
        measurements = {"tests_passed": sum(passed) / len(passed)}
        if all(passed):
            return Verdict(1.0, "Accepted", measurements=measurements)
        outcome, feedback = _explain(
            tests, executions, passed, self.wrong_answers_shown
        )
        return Verdict(0.0, outcome, feedback, measurements)

    def _program(self, response: str, truncated: bool) -> str | None:
        """The code to run; None when there is none, or not all of it."""
        if self.extract == "whole":
            return None if truncated or not response.strip() else response
        return marked.longest_block(response)


def is_right(execution: Execution, test: Call | Stdin, expected: Any) -> bool:
    """Whether a test came out as expected."""
    if execution.status != "ok":
        return False
    if isinstance(test, Stdin):
        return same_words(execution.stdout, expected)
    return same_value(execution.result, expected)


def same_words(printed: str, expected: str) -> bool:
    """Equality of text up to the amount and kind of white space ("3.0" is not "3")."""
    return printed.split() == expected.split()


def same_value(result: Any, expected: Any) -> bool:
    """Equality of JSON values: 6.0 is 6, true is not 1, order in lists counts.

    Tuples have become lists, and the keys of objects strings, on the way here. Floats
    must be exactly equal.
    """
    if isinstance(result, bool) or isinstance(expected, bool):
        return result is expected
    if isinstance(result, list) and isinstance(expected, list):
        return len(result) == len(expected) and all(map(same_value, result, expected))
    if isinstance(result, dict) and isinstance(expected, dict):
        return result.keys() == expected.keys() and all(
            same_value(value, expected[key]) for key, value in result.items()
        )
    return result == expected


def cases(row: rows.Row, where: str) -> dict[str, Cases]:
    """A row's tests, as what a question is graded with.

    Raises:
      ValueError: if they are malformed; names file, row (from 1) and field.
    """
    tests = row.get("tests")
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except ValueError as error:
            raise ValueError(f"{where}, field tests: is not JSON: {error}") from error
    if not isinstance(tests, dict):
        raise ValueError(f"{where}, field tests: expected an object, got {tests!r:.80}")
    return {"tests": _tests(tests, f"{where}, field tests")}


def _tests(row: dict, where: str) -> Cases:
    inputs = rows.field(row, "inputs", list, where)
    outputs = rows.field(row, "outputs", list, where)
    kind = rows.field(row, "testtype", str, where)
    if kind not in ("stdin", "functional"):
        raise ValueError(
            f'{where}, field testtype: expected "stdin" or "functional", got {kind!r}'
        )
    if not inputs or len(inputs) != len(outputs):
        raise ValueError(
            f"{where}: {len(inputs)} inputs and {len(outputs)} outputs; there must be "
            "as many of one as of the other, and at least one"
        )
    limit = row.get("time_limit")
    if limit is not None and not (type(limit) in (int, float) and limit > 0):
        raise ValueError(
            f"{where}, field time_limit: expected seconds above 0, got {limit!r}"
        )
    if kind == "stdin":
        _check_text(row, "inputs", where)
        _check_text(row, "outputs", where)
        return Cases([Stdin(text) for text in inputs], outputs, inputs, limit)
    function = rows.field(row, "fn_name", str, where)
    calls = [
        Call(function, _arguments(value, f"{where}, field inputs[{index}]"))
        for index, value in enumerate(inputs)
    ]
    expected = [
        _expected(value, f"{where}, field outputs[{index}]")
        for index, value in enumerate(outputs)
    ]
    return Cases(calls, expected, [_show_arguments(call) for call in calls], limit)


def _check_text(row: dict, name: str, where: str) -> None:
    for index, text in enumerate(row[name]):
        if not isinstance(text, str):
            raise ValueError(
                f"{where}, field {name}[{index}]: expected text, got {text!r:.80}"
            )


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
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(
            f"{where}: {value!r:.80} is not JSON; write a string with its quotes, as "
            r'"\"text\""'
        ) from error


def _show_arguments(call: Call) -> str:
    if isinstance(call.arguments, Mapping):
        pairs = call.arguments.items()
        return "\n".join(f"{name} = {json.dumps(value)}" for name, value in pairs)
    return "\n".join(map(json.dumps, call.arguments))


def _explain(
    tests: Cases, executions: Sequence[Execution], passed: Sequence[bool], most: int
) -> tuple[str, str]:
    """Outcome and feedback of a failed program.

    The first runtime error speaks for all; then the first spent limit; then the
    shortest wrong answers.
    """
    for index, execution in enumerate(executions):
        if execution.status == "error":
            return "Runtime Error", wording.feedback(
                _runtime_error(execution, tests, index)
            )
    for index, execution in enumerate(executions):
        if execution.status in LIMIT_NAMES:
            name = LIMIT_NAMES[execution.status]
            return name, wording.feedback([name, *_last_input(tests, index)])
    failed = [index for index, right in enumerate(passed) if not right]

    def length(index):
        return len(tests.shown[index]) + len(_show_output(tests, executions, index))

    lines = []
    for index in sorted(failed, key=length)[:most]:
        lines += _wrong_answer(tests, executions, index)
    return "Wrong Answer", wording.feedback(lines)


def _runtime_error(execution: Execution, tests: Cases, index: int) -> list[str]:
    kind = wording.cut(execution.error_type)
    message = wording.cut(execution.error_message)
    lines = ["Runtime Error", f"{kind}: {message}" if message else kind]
    if execution.error_source:
        lines.append(wording.cut(execution.error_source))
    if execution.error_line is not None:
        function = wording.cut(execution.error_function or "<module>")
        lines.append(f"Line {execution.error_line} in {function} (Solution.py)")
    return lines + _last_input(tests, index)


def _last_input(tests: Cases, index: int) -> list[str]:
    return ["Last Executed Input", wording.cut(tests.shown[index])]


def _wrong_answer(
    tests: Cases, executions: Sequence[Execution], index: int
) -> list[str]:
    lines = [
        f"Test Case {index + 1}: Wrong Answer",
        "Input",
        wording.cut(tests.shown[index]),
    ]
    lines += ["Output", wording.cut(_show_output(tests, executions, index))]
    expected = tests.outputs[index]
    if isinstance(tests.inputs[index], Call):
        if executions[index].stdout.strip():
            lines += ["Standard Output", wording.cut(executions[index].stdout)]
        expected = json.dumps(expected)
    return [*lines, "Expected", wording.cut(expected), ""]


def _show_output(tests: Cases, executions: Sequence[Execution], index: int) -> str:
    if isinstance(tests.inputs[index], Stdin):
        return executions[index].stdout
    return json.dumps(executions[index].result)
