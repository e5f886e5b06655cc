"""Where a response marks its answer: an answer tag, a box, a block of code."""

import re
import string

_OPEN, _CLOSE = "<answer>", "</answer>"
# Keeps every character in its place, as `str.lower` does not.
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_FENCED = re.compile(r"```\w*\n(.*?)```", re.DOTALL)


def last_tag(response: str, closed: bool = False) -> str | None:
    """What the last answer tag holds; one that is opened only counts without others.

    Args:
      response: what the policy wrote.
      closed: do without tags that are opened only, as the last one of a response
        that was cut off.
    """
    lower = response.translate(_LOWER)
    end = lower.rfind(_CLOSE)
    start = lower.rfind(_OPEN, 0, end) if end >= 0 else -1
    if start < 0 and not closed:
        start, end = lower.rfind(_OPEN), len(response)
    return response[start + len(_OPEN) : end] if start >= 0 else None


def longest_block(response: str) -> str | None:
    """The longest fenced block of code; None if there is none, or it never closes."""
    return max(_FENCED.findall(response), key=len, default=None)
