"""Source hf: datasets on the Hugging Face hub, or local folders in its format."""

import functools
import urllib.parse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sdpo_jax import digests, hub
from sdpo_jax.questions.source_kind import Address, SourceKind, load_or_raise

_FORMATS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
_INSTALL = 'pip install "datasets>=4,<6"'


def read(address: Address) -> Iterable[Any]:
    """The rows of a split, read by the datasets library."""
    try:
        import datasets  # Optional, and slow to import.
    except ImportError as error:
        raise ValueError(
            f"{address.text} needs the datasets library: {_INSTALL}"
        ) from error
    if int(datasets.__version__.partition(".")[0]) < 4:
        # Earlier versions may run a script that comes with the dataset.
        raise ValueError(
            f"{address.text} needs datasets 4 or later, got {datasets.__version__}: "
            f"{_INSTALL}"
        )
    options, files = address.options, _files(address)
    if files:
        file_format = _FORMATS[Path(files[0]).suffix]
        load = functools.partial(datasets.load_dataset, file_format, data_files=files)
    else:
        load = functools.partial(
            datasets.load_dataset,
            address.name,
            options.get("config"),
            revision=options.get("revision"),
        )
    load = functools.partial(load, split=options["split"])
    if not Path(address.name).is_dir():
        load = functools.partial(_download, address.name, load, datasets.config)
    return load_or_raise(address, load)


def _download(name: str, load: Callable[[], Iterable[Any]], config: Any) -> Any:
    """`load()` of a dataset of the hub; raises within seconds without a network."""
    hub.check_name(name, "dataset")
    try:
        with hub.offline_if_absent(config):
            return load()
    except Exception as error:
        # The library's own message would not say why it found nothing.
        if absence := hub.absence():
            raise ValueError(absence) from error
        raise


def _files(address: Address) -> list[str]:
    """Paths or hub URLs of the data files that the address names, if any."""
    if "files" not in address.options:
        return []
    files = address.options["files"].split(",")
    suffixes = {Path(file).suffix for file in files}
    if len(suffixes) > 1 or not suffixes <= _FORMATS.keys():
        raise ValueError(
            f"{address.text}: files must all have the same extension, one of "
            f"{', '.join(_FORMATS)}"
        )
    if "config" in address.options:
        raise ValueError(
            f"{address.text}: files cannot be combined with config; remove one"
        )
    if Path(address.name).is_dir():
        return [str(Path(address.name) / file) for file in files]
    revision = address.options.get("revision", "")
    # A revision may contain slashes ("refs/pr/3"), which the URL would read as folders.
    suffix = f"@{urllib.parse.quote(revision, safe='')}" if revision else ""
    return [f"hf://datasets/{address.name}{suffix}/{file}" for file in files]


def contents(address: Address) -> Mapping[str, str]:
    """Digests of local files; of a dataset on the hub, its commit."""
    folder = Path(address.name)
    if folder.is_dir():
        files = [Path(file) for file in _files(address)]
        return digests.of_files(folder, files or None)
    ask = functools.partial(
        hub.dataset_commit, address.name, address.options.get("revision")
    )
    return {address.name: load_or_raise(address, ask)}


SOURCE = SourceKind(
    read,
    frozenset({"split", "config", "revision", "files"}),
    frozenset({"split"}),
    contents,
)
