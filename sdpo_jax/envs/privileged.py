r"""Reference solutions as feedback: the self-teacher reads how the question is solved.

A row holds a worked solution, and optionally the answer of a mathematical question:

  {"uid": "a", "prompt": "...", "solution": "...", "answer": "\\frac{1}{2}"}

Every attempt, solved or not, gets the complete solution as its feedback, as in
on-policy self-distillation (OPSD, arXiv:2601.18734). Only `reprompt.max_length` cuts
it, in its middle and with a mark. Attempts are scored as in `mathematics`; without an
answer the score is always 0 and means nothing. Questions that are not trained on need
only an answer.

To show the teacher the solution and nothing else, set `reprompt.show_feedback="always"`
and `reprompt.demonstration_from="nobody"`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdpo_jax.envs import feedback_text, task
from sdpo_jax.envs.base import Verdict
from sdpo_jax.envs.mathematics import grader as mathematics
from sdpo_jax.envs.single_turn import SingleTurn, sandboxed
from sdpo_jax.questions import rows
from sdpo_jax.questions.question import Question
from sdpo_jax.sandbox.pool import Sandbox


def environment(
    files: Mapping[str, str | Path],
    make_sandbox: Callable[..., Sandbox] = Sandbox,
) -> SingleTurn:
    """An environment of questions with a reference solution.

    Args:
      files: split ("train", "validation" or "heldout") -> file of questions.
      make_sandbox: called with the packages that comparisons of answers need, only if
        a row has an answer.

    Raises:
      ValueError: if a row is malformed (names file, row and field), or math-verify is
        needed and missing.
      SandboxUnavailable: if no sandbox works on this machine.
    """
    questions = rows.load_splits(files, data)
    train = questions.get("train", ())
    if unsolved := [q.uid for q in train if not q.data["solution"]]:
        raise ValueError(
            f"env.train: question {unsolved[0]} has no solution ({len(unsolved)} in "
            "all); every training question needs one"
        )
    if not any("answer" in q.data for split in questions.values() for q in split):
        return SingleTurn(questions, functools.partial(grade, None))
    sandbox = make_sandbox(packages=mathematics.packages("fixed"))
    return sandboxed(questions, grade, sandbox)


def data(row: rows.Row, where: str) -> dict[str, Any]:
    """The reference solution, the answer, or both; raises ValueError without either."""
    answer = {} if row.get("answer") is None else mathematics.data(row, where)
    if answer and row.get("solution") is None:
        return {"solution": ""} | answer
    solution = feedback_text.sanitise(rows.field(row, "solution", str, where)).strip()
    if not solution:
        raise ValueError(f"{where}, field solution: is empty")
    return {"solution": solution} | answer


def grade(
    sandbox: Sandbox | None, question: Question, response: str, truncated: bool
) -> Verdict:
    """Score by the answer, if there is one; the feedback is the reference solution.

    Raises:
      GraderFailure: if the sandbox failed twice.
    """
    verdict = Verdict(0.0, "Not Graded")
    if "answer" in question.data:
        verdict = mathematics.fixed(sandbox, question, response, truncated)
    return dataclasses.replace(verdict, feedback=question.data["solution"])


TASK = task.Task(lambda env: environment(task.files(env), task.sandboxes(env)))
