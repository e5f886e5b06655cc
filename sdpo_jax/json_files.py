"""JSON files that survive a kill: lines of a run, and single values.

JSON has no NaN or infinity: they are written as the strings "NaN", "Infinity" and
"-Infinity", which `float()` reads back.
"""

import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any


def write_json_atomically(path: str | os.PathLike, value: Any) -> None:
    """Writes a JSON file that is never half-written, not even after a kill."""
    text = json.dumps(plain(value), indent=1, allow_nan=False) + "\n"
    _replace(pathlib.Path(path), text.encode())


def read_lines(path: str | os.PathLike) -> Iterator[dict]:
    """The lines of a .jsonl file; a half-written last one is left out.

    Raises:
      ValueError: if any other line is broken, naming the file and the line.
    """
    for line, _ in _read(pathlib.Path(path)):
        yield line


def drop_lines_from(path: str | os.PathLike, first_step: int) -> None:
    """Removes the lines of step `first_step` and later, and a half-written last one.

    The lines that stay keep their bytes. A missing file is left missing.
    """
    path = pathlib.Path(path)
    if path.exists():
        kept = [raw for line, raw in _read(path) if line["step"] < first_step]
        _replace(path, b"".join(raw.rstrip(b"\n") + b"\n" for raw in kept))


def _read(path: pathlib.Path) -> Iterator[tuple[dict, bytes]]:
    """Each line, parsed and as the bytes in the file."""
    # One line ahead, because only the last one may be broken.
    with path.open("rb") as file:
        raw, following = file.readline(), file.readline()
        number = 1
        while raw:
            try:
                line = json.loads(raw)
            except ValueError as error:
                if not following:
                    return
                raise ValueError(
                    f"{path}:{number} is not JSON ({error}); only the last line may be "
                    "cut off. Restore the file from a copy or delete that line"
                ) from error
            yield line, raw
            raw, following, number = following, file.readline(), number + 1


def _replace(path: pathlib.Path, content: bytes) -> None:
    # A rename replaces the old file at once, and only when the new one is on disk.
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def plain(value: Any) -> Any:
    """The same value in the types of JSON; arrays become numbers and lists."""
    # NumPy's and JAX's arrays and scalars, without importing either.
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
    return value
