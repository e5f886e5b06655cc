"""Source hf: datasets of the Hugging Face hub, or in its format in a folder."""

import functools
import urllib.parse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdpo_jax.questions.source import Address, Source, in_one_line

_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
_INSTALL = 'pip install "datasets>=4,<6"'


def read(address: Address) -> Iterable[Any]:
    """Rows as the datasets library reads them."""
    try:
        import datasets  # Optional, and slow to import.
    except ImportError as error:
        raise ValueError(
            f"{address.text} needs the datasets library: {_INSTALL}"
        ) from error
    if int(datasets.__version__.partition(".")[0]) < 4:
        # Earlier ones may run a script that comes with the dataset.
        raise ValueError(
            f"{address.text} needs datasets 4 or later, got {datasets.__version__}: "
            f"{_INSTALL}"
        )
    given, files = address.options, _files(address)
    if files:
        format = _FORMATS[Path(files[0]).suffix]
        load = functools.partial(datasets.load_dataset, format, data_files=files)
    else:
        load = functools.partial(
            datasets.load_dataset,
            address.name,
            given.get("config"),
            revision=given.get("revision"),
        )
    return in_one_line(address, functools.partial(load, split=given["split"]))


def _files(address: Address) -> list[str]:
    """Paths or addresses of the data files that are named; empty when none are."""
    if "files" not in address.options:
        return []
    files = address.options["files"].split(",")
    suffixes = {Path(file).suffix for file in files}
    if len(suffixes) > 1 or not suffixes <= _FORMATS.keys():
        raise ValueError(
            f"{address.text}: files must all end in one of {', '.join(_FORMATS)}"
        )
    if "config" in address.options:
        raise ValueError(f"{address.text}: files belong to no config; leave it out")
    if Path(address.name).is_dir():
        return [str(Path(address.name) / file) for file in files]
    revision = address.options.get("revision", "")
    at = f"@{urllib.parse.quote(revision, safe='')}" if revision else ""
    return [f"hf://datasets/{address.name}{at}/{file}" for file in files]


SOURCE = Source(
    read, frozenset({"split", "config", "revision", "files"}), frozenset({"split"})
)
