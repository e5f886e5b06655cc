r"""Programming tasks: a response holds a program, which is graded by hidden tests.

A file of questions is JSON lines, one JSON list or Parquet, of rows like those of the
official SDPO repository:

  {"idx": 7, "prompt": "...", "system": "...", "tests": {
      "inputs": ["1 2\n", ...], "outputs": ["3\n", ...], "testtype": "stdin"}}

See `cases` for the forms of `tests`, and `livecodebench` for LiveCodeBench's own rows.

`grader="fixed"` takes the program from the block that `code_blocks.program` finds, and
runs it as LeetCode does: it defines `class Solution` or a function, commonly imported
names need no import, calls may be 50,000 deep, and integers as long as the time limit
allows (50,000 digits in a call or result). It accepts what LiveCodeBench's checker
accepts, except results that only look right:

- printed text is compared line by line and word by word. Where both lines hold only
  numbers, these are compared by exact value: "3.0" is "3", "1e3" is "1000". "0101" is
  not "101", "YES" is not "Yes", and no tolerance is added to the expected digits;
- values are compared as JSON, exactly: 6.0 is 6, true is not 1, a tuple is its list,
  the keys of an object are strings, NaN equals nothing, and a value without JSON (a
  set, a generator) is an error;
- asserts are Python's; see `asserts`.

`grader="official"` scores honest programs as the official code does; `official` lists
the differences. Both compare results in the trainer: expected results are never sent to
the sandbox.
"""

import dataclasses
import decimal
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sdpo_jax.envs import code_blocks, task
from sdpo_jax.envs.base import Verdict
from sdpo_jax.envs.programming import cases, official
from sdpo_jax.envs.programming.asserts import Asserted
from sdpo_jax.envs.programming.cases import Cases
from sdpo_jax.envs.programming.explanation import INCORRECT_FORMAT, REVEALS, explain
from sdpo_jax.envs.single_turn import SingleTurn, unreadable
from sdpo_jax.questions import rows
from sdpo_jax.questions.question import Question
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Call, Execution, Packages, Stdin

# LeetCode and LiveCodeBench import these for every program. As builtins they shift no
# line numbers, and a test's call of a missing function never finds one of them.
PACKAGES = Packages(
    ("numpy",),
    prepare="""
import builtins, importlib, sys
names = {}
STARRED = ("typing", "collections", "heapq", "bisect", "itertools", "functools",
           "string", "math", "copy")
for name in STARRED:
    module = importlib.import_module(name)
    public = getattr(module, "__all__", None) or vars(module)
    names |= {key: getattr(module, key) for key in public if key[0] != "_"}
for name in (*STARRED, "operator", "random", "statistics", "datetime", "re", "json",
             "io", "sys"):
    names[name] = importlib.import_module(name)
vars(builtins).update({**names, **vars(builtins)})
sys.setrecursionlimit(50_000)
""",
)

# Digits with a leading zero are text, not a number: a string of bits, a time.
_NUMBER = re.compile(
    r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?"
)


