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

import dataclasses
import functools
import logging
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sdpo_jax.questions import rows
from sdpo_jax.questions.converters import CONVERTERS, Converter, LeftOut

_OPTIONS = {
    "file": {"convert"},
    "hf": {"split", "config", "revision", "files", "convert"},
    "tfds": {"split", "data_dir", "convert"},
}
_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
_WHERE = "where."
_INSTALL = 'pip install "datasets>=4,<6"'
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Named:
    """A source, taken apart."""

    text: str
    kind: str
    name: str
    options: Mapping[str, str]
    wanted: Mapping[str, str]


def of(text: str, field: str) -> str | rows.Source:
    """What `rows.load_splits` reads for a source of the config.

    Args:
      text: see the module; a share of another split stays as it is.
      field: of the config, for messages.

    Raises:
      ValueError: if it is not of the forms above. Nothing is read yet.
    """
    if text.startswith(rows.SHARE):
        return text
    named = _parsed(text, field)
    if named.kind == "file" and not named.options and not named.wanted:
        return text
    convert = CONVERTERS.get(named.options.get("convert", named.name))
    if "convert" in named.options and convert is None:
        raise ValueError(
            f"{field}={text}: convert must be one of {', '.join(sorted(CONVERTERS))}"
        )
    return rows.Source(text, functools.partial(_rows, named, convert))


def _parsed(text: str, field: str) -> _Named:
    head, mark, tail = text.partition("?")
    kind, colon, name = head.partition(":")
    if not colon or kind not in _OPTIONS:
        kind, name = "file", head
    pairs = [pair.partition("=") for pair in tail.split("&")] if mark else []
    given = {key: value for key, _, value in pairs}
    if not name or not all(given.values()) or len(given) < len(pairs):
        raise ValueError(f"{field}={text}: expected NAME?option=value&..., each once")
    wanted = {k[len(_WHERE) :]: v for k, v in given.items() if k.startswith(_WHERE)}
    options = {k: v for k, v in given.items() if not k.startswith(_WHERE)}
    if unknown := options.keys() - _OPTIONS[kind]:
        raise ValueError(
            f"{field}={text}: {min(unknown)!r} is no option of a {kind} source, which "
            f"takes {', '.join(sorted(_OPTIONS[kind]))} and {_WHERE}FIELD"
        )
    if "split" in _OPTIONS[kind] - options.keys():
        raise ValueError(f"{field}={text}: say which split, such as ?split=train")
    return _Named(text, kind, name, options, wanted)


def _rows(named: _Named, convert: Converter | None) -> Iterator[tuple[str, rows.Row]]:
    """Where each row that is used stands, and the row as the environment reads it."""
    used, number, left_out = 0, 0, []
    for number, row in enumerate(_READ[named.kind](named), start=1):
        where = f"{named.text}, row {number}"
        rows.check_object(row, where)
        if not _is_wanted(row, named.wanted, where):
            continue
        try:
            converted = convert(row, where) if convert else [row]
        except LeftOut as reason:
            left_out.append(str(reason))
            continue
        for made in converted:
            if (convert or named.kind != "file") and not made.keys() & {"uid", "idx"}:
                made = {**made, "idx": used}
            yield where, made
            used += 1
    if left_out:
        told = "%s: %d of %d rows are left out, the first of them %s"
        _log.warning(told, named.text, len(left_out), number, left_out[0])
    if convert or named.wanted:
        _log.info("%s: %d questions from %d rows", named.text, used, number)


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


def _of_hub(named: _Named) -> Iterable[Any]:
    """Rows as the datasets library reads them."""
    try:
        import datasets  # Optional, and slow to import.
    except ImportError as error:
        raise ValueError(
            f"{named.text} needs the datasets library: {_INSTALL}"
        ) from error
    if int(datasets.__version__.partition(".")[0]) < 4:
        # Earlier ones may run a script that comes with the dataset.
        raise ValueError(
            f"{named.text} needs datasets 4 or later, got {datasets.__version__}: "
            f"{_INSTALL}"
        )
    given, files = named.options, _files(named)
    if files:
        format = _FORMATS[Path(files[0]).suffix]
        load = functools.partial(datasets.load_dataset, format, data_files=files)
    else:
        load = functools.partial(
            datasets.load_dataset,
            named.name,
            given.get("config"),
            revision=given.get("revision"),
        )
    return _told(named, functools.partial(load, split=given["split"]))


def _files(named: _Named) -> list[str]:
    """Paths or addresses of the data files that are named; empty when none are."""
    if "files" not in named.options:
        return []
    files = named.options["files"].split(",")
    suffixes = {Path(file).suffix for file in files}
    if len(suffixes) > 1 or not suffixes <= _FORMATS.keys():
        raise ValueError(
            f"{named.text}: files must all end in one of {', '.join(_FORMATS)}"
        )
    if "config" in named.options:
        raise ValueError(f"{named.text}: files belong to no config; leave it out")
    if Path(named.name).is_dir():
        return [str(Path(named.name) / file) for file in files]
    revision = named.options.get("revision", "")
    at = f"@{urllib.parse.quote(revision, safe='')}" if revision else ""
    return [f"hf://datasets/{named.name}{at}/{file}" for file in files]


def _of_tfds(named: _Named) -> Iterable[Any]:
    """Rows of a prepared dataset, with text for bytes."""
    import tensorflow_datasets as tfds  # Slow to import.

    split, folder = named.options["split"], named.options.get("data_dir")
    load = lambda: tfds.data_source(
        named.name, split=split, data_dir=folder, download=False
    )
    source = _told(named, load)
    for number in range(len(source)):
        yield _plain(source[number], f"{named.text}, row {number + 1}")


def _told(named: _Named, load: Callable[[], Any]) -> Any:
    """What `load` returns; whatever it raises, in one line."""
    try:
        return load()
    # Of many types, which differ with the library's version.
    except Exception as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{named.text}: {told:.1000}") from error


def _plain(value: Any, where: str) -> Any:
    """Arrays as lists and bytes as text."""
    if isinstance(value, Mapping):
        return {k: _plain(v, f"{where}, field {k}") for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(v, where) for v in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: expected text in UTF-8, got {error}") from error


_READ: Mapping[str, Callable[[_Named], Iterable[Any]]] = {
    "file": lambda named: rows.of_file(Path(named.name)),
    "hf": _of_hub,
    "tfds": _of_tfds,
}
