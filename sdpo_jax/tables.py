"""Tables of text, for the end of a command."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is words, to the left, and the others are numbers."""
    first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([label.ljust(first), *map(str.rjust, cells, widths)])
        for label, *cells in rows
    )


def number(value: float | None) -> str:
    """A number of a table; a dash where it was not measured."""
    return "-" if value is None else f"{value:.4g}"