class Programming(SingleTurn):
    """An environment whose responses hold a Python program in a fenced block.

    Args:
      files: split ("train", "validation" or "heldout") -> file of questions.
      sandbox: where programs run, best with `PACKAGES`; closed with the environment.
      grader: "fixed" or "official".
      wrong_answers_shown: the largest number of failed tests in one feedback.
      reveals: what the feedback shows of them: "inputs", also the program's "outputs",
        or also what is "expected".

    Raises:
      ValueError: if a row is malformed; names file, row and field.
    """

    def __init__(
        self,
        files: Mapping[str, str | Path],
        sandbox: Sandbox,
        *,
        grader: str = "fixed",
        wrong_answers_shown: int = 2,
        reveals: str = "expected",
    ):
        _check_choice("grader", grader, ("fixed", "official"))
        _check_choice("reveals", reveals, REVEALS)
        if wrong_answers_shown < 0:
            raise ValueError(
                f"wrong_answers_shown must not be negative, got {wrong_answers_shown}"
            )
        self.sandbox = sandbox
        self.wrong_answers_shown = wrong_answers_shown
        self.reveals = reveals
        is_official = grader == "official"
        self._program = official.program if is_official else program_of
        self._run = official.run if is_official else run
        self._is_right = official.is_right if is_official else is_right
        read_cases = (official if is_official else cases).read_cases
        super().__init__(
            rows.load_splits(files, read_cases),
            self._grade,
            sandbox.close,
            {"sandbox_tier": sandbox.tier},
            is_official,
        )

    def _grade(self, question: Question, response: str, truncated: bool) -> Verdict:
        """Score 1 if the program in `response` passes every test, else 0.

        Raises:
          GraderFailure: if the sandbox failed twice.
        """
        tests = question.data["tests"]
        program = self._program(response, tests)
        if program is None:
            return unreadable(INCORRECT_FORMAT, truncated, "tests_passed")
        executions = self._run(self.sandbox, program, tests)
        passed = [
            self._is_right(execution, test, expected)
            for execution, test, expected in zip(
                executions, tests.inputs, tests.outputs, strict=True
            )
        ]
        # No timings: they would differ when a run is repeated.
        measurements = {"tests_passed": sum(passed) / len(passed)}
        if all(passed):
            return Verdict(1.0, "Accepted", measurements=measurements)
        outcome, feedback = explain(
            tests, executions, passed, self.wrong_answers_shown, self.reveals
        )
        return Verdict(0.0, outcome, feedback, measurements)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        allowed = " or ".join(f'"{choice}"' for choice in choices)
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def program_of(response: str, tests: Cases) -> str | None:
    """The program in a response; None if there is none."""
    return code_blocks.program(response, tests.functions)


def run(sandbox: Sandbox, program: str, tests: Cases) -> list[Execution]:
    """The execution of a program on every test."""
    executions = sandbox.run(
        program + tests.appended, tests.inputs, cpu_s=tests.time_limit
    )
    last = program.count("\n") + 1
    return [_within(execution, last) for execution in executions]


def _within(execution: Execution, last: int) -> Execution:
    """`execution` without the place of an error outside the program's own lines."""
    if execution.error_line is None or execution.error_line <= last:
        return execution
    return dataclasses.replace(
        execution, error_line=None, error_function="", error_source=""
    )


def is_right(execution: Execution, test: Call | Stdin, expected: Any) -> bool:
    """Whether the result of a test is the expected one."""
    if execution.status != "ok":
        return False
    if isinstance(test, Stdin):
        return same_text(execution.stdout, expected)
    if isinstance(expected, Asserted):
        return expected.holds(execution.result)
    return same_value(execution.result, expected)


def same_text(printed: str, expected: str) -> bool:
    """Whether texts are equal up to white space within lines and around the text."""
    lines, expected_lines = (text.strip().split("\n") for text in (printed, expected))
    return len(lines) == len(expected_lines) and all(
        map(_same_line, lines, expected_lines)
    )


def _same_line(printed: str, expected: str) -> bool:
    words, expected_words = printed.split(), expected.split()
    if words == expected_words or len(words) != len(expected_words):
        return words == expected_words
    return all(map(_NUMBER.fullmatch, words + expected_words)) and all(
        decimal.Decimal(word) == decimal.Decimal(other)
        for word, other in zip(words, expected_words, strict=True)
    )


def same_value(result: Any, expected: Any) -> bool:
    """Whether JSON values are equal: 6.0 is 6, true is not 1, order in lists matters.

    JSON has already turned tuples into lists and the keys of objects into strings.
    Floats must be exactly equal.
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


def _environment(env: ConfigDict) -> Programming:
    own = env.programming
    packages = dataclasses.replace(PACKAGES, modules=own.packages)
    return Programming(
        task.files(env),
        task.sandboxes(env)(process_per=own.process_per, packages=packages),
        grader=env.grader,
        wrong_answers_shown=own.wrong_answers_shown,
        reveals=own.feedback_reveals,
    )


TASK = task.Task(_environment, graders=("fixed", "official"))
