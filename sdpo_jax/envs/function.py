"""A custom task: rows of questions, and your Python function that scores responses.

  # my_task.py
  def grade(row, response):
      if row["answer"] in response:
          return 1.0
      return 0.0, "The answer is a city."

and `env.name=function`, `env.function.grade=my_task:grade`. The function gets the
complete row of the file, and returns a score in [0, 1], or a score and a feedback, or a
`base.Verdict`. A score is any real number, also a scalar of NumPy, JAX or torch, a
Fraction or a Decimal. The response is only what stands outside the reasoning, if there
is any. The function runs in the trainer, in several threads at once: it must never
execute what a model wrote.
"""

import functools
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from sdpo_jax.envs import feedback_text, task
from sdpo_jax.envs.base import GraderFailure, Verdict, real_number
from sdpo_jax.envs.single_turn import SingleTurn
from sdpo_jax.questions import rows
from sdpo_jax.questions.question import Question


def environment(files: Mapping[str, str | Path], name: str) -> SingleTurn:
    """An environment graded by the function `name`, "module:function".

    Raises:
      ValueError: if there is no such function, or a row is malformed.
    """
    grade = functools.partial(_grade, _import_function(name))
    return SingleTurn(rows.load_splits(files, lambda row, where: {"row": row}), grade)


def _import_function(name: str) -> Callable[[rows.Row, str], Any]:
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"env.function.grade={name!r}: expected module:function")
    try:
        grade = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ValueError(
            f"env.function.grade={name}: cannot import {module} ({error}); is its "
            "folder on PYTHONPATH?"
        ) from error
    if not callable(grade):
        raise ValueError(
            f"env.function.grade={name}: {module} has no function {function}"
        )
    return grade


def _grade(
    grade: Callable[[rows.Row, str], Any],
    question: Question,
    response: str,
    truncated: bool,
) -> Verdict:
    try:
        result = grade(question.data["row"], response)
    except Exception as error:
        raise GraderFailure(
            f"env.function.grade raised {type(error).__name__}"
        ) from error
    if isinstance(result, Verdict):
        return result
    pair = result if isinstance(result, tuple) else (result, "")
    score = real_number(pair[0]) if len(pair) == 2 else None
    if score is None or not isinstance(pair[1], str):
        raise GraderFailure(
            "env.function.grade must return a number, a number and a text, or a "
            f"Verdict; it returned {result!r:.80}"
        )
    outcome = "Accepted" if score == 1 else "Wrong Answer"
    return Verdict(score, outcome, feedback_text.feedback([pair[1]]))


def _check(env: ConfigDict) -> None:
    if not env.function.grade:
        raise ValueError(
            "env.function.grade is empty: env.name=function needs module:name of the "
            "function that grades"
        )


TASK = task.Task(
    lambda env: environment(task.files(env), env.function.grade), check=_check
)
