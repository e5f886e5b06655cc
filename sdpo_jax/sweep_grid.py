"""The grid of a sweep: its axes, the names of its cells, and the table of results."""

import collections
import itertools
import math
import re
import statistics
import urllib.parse
from collections.abc import Mapping, Sequence

# A comma outside double quotes and brackets: before an even number of quotes, and with
# no bracket that closes before one opens.
_COMMA = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)(?![^(\[]*[)\]])')
_COLUMNS = ("setting", "seeds", "validation", "held-out", "held-out of best", "seconds")


def grid(axes: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every combination of one value per field; the last field varies fastest."""
    combinations = itertools.product(*axes.values())
    return [dict(zip(axes, values, strict=True)) for values in combinations]


def parse_axes(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Field -> its values, from arguments like "seed=0,1".

    Raises:
      ValueError: if an argument is not an axis, or a field is given twice.
    """
    axes = {}
    for argument in arguments:
        field, equals, values = argument.partition("=")
        if not equals or field.startswith("-"):
            raise ValueError(
                f"{argument!r} is not an axis; expected field=value,value like seed=0,1"
            )
        if field in axes:
            raise ValueError(f"{field} is given twice; join its values by commas")
        axes[field] = [value.strip('"') for value in _COMMA.split(values)]
    return axes


def name_of(overrides: Mapping[str, str], fields: Sequence[str]) -> str:
    """The name of a run or setting, from its values of `fields`; valid as a folder.

    A field is shortened to its last part unless two of `fields` end in the same part.
    """
    leaf = lambda field: field.rpartition(".")[2]
    uses = collections.Counter(map(leaf, fields))
    name = ",".join(
        f"{leaf(f) if uses[leaf(f)] == 1 else f}="
        + urllib.parse.quote(overrides[f], safe="(),+ ").replace(" ", "")
        for f in fields
    )
    return name or "run"


def table(results: Sequence[Mapping]) -> str:
    """A table with a line per setting, the best validation score at the end first.

    Columns are pass@1 and seconds: the median over seeds, and [min, max].

    Args:
      results: {"overrides": ..., "summary": ... or None}, as in `results.json`.
    """
    varied = varied_fields([result["overrides"] for result in results])
    settings = collections.defaultdict(list)
    for result in results:
        name = name_of(result["overrides"], [f for f in varied if f != "seed"])
        settings[name].append(result["summary"])
    rows = sorted(itertools.starmap(_row, settings.items()), key=lambda row: -row[0])
    cells = [_COLUMNS, *(row for _, row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)


def varied_fields(cells: Sequence[Mapping[str, str]]) -> list[str]:
    """The fields that have more than one value, in their first order."""
    fields = dict.fromkeys(field for cell in cells for field in cell)
    return [f for f in fields if len({cell.get(f) for cell in cells}) > 1]


def validation_score(summary: Mapping) -> str:
    """A text with the score by which the table is sorted."""
    return f"validation pass@1 {_spread(_scores([summary], 'last', 'validation'))}"


def _row(
    name: str, summaries: Sequence[Mapping | None]
) -> tuple[float, tuple[str, ...]]:
    """The sort key of a setting, and its cells of the table."""
    done = [summary for summary in summaries if summary]
    seeds = str(len(done)) + f" of {len(summaries)}" * (len(done) < len(summaries))
    validation = _scores(done, "last", "validation")
    heldout = [_scores(done, checkpoint, "heldout") for checkpoint in ("last", "best")]
    seconds = f"{statistics.median(s['seconds'] for s in done):.0f}" if done else "-"
    rank = statistics.median(validation) if validation else -math.inf
    return rank, (name, seeds, *map(_spread, [validation, *heldout]), seconds)


def _scores(summaries: Sequence[Mapping], checkpoint: str, split: str) -> list[float]:
    """Pass@1 of a checkpoint on a split, for the summaries that have it."""
    values = [summary[checkpoint].get(split, {}).get("pass@1") for summary in summaries]
    return [value for value in values if value is not None]


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "".join(f"{value:.3f}" for value in values) or "-"
    median = statistics.median(values)
    return f"{median:.3f} [{min(values):.3f}, {max(values):.3f}]"
