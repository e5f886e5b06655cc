"""What a question is, whatever its task: text, and what grades an attempt at it."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Question:
    """One task as the policy first sees it.

    Args:
      uid: name of the question, unique in its environment and stable over runs.
      prompt: the user turn.
      system: the system turn; empty for none.
      data: what the environment needs to grade an attempt; never shown.
    """

    uid: str
    prompt: str
    system: str = ""
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
