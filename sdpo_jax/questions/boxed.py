r"""The answer in a `\boxed{}`, as mathematical texts mark theirs."""

import re

BOX = re.compile(r"\\boxed\s*\{")


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
