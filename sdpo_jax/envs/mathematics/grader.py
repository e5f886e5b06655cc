r"""Mathematics: a response ends in one boxed answer, compared as mathematics.

A row holds the answer as LaTeX or plain text:

  {"idx": 7, "prompt": "...", "answer": "\\frac{1}{2}"}

`grader="fixed"` takes the last `\boxed{}` of the response, or its last `<answer>` tag
where nothing is boxed. It accepts an answer that is exactly equal as mathematics
(numbers, fractions, percentages, expressions, equations, inequalities, intervals, sets,
tuples and matrices, with the answer's unit or without), or equal as text. An answer
that is not understood completely is compared as text only; see
`sdpo_jax.mathematics`.
`grader="official"` scores as the official code does: the box must begin within the last
100 characters, and hold the answer's exact text or what math-verify finds equal to it
when it is not marked as LaTeX.

Comparisons evaluate the answers, so both graders run them in the sandbox. A comparison
that exceeds the time limit counts as not equal.
"""

import decimal
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo_jax import mathematics
from sdpo_jax.envs import answer_extraction, feedback_text, installed_packages, task
from sdpo_jax.envs.base import Verdict
from sdpo_jax.envs.single_turn import SingleTurn, sandboxed, unreadable
from sdpo_jax.questions import boxed, rows, solutions
from sdpo_jax.questions.question import Question
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Call, Packages

INCORRECT_FORMAT = (
    "Incorrect Format: Give the answer in the format: \\boxed{your_answer}."
)
_OFFICIAL_TAIL = 100
_MAX_CHARS = 1000
_ASKED = re.compile(r"\\boxed|<answer>")
_OFFICIAL_BOX = re.compile(r"\\boxed\{")

_log = logging.getLogger(__name__)

# The program that each grader runs in the sandbox; defines `equal(answer, given)`.
_PACKAGE = "sdpo_jax.mathematics"
_FIXED = f"from {_PACKAGE}.equality import equal\n"
_OFFICIAL = """
from math_verify import parse, verify

def equal(answer, given):
    read = lambda text: parse(text, parsing_timeout=None)
    return verify(read(answer), read(given), timeout_seconds=None)
"""
# Files that compare, each after those that it imports. The sandbox has nothing of this
# project, so their sources are sent there.
_FILES = ("tokens", "trees", "expression", "values", "units", "names", "answers")
_FILES += ("results", "equality")
_LOAD = """
import sys, types
for name, source in {sources!r}.items():
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = []
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, module)
    exec(source, module.__dict__)
"""
# Warms up what is imported or built at first use, and silences math-verify's warnings
# about missing time limits.
_WARM_UP = """
import logging
logging.disable(logging.CRITICAL)
for pair in [
    ("\\\\frac{1}{2}", "0.5"), ("(1,2]", "(1, 2]"), ("a", "5 cm"), ("7", "7%"),
    ("\\\\{1,2\\\\}", "x^2+1"), ("x=1", "x \\\\le 2"), ("x+1", "\\\\sqrt{x}"),
    ("2\\\\sin x\\\\cos x", "\\\\sin 2x"), ("2x+y=1", "4x+2y=2"),
]:
    equal(*pair)
"""


def _sources() -> dict[str, str]:
    """Module -> source of all that compares, packages first."""
    folder = Path(mathematics.__file__).parent
    return {"sdpo_jax": "", _PACKAGE: ""} | {
        f"{_PACKAGE}.{name}": (folder / f"{name}.py").read_text() for name in _FILES
    }


def environment(
    files: Mapping[str, str | Path],
    grader: str = "fixed",
    make_sandbox: Callable[..., Sandbox] = Sandbox,
) -> SingleTurn:
    """An environment of questions with one mathematical answer.

    Args:
      files: split ("train", "validation" or "heldout") -> file of questions.
      grader: "fixed" or "official".
      make_sandbox: called with the packages that comparisons need.

    Raises:
      ValueError: if a row is malformed (names file, row and field), or math-verify is
        missing.
      SandboxUnavailable: if no sandbox works on this machine.
    """
    questions = rows.load_splits(files, data)
    _warn_of_format(questions)
    sandbox = make_sandbox(packages=packages(grader))
    grade = {"fixed": fixed, "official": official}[grader]
    return sandboxed(questions, grade, sandbox, grader == "official")


