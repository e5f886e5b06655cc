"""Where a response marks its answer: the last answer tag, the last box."""

import re

BOX = re.compile(r"\\boxed\s*\{")
_OPEN, _CLOSE = "<answer>", "</answer>"


def last_tag(response: str) -> str | None:
    """What the last answer tag holds; one that is opened only counts without others."""
    lower = response.lower()
    end = lower.rfind(_CLOSE)
    start = lower.rfind(_OPEN, 0, end) if end >= 0 else -1
    if start < 0:
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
