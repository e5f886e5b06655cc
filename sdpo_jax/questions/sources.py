"""Where a config's questions come from: files, and datasets by name.

  FILE                             JSON, JSON lines or Parquet
  hf:NAME?split=train&...          the datasets library; NAME is on the hub, or a folder
  tfds:NAME/CONFIG:1.0.0?split=... tensorflow-datasets, without TensorFlow

What follows the question mark, each once:

  split     of a dataset, as its library names it, such as test or train[:90%]; needed
  config    hf: the dataset's configuration
  revision  hf: the commit, tag or branch on the hub
  files     hf: data files of NAME, split by commas, to read as the split train
  data_dir  tfds: the folder that holds NAME, prepared in array_record format
  convert   the dataset whose converter is used; see `converters`
  where.F   the rows whose field F, dotted for a field of a field, is this text

Rows of a dataset that have neither uid nor idx are named by their place among those
that are used, from 0. No code of a dataset is ever run.
"""

import functools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sdpo_jax.questions import hub, prepared, rows
from sdpo_jax.questions.converters import CONVERTERS, Converter, LeftOut
from sdpo_jax.questions.source import Address, Source

SOURCES: Mapping[str, Source] = {
    "file": Source(lambda address: rows.of_file(Path(address.name))),
    "hf": hub.SOURCE,
    "tfds": prepared.SOURCE,
}
_ALWAYS = frozenset({"convert"})
_WHERE = "where."
_log = logging.getLogger(__name__)


def of(text: str, field: str) -> str | rows.NamedRows:
    """What `rows.load_splits` reads for a source of the config.

    Args:
      text: see the module; a share of another split stays as it is.
      field: of the config, for messages.

    Raises:
      ValueError: if it is not of the forms above. Nothing is read yet.
    """
    if text.startswith(rows.SHARE):
        return text
    address = _parsed(text, field)
    if address.kind == "file" and not address.options and not address.wanted:
        return text
    convert = CONVERTERS.get(address.options.get("convert", address.name))
    if "convert" in address.options and convert is None:
        raise ValueError(
            f"{field}={text}: convert must be one of {', '.join(sorted(CONVERTERS))}"
        )
    return rows.NamedRows(text, functools.partial(_rows, address, convert))


def _parsed(text: str, field: str) -> Address:
    head, mark, tail = text.partition("?")
    kind, colon, name = head.partition(":")
    if not colon or kind not in SOURCES:
        kind, name = "file", head
    source = SOURCES[kind]
    pairs = [pair.partition("=") for pair in tail.split("&")] if mark else []
    given = {key: value for key, _, value in pairs}
    if not name or not all(given.values()) or len(given) < len(pairs):
        raise ValueError(f"{field}={text}: expected NAME?option=value&..., each once")
    wanted = {k[len(_WHERE) :]: v for k, v in given.items() if k.startswith(_WHERE)}
    options = {k: v for k, v in given.items() if not k.startswith(_WHERE)}
    allowed = source.options | _ALWAYS
    if unknown := options.keys() - allowed:
        raise ValueError(
            f"{field}={text}: {min(unknown)!r} is no option of a {kind} source, which "
            f"takes {', '.join(sorted(allowed))} and {_WHERE}FIELD"
        )
    if missing := source.needs - options.keys():
        name = min(missing)
        raise ValueError(f"{field}={text}: say which {name}, such as ?{name}=train")
    return Address(text, kind, name, options, wanted)


def _rows(
    address: Address, convert: Converter | None
) -> Iterator[tuple[str, rows.Row]]:
    """Where each row that is used stands, and the row as the environment reads it."""
    used, number, left_out = 0, 0, []
    for number, row in enumerate(SOURCES[address.kind].read(address), start=1):
        where = f"{address.text}, row {number}"
        rows.check_object(row, where)
        if not _is_wanted(row, address.wanted, where):
            continue
        try:
            converted = convert(row, where) if convert else [row]
        except LeftOut as reason:
            left_out.append(str(reason))
            continue
        for made in converted:
            if (convert or address.kind != "file") and not made.keys() & {"uid", "idx"}:
                made = {**made, "idx": used}
            yield where, made
            used += 1
    if left_out:
        message = "%s: %d of %d rows are left out, the first of them %s"
        _log.warning(message, address.text, len(left_out), number, left_out[0])
    if convert or address.wanted:
        _log.info("%s: %d questions from %d rows", address.text, used, number)


def _is_wanted(row: rows.Row, wanted: Mapping[str, str], where: str) -> bool:
    for field, value in wanted.items():
        found: Any = row
        for part in field.split("."):
            if not isinstance(found, Mapping) or part not in found:
                raise ValueError(f"{where}: there is no field {field}")
            found = found[part]
        if str(found) != value:
            return False
    return True
