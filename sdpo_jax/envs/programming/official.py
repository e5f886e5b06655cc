"""Scores programs as the official code scores honest ones, for comparison.

The same: the program is the longest block of fenced code, be it a draft or an example,
and a fence is what `_BLOCK` says. All tests of a row must pass. Standard output must be
the same text, up to white space around it and spaces for line ends. A call must return
the same JSON, so 6.0 is not 6 and a tuple is its list. The text of a call's arguments
is split at all white space, so a list written with spaces fails every program. If the
named function is missing, the first function is called. A program that exits fails,
even with the right output. So does a program with `class Solution`, objects that cannot
be pickled, named tuples, missing names (`divmod`, `super`, `type`, `ValueError`, ...)
or modules (`copy`, `threading`, ...), or `sys.stdin.buffer`. `official_driver` holds
these rules.

Different: modules that the official list allows but its sandbox breaks;
sortedcontainers, and numpy where programs may not import it; `debug_print`. Time is
processor time, not wall-clock time while all tests run at once. Asserts are compared
outside the program. Feedback is worded as in the fixed grader. Programs that can forge
their results there fail here.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from sdpo_jax.envs.programming import cases
from sdpo_jax.envs.programming.asserts import Asserted
from sdpo_jax.envs.programming.cases import Cases
from sdpo_jax.questions import rows
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Call, Execution, Stdin

_DRIVER = Path(__file__).with_name("official_driver.py").read_text()
_TIME_LIMIT_S = 1.0  # For rows without a time limit.
_EXTRA_TIME_S = 1.0  # Added to every time limit.
_BLOCK = re.compile(r"```\w*\n(.*?)```", re.DOTALL)


def read_cases(row: rows.Row, where: str) -> dict[str, Cases]:
    """A row's tests, with unparsed inputs of functions.

    Raises:
      ValueError: if they are malformed; names file, row (from 1) and field.
    """
    return cases.read_cases(row, where, raw=True)


def program(response: str, _: Cases) -> str | None:
    """The longest block of fenced code, of any language; None if there is none."""
    return max(_BLOCK.findall(response), key=len, default=None)


def run(sandbox: Sandbox, program: str, tests: Cases) -> list[Execution]:
    """The execution of a program on every test, under the official rules."""
    source = program + tests.appended
    calls = [
        Call("script", [source, test.text])
        if isinstance(test, Stdin)
        else Call("call", [source, test.function, test.arguments])
        for test in tests.inputs
    ]
    cpu_s = (tests.time_limit or _TIME_LIMIT_S) + _EXTRA_TIME_S
    executions = sandbox.run(_DRIVER, calls, cpu_s=cpu_s)
    return [
        _of_program(execution, program, isinstance(test, Stdin))
        for execution, test in zip(executions, tests.inputs, strict=True)
    ]


def _of_program(execution: Execution, program: str, is_script: bool) -> Execution:
    """The driver's execution as if the program had run without the driver.

    The result is untrusted: the program may have forged it in the driver's process.
    """
    if execution.status == "error":
        return _error(execution, execution.error_type, execution.error_message)
    if execution.status != "ok":
        return execution
    match execution.result:
        case {"output": str(text)} if is_script:
            return dataclasses.replace(execution, result=None, stdout=text)
        case {"output": value} if not is_script:
            return dataclasses.replace(execution, result=value)
        case {"error": [str(kind), str(message), int(line), str(function)]}:
            lines = program.split("\n")
            if 0 < line <= len(lines):
                where = {"error_line": line, "error_function": function}
                source = lines[line - 1].strip()
                return _error(execution, kind, message, error_source=source, **where)
            return _error(execution, kind, message)
        case {"error": [str(kind), str(message), *_]}:
            return _error(execution, kind, message)
    return _error(execution, "ValueError", "the result is not JSON")


def _error(execution: Execution, kind: str, message: str, **where: Any) -> Execution:
    return Execution(
        "error",
        error_type=kind,
        error_message=message,
        cpu_s=execution.cpu_s,
        **where,
    )


def is_right(execution: Execution, test: Call | Stdin, expected: Any) -> bool:
    """Whether the official code accepts the result of a test."""
    if execution.status != "ok":
        return False
    if isinstance(test, Stdin):
        return _one_line(execution.stdout) == _one_line(_without_dash(expected))
    if isinstance(expected, Asserted):
        return expected.holds(execution.result)
    return _canonical(execution.result) == _canonical(expected)


def _without_dash(expected: str) -> str:
    """Expected text without a dash at its end."""
    expected = expected.strip()
    return expected.rpartition("-")[0].rstrip() if expected.endswith("-") else expected


def _one_line(text: str) -> str:
    return text.strip().replace("\n", " ").replace("\r", "")


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
