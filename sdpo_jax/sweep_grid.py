"""The grid of a sweep: its axes, the names of its cells, and the table of results."""

import collections
import itertools
import math
import re
import statistics
import urllib.parse
from collections.abc import Mapping, Sequence

# Not inside double quotes, and no bracket closes before another one opens.
_COMMA = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)(?![^(\[]*[)\]])')
_COLUMNS = ("setting", "seeds", "validation", "held-out", "held-out of best", "seconds")


def grid(axes: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Every combination of one value per field; the last field varies fastest."""
    combinations = itertools.product(*axes.values())
    return [dict(zip(axes, values, strict=True)) for values in combinations]


def parse_axes(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Field -> its values, from arguments like "seed=0,1".

    Raises:
      ValueError: if an argument is no axis, or a field comes twice.
    """
    axes = {}
    for argument in arguments:
        field, equals, values = argument.partition("=")
        if not equals or field.startswith("-"):
            raise ValueError(
                f"{argument!r} is no axis; expected field=value,value like seed=0,1"
            )
        if field in axes:
            raise ValueError(f"{field} is given twice; join its values by commas")
        axes[field] = [value.strip('"') for value in _COMMA.split(values)]
    return axes


def name_of(overrides: Mapping[str, str], fields: Sequence[str]) -> str:
    """What a run or setting is called by its values of `fields`; also names a folder.

    A field is called by its last part where no other one here ends in the same.
    """
    leaf = lambda field: field.rpartition(".")[2]
    times = collections.Counter(map(leaf, fields))
    name = ",".join(
        f"{leaf(f) if times[leaf(f)] == 1 else f}="
        + urllib.parse.quote(overrides[f], safe="(),+ ").replace(" ", "")
        for f in fields
    )
    return name or "run"


def table(results: Sequence[Mapping]) -> str:
    """One line per setting, the best by validation of the last checkpoint first.

    Columns are pass@1 and seconds: the median over seeds, and [least, most].

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
    """The fields that have more than one value, in their order."""
    fields = dict.fromkeys(field for cell in cells for field in cell)
    return [f for f in fields if len({cell.get(f) for cell in cells}) > 1]


def validation_score(summary: Mapping) -> str:
    """The score of a run that the table sorts by, in words."""
    return f"validation pass@1 {_spread(_scores([summary], 'last', 'validation'))}"


def _row(
    name: str, summaries: Sequence[Mapping | None]
) -> tuple[float, tuple[str, ...]]:
    """What a setting is sorted by, and its line of the table."""
    done = [summary for summary in summaries if summary]
    seeds = str(len(done)) + f" of {len(summaries)}" * (len(done) < len(summaries))
    validation = _scores(done, "last", "validation")
    heldout = [_scores(done, part, "heldout") for part in ("last", "best")]
    seconds = f"{statistics.median(s['seconds'] for s in done):.0f}" if done else "-"
    rank = statistics.median(validation) if validation else -math.inf
    return rank, (name, seeds, *map(_spread, [validation, *heldout]), seconds)


def _scores(summaries: Sequence[Mapping], part: str, split: str) -> list[float]:
    """Pass@1 of one part of the summaries that have it."""
    values = [summary[part].get(split, {}).get("pass@1") for summary in summaries]
    return [value for value in values if value is not None]


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "".join(f"{value:.3f}" for value in values) or "-"
    median = statistics.median(values)
    return f"{median:.3f} [{min(values):.3f}, {max(values):.3f}]"
