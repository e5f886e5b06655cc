"""Extracts the answer that a response marks with a tag."""

import string

_OPEN, _CLOSE = "<answer>", "</answer>"
# Keeps every character's position; `str.lower` can change the length of a text.
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def last_tag(response: str, closed: bool = False) -> str | None:
    """The content of the last answer tag; None without one.

    An unclosed tag counts only where no tag is closed.

    Args:
      response: what the policy wrote.
      closed: ignore unclosed tags, as the last one of a truncated response may be.
    """
    lower = response.translate(_LOWER)
    end = lower.rfind(_CLOSE)
    start = lower.rfind(_OPEN, 0, end) if end >= 0 else -1
    if start < 0 and not closed:
        start, end = lower.rfind(_OPEN), len(response)
    return response[start + len(_OPEN) : end] if start >= 0 else None
