"""The contract of an environment: text in, text and a score out; no arrays or model."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sdpo_jax.questions.question import Question


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The result of grading one attempt.

    Args:
      score: in [0, 1]; the reward.
      outcome: a short label, such as "Accepted" or "Wrong Answer".
      feedback: text for the self-teacher; empty for none.
      measurements: named numbers to log, such as the share of tests passed.
    """

    score: float
    outcome: str
    feedback: str = ""
    measurements: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class GradedAttempt:
    """One attempt as text, with its verdict.

    Args:
      question: the question that was attempted.
      response: what the policy wrote, without special tokens.
      num_tokens: number of sampled tokens, including the stop token.
      truncated: whether the length limit cut the response off.
      verdict: None when the grader itself failed.
      opening: what the chat template wrote before it: `<think>`, where the template
        itself opens the reasoning, or nothing.
    """

    question: Question
    response: str
    num_tokens: int
    truncated: bool
    verdict: Verdict | None
    opening: str = ""

    @property
    def turn(self) -> str:
        """The response as part of its chat, for `thinking.answer_of`."""
        return self.opening + self.response

    @property
    def score(self) -> float:
        """The verdict's score; 0 when there is no verdict."""
        return self.verdict.score if self.verdict else 0.0


class Episode(Protocol):
    """One attempt at one question; a single-turn task is an episode of one act."""

    def act(self, response: str, truncated: bool) -> Verdict | str:
        """Grade `response`, or reply with the next observation.

        A verdict ends the episode; `act` is not called after it.

        Args:
          response: what the policy wrote, without its end-of-text token. Where the
            chat template opens the reasoning, its `<think>` stands in front, so that
            `thinking.answer_of` finds the answer; not if the environment has an
            attribute `reads_reasoning` that is true.
          truncated: whether the length limit cut the response off.
        """


class Environment(Protocol):
    """Questions, and the grader of attempts at them.

    `Episode.act` is called from several threads at once.
    """

    def questions(self, split: str) -> Sequence[Question]:
        """The questions of a split, in a fixed order.

        Args:
          split: "train", "validation" or "heldout"; only the last may be empty.
        """

    def start(self, question: Question) -> Episode:
        """Begin one attempt."""

    def close(self) -> None:
        """Release processes and files; called once, at the end of a run."""


class GraderFailure(RuntimeError):
    """The grader itself failed, so the attempt has no score."""


def real_number(value: Any) -> float | None:
    """A finite real number of any type as a float; None for anything else.

    Also of NumPy, JAX and torch: a scalar, or an array that holds a single number.
    """
    try:
        # `item` raises for an array of several numbers.
        value = value.item() if hasattr(value, "item") else value
        # Text has no `__float__`, though `float` would read it.
        number = float(value) if hasattr(value, "__float__") else math.nan
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) else None
