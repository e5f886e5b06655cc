"""Resolves the sources of questions in a config: files, and datasets by name.

  FILE                             JSON, JSON lines, CSV, TSV or Parquet; see `files`
  hf:NAME?split=train&...          the datasets library; NAME is on the hub, or a folder
  tfds:NAME/CONFIG:1.0.0?split=... tensorflow-datasets, without TensorFlow

Games draw their questions from seeds instead; see `seeds`.

Options after the question mark, each at most once:

  split     required for datasets; in the library's syntax: test, train[:90%]
  config    hf: the dataset's configuration
  revision  hf: the commit, tag or branch on the hub
  files     hf: data files of NAME, separated by commas; their split is train
  data_dir  tfds: the folder with NAME, prepared in array_record format
  convert   the dataset whose converter is used; see `converters`
  where.F   uses only rows whose field F has this text; F may be dotted (a.b)

Dataset rows with neither uid nor idx are named by their index among the used rows,
from 0; rows of a file, by their content. The code of a dataset is never run.
"""

import functools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdpo_jax import digests
from sdpo_jax.questions import files, hf, rows, tfds
from sdpo_jax.questions.converters import CONVERTERS, Converter, SkippedRow
from sdpo_jax.questions.source_kind import Address, SourceKind

SOURCES: Mapping[str, SourceKind] = {
    "file": SourceKind(
        lambda address: files.read(Path(address.name)),
        contents=lambda address: _digest(Path(address.name)),
    ),
    "hf": hf.SOURCE,
    "tfds": tfds.SOURCE,
}
_COMMON_OPTIONS = frozenset({"convert"})
_FILTER = "where."
_log = logging.getLogger(__name__)


def of(text: str, field: str) -> str | rows.NamedRows:
    """The source that `rows.load_splits` reads for the text of a config field.

    Reads no rows yet. A plain file and a share of another split are returned unchanged.

    Args:
      text: an address; see the module docstring.
      field: name of the config field, for messages.

    Raises:
      ValueError: if the address is malformed.
    """
    if text.startswith(rows.SHARE):
        return text
    address = _parse(text, field)
    if address.kind == "file" and not address.options and not address.filters:
        return text
    convert = CONVERTERS.get(address.options.get("convert", address.name))
    if "convert" in address.options and convert is None:
        raise ValueError(
            f"{field}={text}: convert must be one of {', '.join(sorted(CONVERTERS))}"
        )
    return rows.NamedRows(text, functools.partial(_rows, address, convert))


def contents(text: str, field: str) -> Mapping[str, str]:
    """What the source reads, each with a digest or a revision, as far as it is known.

    Args:
      text: as for `of`; a share of another split reads nothing of its own.
      field: as for `of`.

    Raises:
      ValueError: if the address is malformed or its dataset cannot be found.
    """
    if text.startswith(rows.SHARE):
        return {}
    address = _parse(text, field)
    return SOURCES[address.kind].contents(address)


def _digest(file: Path) -> dict[str, str]:
    return digests.of_files(file.parent, [file])


def _parse(text: str, field: str) -> Address:
    head, mark, tail = text.partition("?")
    kind, colon, name = head.partition(":")
    # A file name may contain a colon too, as in C:data.jsonl.
    if not colon or kind not in SOURCES:
        kind, name = "file", head
    source = SOURCES[kind]
    pairs = [pair.partition("=") for pair in tail.split("&")] if mark else []
    values = {key: value for key, _, value in pairs}
    # Fewer values than pairs: an option was given twice.
    if not name or not all(values.values()) or len(values) < len(pairs):
        raise ValueError(f"{field}={text}: expected NAME?option=value&..., each once")
    filters = {
        k.removeprefix(_FILTER): v for k, v in values.items() if k.startswith(_FILTER)
    }
    options = {k: v for k, v in values.items() if not k.startswith(_FILTER)}
    allowed = source.options | _COMMON_OPTIONS
    if unknown := options.keys() - allowed:
        raise ValueError(
            f"{field}={text}: {min(unknown)!r} is not an option of a source of kind "
            f"{kind}; expected {', '.join(sorted(allowed))} or {_FILTER}FIELD"
        )
    if missing := source.needs - options.keys():
        option = min(missing)
        raise ValueError(f"{field}={text}: add the required option ?{option}=...")
    return Address(text, kind, name, options, filters)


def _rows(
    address: Address, convert: Converter | None
) -> Iterator[tuple[str, rows.Row]]:
    """The location of each used row, and the row as the environment reads it."""
    used, number, skipped = 0, 0, []
    for number, row in enumerate(SOURCES[address.kind].read(address), start=1):
        where = f"{address.text}, row {number}"
        rows.check_object(row, where)
        if not _matches(row, address.filters, where):
            continue
        try:
            converted = convert(row, where) if convert else [row]
        except SkippedRow as reason:
            skipped.append(str(reason))
            continue
        for new_row in converted:
            # Not in a plain file: users edit files, and an index would then name
            # another question.
            is_dataset = convert or address.kind != "file"
            if is_dataset and not rows.name_of(new_row, where):
                new_row = {**new_row, "idx": used}
            yield where, new_row
            used += 1
    if skipped:
        message = "%s: skipped %d of %d rows; the first is %s"
        _log.warning(message, address.text, len(skipped), number, skipped[0])
    if convert or address.filters:
        _log.info("%s: %d questions from %d rows", address.text, used, number)


def _matches(row: rows.Row, filters: Mapping[str, str], where: str) -> bool:
    """Whether every filtered field of the row has its required text."""
    for field, text in filters.items():
        value: Any = row
        for name in field.split("."):
            if not isinstance(value, Mapping) or name not in value:
                raise ValueError(f"{where}: there is no field {field}")
            value = value[name]
        if str(value) != text:
            return False
    return True
