"""What an environment is: text in, text and a score out. No arrays, no model."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from sdpo_jax.questions.question import Question


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the environment says of one attempt.

    Args:
      score: in [0, 1]; the reward.
      outcome: the verdict in words, such as "Accepted" or "Wrong Answer".
      feedback: text for the self-teacher; empty when there is nothing to say.
      measurements: named numbers worth a curve, such as the share of tests passed.
    """

    score: float
    outcome: str
    feedback: str = ""
    measurements: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class GradedAttempt:
    """One attempt as text, and what the environment said of it.

    Args:
      question: what was asked.
      response: what the policy wrote, without special tokens.
      num_tokens: tokens it drew, the stop token included.
      truncated: whether the length limit cut it off.
      verdict: None when the grader itself failed, so that nothing is known.
    """

    question: Question
    response: str
    num_tokens: int
    truncated: bool
    verdict: Verdict | None

    @property
    def score(self) -> float:
        """The verdict's score; 0 when nothing is known."""
        return self.verdict.score if self.verdict else 0.0


class Episode(Protocol):
    """One attempt at one question; a single-turn task is an episode of one act."""

    def act(self, response: str, truncated: bool) -> Verdict | str:
        """Grade `response`, or reply with the next observation.

        A verdict ends the episode: there is no act after it.

        Args:
          response: what the policy wrote, without its end-of-text token.
          truncated: true when the response was cut off by the length limit.
        """


class Environment(Protocol):
    """A source of questions and the judge of their attempts.

    `Episode.act` is called from several threads at once.
    """

    def questions(self, split: str) -> Sequence[Question]:
        """The questions of "train", "validation" or "heldout", in a fixed order."""

    def start(self, question: Question) -> Episode:
        """Begin one attempt."""

    def close(self) -> None:
        """Release processes and files; called once, at the end of a run."""


class GraderFailure(RuntimeError):
    """The machinery that grades failed; nothing is known of the attempt."""
