"""Plays a complete episode of several acts and returns it as chat messages."""

import dataclasses
from collections.abc import Callable, Sequence

from sdpo_jax.envs.base import Environment, Verdict
from sdpo_jax.questions.question import Question


@dataclasses.dataclass(frozen=True)
class Turn:
    """One message of a chat; its role is "system", "user" or "assistant"."""

    role: str
    text: str


# The turns so far -> a response, and whether the length limit cut it off.
Policy = Callable[[Sequence[Turn]], tuple[str, bool]]


def play(
    environment: Environment, question: Question, policy: Policy, max_acts: int
) -> tuple[list[Turn], Verdict | None]:
    """The turns of one episode and its verdict; None if it needs over `max_acts`."""
    episode = environment.start(question)
    turns = [Turn("system", question.system)] if question.system else []
    turns.append(Turn("user", question.prompt))
    for _ in range(max_acts):
        response, truncated = policy(tuple(turns))
        turns.append(Turn("assistant", response))
        reply = episode.act(response, truncated)
        if not isinstance(reply, str):
            return turns, reply
        turns.append(Turn("user", reply))
    return turns, None
