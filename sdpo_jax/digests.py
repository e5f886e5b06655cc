"""Digests of files: whether one is still what it was."""

import concurrent.futures
import hashlib
import pathlib
from collections.abc import Iterable

_WEIGHTS = ".safetensors"
# Weights beyond this size are sampled: to read tens of gigabytes takes minutes, and a
# host of a pod reads only a part of them otherwise.
_WHOLE = 256 * 2**20
# The head holds the names, shapes and places of the tensors.
_HEAD = 4 * 2**20
_STRIDE = 16 * 2**20
_SLICE = 64 * 2**10


def of_files(
    folder: pathlib.Path, files: Iterable[pathlib.Path] | None = None
) -> dict[str, str]:
    """Name within `folder` -> digest, of these files or of all that are in it.

    A digest covers every byte. Of a .safetensors file over 256 MiB it covers the size,
    the first 4 MiB and 64 KiB of every 16 MiB, so every matrix of that size; a change
    of a few small tensors may go unseen.
    """
    files = sorted(folder.rglob("*") if files is None else files)
    files = [file for file in files if file.is_file()]
    # hashlib releases the interpreter lock, so threads run in parallel.
    with concurrent.futures.ThreadPoolExecutor() as threads:
        names = [file.relative_to(folder).as_posix() for file in files]
        return dict(zip(names, threads.map(_of_file, files), strict=True))


def of_text(text: str) -> str:
    """The digest of a text."""
    return f"sha256:{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"


def _of_file(file: pathlib.Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _WHOLE or file.suffix != _WEIGHTS:
            return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
        digest = hashlib.sha256(str(size).encode())
        digest.update(stream.read(_HEAD))
        for start in [*range(_HEAD, size - _SLICE, _STRIDE), size - _SLICE]:
            stream.seek(start)
            digest.update(stream.read(_SLICE))
    return f"sampled-sha256:{digest.hexdigest()}"
