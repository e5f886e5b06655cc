"""Environments made of lists of questions, and of a function that grades or begins."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from sdpo_jax.envs import feedback_text
from sdpo_jax.envs.base import Episode, Verdict
from sdpo_jax.questions.question import Question
from sdpo_jax.sandbox.pool import Sandbox

# (question, response, truncated) -> verdict.
Grade = Callable[[Question, str, bool], Verdict]


class Listed:
    """Questions, and how an attempt at one begins.

    Args:
      questions: split -> its questions.
      start: called from several threads at once.
      close: called at the end of a run.
    """

    def __init__(
        self,
        questions: Mapping[str, Sequence[Question]],
        start: Callable[[Question], Episode],
        close: Callable[[], None] = lambda: None,
    ):
        self._questions = questions
        self.start = start
        self.close = close

    def questions(self, split: str) -> Sequence[Question]:
        """The questions of `split`, in the order of its file."""
        if split not in self._questions:
            raise ValueError(
                f"no questions for split {split!r}; there are files for "
                f"{sorted(self._questions)}"
            )
        return self._questions[split]


class SingleTurn(Listed):
    """Questions and one function that grades every response to them.

    Args:
      questions: split -> its questions.
      grade: called from several threads at once.
      close: called at the end of a run.
      versions: what verdicts depend on beside the config; kept in the run folder.
    """

    def __init__(
        self,
        questions: Mapping[str, Sequence[Question]],
        grade: Grade,
        close: Callable[[], None] = lambda: None,
        versions: Mapping[str, str] | None = None,
    ):
        super().__init__(questions, functools.partial(SingleTurnEpisode, grade), close)
        self.versions = versions or {}


def sandboxed(
    questions: Mapping[str, Sequence[Question]],
    grade: Callable[[Sandbox, Question, str, bool], Verdict],
    sandbox: Sandbox,
) -> SingleTurn:
    """Questions that are graded with a sandbox, which is closed with them.

    Args:
      questions: split -> its questions.
      grade: called from several threads at once.
      sandbox: its first argument.
    """
    versions = {"sandbox_tier": sandbox.tier}
    return SingleTurn(
        questions, functools.partial(grade, sandbox), sandbox.close, versions
    )


def unreadable(told: str, truncated: bool, measurement: str = "format") -> Verdict:
    """The verdict on a response that holds no answer, or no whole one.

    Args:
      told: the feedback, unless the response was cut off.
      truncated: whether it was.
      measurement: what is 0 with it.
    """
    outcome = "Truncated" if truncated else "Incorrect Format"
    told = feedback_text.TRUNCATED if truncated else told
    return Verdict(0.0, outcome, told, {measurement: 0.0})


@dataclasses.dataclass(frozen=True)
class SingleTurnEpisode:
    """One response to one question."""

    grade: Grade
    question: Question

    def act(self, response: str, truncated: bool) -> Verdict:
        """Grade `response`."""
        return self.grade(self.question, response, truncated)
