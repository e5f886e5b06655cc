r"""Finds the answer in a `\boxed{}`, the usual mark in mathematical texts."""

import re

BOX = re.compile(r"\\boxed\s*\{")


def last_box(text: str, box: re.Pattern = BOX) -> str | None:
    r"""The text in the last `\boxed{}`; None if there is none or it never closes."""
    boxes = list(box.finditer(text))
    if not boxes:
        return None
    depth, start = 0, boxes[-1].end()
    # A regular expression cannot match nested braces, so they are counted.
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth < 0:
            return text[start:end]
    return None