def _warn_of_format(questions: Mapping[str, Sequence[Question]]) -> None:
    """Log which splits ask for no mark that the graders read, as other projects' do."""
    for split, of_split in questions.items():
        texts = (question.system + question.prompt for question in of_split)
        if of_split and not any(_ASKED.search(text) for text in texts):
            _log.warning(
                "env.%s: no question asks for the answer in \\boxed{} or <answer>; "
                "responses without one are wrong, so add it to the prompts",
                split,
            )


def packages(grader: str) -> Packages:
    """The packages that the comparisons of a grader need."""
    modules = installed_packages.modules(
        "env.name=mathematics", "math-verify", "math-verify>=0.9,<0.10"
    )
    load = _LOAD.format(sources=_sources()) if grader == "fixed" else ""
    program = {"fixed": _FIXED, "official": _OFFICIAL}[grader]
    return Packages(modules, load + program + _WARM_UP)


def data(row: rows.Row, where: str) -> dict[str, Any]:
    """The right answer; without one, that of TRL's column "solution"."""
    answer, solution = row.get("answer"), row.get("solution")
    if answer is None and isinstance(solution, str) and solution.strip():
        return {"answer": solutions.answer_of(solution, f"{where}, field solution")}
    is_number = isinstance(answer, int | float | decimal.Decimal)
    if is_number and math.isfinite(answer) and not isinstance(answer, bool):
        # Without an exponent: `str` alone writes 0.0000001 as 1e-07.
        answer = f"{decimal.Decimal(str(answer)):f}"
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(
            f"{where}, field answer: expected text or a number, "
            f"{rows.got(row, 'answer')}; give the answer or leave out the row"
        )
    solutions.check_is_answer(answer, f"{where}, field answer")
    return {"answer": answer}


def fixed(
    sandbox: Sandbox, question: Question, response: str, truncated: bool
) -> Verdict:
    """Grade by the last answer that the response marks.

    Raises:
      GraderFailure: if the sandbox failed twice.
    """
    given = boxed.last_box(response)
    if given is None:
        given = answer_extraction.last_tag(response, closed=truncated)
    if given is None or not given.strip():
        return unreadable(INCORRECT_FORMAT, truncated)
    answer = question.data["answer"]
    if len(given) <= _MAX_CHARS and _equal(sandbox, _FIXED, answer, given):
        return Verdict(1.0, "Accepted", measurements={"format": 1.0})
    line = f"Wrong Answer: {feedback_text.cut(given)} is not the right answer."
    return Verdict(0.0, "Wrong Answer", feedback_text.feedback([line]), {"format": 1.0})


def _equal(sandbox: Sandbox, program: str, answer: str, given: str) -> bool:
    (execution,) = sandbox.run(program, [Call("equal", [answer, given])])
    return execution.status == "ok" and execution.result is True


def official(
    sandbox: Sandbox, question: Question, response: str, truncated: bool
) -> Verdict:
    """Score and feedback of the official code.

    Raises:
      GraderFailure: if the sandbox failed twice.
    """
    answer = question.data["answer"]
    given = boxed.last_box(response[-_OFFICIAL_TAIL:], _OFFICIAL_BOX) or ""
    if given == answer or (given and _equal(sandbox, _OFFICIAL, answer, given)):
        return Verdict(1.0, "Accepted")
    if truncated:
        feedback = "Your response was truncated because it exceeded the maximum length."
        return Verdict(0.0, "Truncated", feedback)
    if not given:
        feedback = (
            "Your answer had the wrong format. The solution must be given in the "
            "format: \\boxed{your_answer}."
        )
        return Verdict(0.0, "Incorrect Format", feedback)
    return Verdict(0.0, "Wrong Answer")


TASK = task.Task(
    lambda env: environment(task.files(env), env.grader, task.sandboxes(env)),
    graders=("fixed", "official"),
)
