"""Feedback for the self-teacher: shared wording, length limits and sanitising."""

import re
import unicodedata
from collections.abc import Sequence

FIELD_CHARS = 250
FIELD_LINES = 8
FEEDBACK_CHARS = 2000

TRUNCATED = (
    "Truncated Attempt: Your previous response was too long and was cut off before it "
    "ended. Try again with a shorter response."
)
ALL_REASONING = (
    "No answer stands outside the reasoning of your previous response; the reasoning "
    "itself is not graded. Finish it, then give the answer."
)

_KEPT_CONTROLS = "\n\t"
_ROLE_TAGS = re.compile(
    r"<(?=/?(?:s|pad|unk|bos|eos|think|tool_call|tool_response|tools|start_of_turn"
    r"|end_of_turn|start_of_image|image)>)"
)


def sanitise(text: str) -> str:
    """`text` without what could affect a terminal, a reader or a chat template.

    Removes control, formatting (bidirectional, zero-width) and unpaired surrogate
    characters, and breaks special tokens such as `<|im_end|>` by a space.
    """
    text = text.replace("\u2028", "\n").replace("\u2029", "\n")
    text = "".join(
        character
        for character in text
        if character in _KEPT_CONTROLS
        or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn")
    )
    text = re.sub(r"<(?=[|\uff5c])", "< ", text)
    text = re.sub(r"(?<=[|\uff5c])>", " >", text)
    text = re.sub(r"\[(?=/?INST\])", "[ ", text)
    return _ROLE_TAGS.sub("< ", text)


def cut(text: str) -> str:
    """One field of a feedback: `text` cut to FIELD_LINES lines and FIELD_CHARS."""
    lines = text[: 4 * FIELD_CHARS].strip().split("\n")
    text = "\n".join(lines[:FIELD_LINES])
    shortened = len(lines) > FIELD_LINES or len(text) > FIELD_CHARS
    return text[:FIELD_CHARS] + "..." if shortened else text


def feedback(lines: Sequence[str]) -> str:
    """The feedback made of `lines`: sanitised, at most FEEDBACK_CHARS long."""
    text = "\n".join(lines).strip()[:FEEDBACK_CHARS]
    return sanitise(text)[:FEEDBACK_CHARS]
