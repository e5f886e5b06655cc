"""Source tfds: datasets prepared by tensorflow-datasets, read without TensorFlow."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sdpo_jax import digests
from sdpo_jax.questions.source_kind import Address, SourceKind, load_or_raise


def read(address: Address) -> Iterable[Any]:
    """The rows of a prepared dataset, with bytes decoded as text."""
    import tensorflow_datasets as tfds  # Slow to import.

    split, folder = address.options["split"], address.options.get("data_dir")
    load = lambda: tfds.data_source(
        address.name, split=split, data_dir=folder, download=False
    )
    source = load_or_raise(address, load)
    for number in range(len(source)):
        yield _plain(source[number], f"{address.text}, row {number + 1}")


def contents(address: Address) -> Mapping[str, str]:
    """Digests of the files of the prepared dataset, named with its version."""
    import tensorflow_datasets as tfds  # Slow to import.

    folder = address.options.get("data_dir")
    load = lambda: tfds.builder(address.name, data_dir=folder)
    builder = load_or_raise(address, load)
    files = digests.of_files(Path(builder.data_dir))
    return {f"{builder.info.full_name}/{name}": x for name, x in files.items()}


def _plain(value: Any, where: str) -> Any:
    """The value with arrays as lists and bytes as text."""
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


SOURCE = SourceKind(
    read, frozenset({"split", "data_dir"}), frozenset({"split"}), contents
)
