"""Writes the feedback on a program that failed, worded as LeetCode's messages."""

import json
from collections.abc import Sequence

from sdpo_jax.envs import feedback_text
from sdpo_jax.envs.programming.asserts import Asserted
from sdpo_jax.envs.programming.cases import Cases
from sdpo_jax.sandbox.values import Execution, Stdin

INCORRECT_FORMAT = "Incorrect Format: Put your code inside a ```python ... ``` block."
LIMIT_NAMES = {
    "time_limit": "Time Limit Exceeded",
    "memory_limit": "Memory Limit Exceeded",
    "output_limit": "Output Limit Exceeded",
}
REVEALS = ("inputs", "outputs", "expected")


def explain(
    tests: Cases,
    executions: Sequence[Execution],
    passed: Sequence[bool],
    most: int,
    reveals: str,
) -> tuple[str, str]:
    """Outcome and feedback of a failed program.

    Reports the first runtime error only; without one, the first exceeded limit; without
    either, the shortest wrong answers.

    Args:
      tests: of the question.
      executions: one per test.
      passed: one per test.
      most: the largest number of wrong answers to report.
      reveals: "inputs", also the program's "outputs", or also what is "expected".
    """
    for index, execution in enumerate(executions):
        if execution.status == "error":
            return "Runtime Error", feedback_text.feedback(
                _runtime_error(execution, tests, index)
            )
    for index, execution in enumerate(executions):
        if execution.status in LIMIT_NAMES:
            name = LIMIT_NAMES[execution.status]
            return name, feedback_text.feedback([name, *_last_input(tests, index)])
    failed = [index for index, right in enumerate(passed) if not right]

    def length(index):
        return len(tests.shown[index]) + len(_show_output(tests, executions, index))

    lines = []
    for index in sorted(failed, key=length)[:most]:
        lines += _wrong_answer(tests, executions, index, reveals)
    return "Wrong Answer", feedback_text.feedback(lines)


def _runtime_error(execution: Execution, tests: Cases, index: int) -> list[str]:
    kind = feedback_text.cut(execution.error_type)
    message = feedback_text.cut(execution.error_message)
    lines = ["Runtime Error", f"{kind}: {message}" if message else kind]
    if execution.error_source:
        lines.append(feedback_text.cut(execution.error_source))
    if execution.error_line is not None:
        function = feedback_text.cut(execution.error_function or "<module>")
        lines.append(f"Line {execution.error_line} in {function} (Solution.py)")
    return lines + _last_input(tests, index)


def _last_input(tests: Cases, index: int) -> list[str]:
    return ["Last Executed Input", feedback_text.cut(tests.shown[index])]


def _wrong_answer(
    tests: Cases, executions: Sequence[Execution], index: int, reveals: str
) -> list[str]:
    lines = [
        f"Test Case {index + 1}: Wrong Answer",
        "Input",
        feedback_text.cut(tests.shown[index]),
    ]
    if reveals != "inputs":
        lines += ["Output", feedback_text.cut(_show_output(tests, executions, index))]
        printed = executions[index].stdout
        if printed.strip() and not isinstance(tests.inputs[index], Stdin):
            lines += ["Standard Output", feedback_text.cut(printed)]
    if reveals == "expected":
        lines += ["Expected", feedback_text.cut(_show_expected(tests, index))]
    return [*lines, ""]


def _show_output(tests: Cases, executions: Sequence[Execution], index: int) -> str:
    if isinstance(tests.inputs[index], Stdin):
        return executions[index].stdout
    return json.dumps(executions[index].result)


def _show_expected(tests: Cases, index: int) -> str:
    expected = tests.outputs[index]
    if isinstance(tests.inputs[index], Stdin) or isinstance(expected, Asserted):
        return str(expected)
    return json.dumps(expected)
