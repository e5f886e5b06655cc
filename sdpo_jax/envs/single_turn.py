"""Environments built from lists of questions and a function that grades responses."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

from sdpo_jax import thinking
from sdpo_jax.envs import feedback_text
from sdpo_jax.envs.base import Episode, Verdict
from sdpo_jax.questions.question import Question
from sdpo_jax.sandbox.pool import Sandbox

# (question, answer, truncated) -> verdict.
Grade = Callable[[Question, str, bool], Verdict]
_INCORRECT = "Incorrect Format"


class Listed:
    """An environment over fixed lists of questions.

    Args:
      questions: split -> its questions.
      start: begins an attempt at a question; called from several threads at once.
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
    """An environment whose every episode is one response, graded by one function.

    Args:
      questions: split -> its questions.
      grade: called from several threads at once.
      close: called at the end of a run.
      versions: what verdicts depend on in addition to the config; saved in the run
        folder.
      reads_reasoning: whether `grade` gets the response exactly as it was sampled,
        instead of its answer, which stands outside the reasoning.
    """

    def __init__(
        self,
        questions: Mapping[str, Sequence[Question]],
        grade: Grade,
        close: Callable[[], None] = lambda: None,
        versions: Mapping[str, str] | None = None,
        reads_reasoning: bool = False,
    ):
        start = lambda question: SingleTurnEpisode(grade, question, reads_reasoning)
        super().__init__(questions, start, close)
        self.versions = versions or {}
        self.reads_reasoning = reads_reasoning


def sandboxed(
    questions: Mapping[str, Sequence[Question]],
    grade: Callable[[Sandbox, Question, str, bool], Verdict],
    sandbox: Sandbox,
    reads_reasoning: bool = False,
) -> SingleTurn:
    """An environment that grades with a sandbox, and closes it when it is closed.

    Args:
      questions: split -> its questions.
      grade: called from several threads at once, with the sandbox first.
      sandbox: where responses or comparisons run.
      reads_reasoning: see `SingleTurn`.
    """
    versions = {"sandbox_tier": sandbox.tier}
    grade = functools.partial(grade, sandbox)
    return SingleTurn(questions, grade, sandbox.close, versions, reads_reasoning)


def unreadable(feedback: str, truncated: bool, measurement: str = "format") -> Verdict:
    """The verdict on a response without an answer, or with an incomplete one.

    Args:
      feedback: used unless the response was truncated, which has its own text.
      truncated: whether the length limit cut the response off.
      measurement: name of the measurement that is 0.
    """
    outcome = "Truncated" if truncated else _INCORRECT
    feedback = feedback_text.TRUNCATED if truncated else feedback
    return Verdict(0.0, outcome, feedback, {measurement: 0.0})


def on_answer(
    act: Callable[[str, bool], Verdict | str], response: str, truncated: bool
) -> Verdict | str:
    """The reply of `act` to the answer of a response: what is outside its reasoning.

    Where nothing is, and `act` says that it found no answer, the feedback says why.
    """
    answer = thinking.answer_of(response)
    reply = act(answer, truncated)
    if answer.strip() or not response.strip() or isinstance(reply, str):
        return reply
    if not reply.feedback.startswith((feedback_text.TRUNCATED, _INCORRECT)):
        return reply
    feedback = f"{reply.feedback}\n{feedback_text.ALL_REASONING}"
    return dataclasses.replace(reply, feedback=feedback)


@dataclasses.dataclass(frozen=True)
class SingleTurnEpisode:
    """One response to one question."""

    grade: Grade
    question: Question
    reads_reasoning: bool = False

    def act(self, response: str, truncated: bool) -> Verdict:
        """Grade the answer of `response`, or all of it if `reads_reasoning`."""
        grade = functools.partial(self.grade, self.question)
        if self.reads_reasoning:
            return grade(response, truncated)
        return on_answer(grade, response, truncated)
