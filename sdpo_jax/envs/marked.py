"""Where a response marks its answer: an answer tag, a box, a block of code."""

import re
import string

BOX = re.compile(r"\\boxed\s*\{")
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


def last_box(text: str, box: re.Pattern = BOX) -> str | None:
    r"""What the last `\boxed{}` holds; None if there is none, or it never closes."""
    boxes = list(box.finditer(text))
    if not boxes:
        return None
    depth, start = 0, boxes[-1].end()
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth < 0:
            return text[start:place]
    return None


def longest_block(response: str) -> str | None:
    """The longest fenced block of code; None if there is none, or it never closes."""
    return max(_FENCED.findall(response), key=len, default=None)
