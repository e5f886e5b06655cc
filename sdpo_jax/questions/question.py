"""A question of any task: its text, and the data that grade an attempt at it."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Question:
    """One question as the policy first sees it.

    Args:
      uid: identifier, unique in its environment and the same in every run.
      prompt: text of the user message.
      system: text of the system message; empty for none.
      data: what the environment needs to grade an attempt; never shown to the policy.
    """

    uid: str
    prompt: str
    system: str = ""
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
