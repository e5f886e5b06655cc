"""The names of METRICS.md, for the tests of what runs write."""

import pathlib
import re

PAGE = pathlib.Path(__file__).parents[1] / "METRICS.md"


def names():
    """Every name that a table of the page explains."""
    return re.findall(r"^\| `([^`]+)` \|", PAGE.read_text(), re.MULTILINE)


def unexplained(written):
    """Names of a line that no table explains."""
    pattern = "|".join(re.sub("<[^>]+>", r"[^/]+", re.escape(n)) for n in names())
    return [n for n in written if n != "step" and not re.fullmatch(pattern, n)]
