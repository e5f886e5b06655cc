"""The manifest of a checkpoint: a list of its files with sizes and digests."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

MANIFEST = "manifest.txt"


class DamagedError(OSError):
    """A checkpoint whose files differ from those that were saved."""


def first_undamaged(
    candidates: list[int], paths: dict[int, pathlib.Path]
) -> tuple[int | None, list[str]]:
    """The first undamaged candidate, and descriptions of the faults before it."""
    faults = []
    for step in candidates:
        try:
            _verify(paths[step])
        except DamagedError as fault:
            faults.append(f"step {step}: {fault}")
        else:
            return step, faults
    return None, faults


def _verify(path: pathlib.Path) -> None:
    """Reads every file and compares it with the manifest."""
    expected = read_manifest(path)["files"]
    try:
        actual = _digests(path, expected)
    except OSError as error:
        raise DamagedError(f"{error.filename}: {error.strerror}") from error
    for name, (size, digest) in expected.items():
        if actual[name][0] != size:
            raise DamagedError(
                f"{path / name} has {actual[name][0]} bytes, expected {size}"
            )
        if actual[name][1] != digest:
            raise DamagedError(f"{path / name} changed since it was saved")


def _digests(path: pathlib.Path, names: Iterable[str]) -> dict[str, list]:
    """Size and digest of each file."""
    # hashlib releases the interpreter lock, so threads run in parallel.
    with concurrent.futures.ThreadPoolExecutor() as threads:
        digests = threads.map(lambda name: _digest(path / name), names)
        return dict(zip(names, digests, strict=True))


def _digest(file: pathlib.Path) -> list:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return [stream.tell(), digest]


def write_manifest(path: pathlib.Path, content: dict) -> None:
    """Writes the manifest of all files of a checkpoint, after forcing them onto disk.

    A manifest that exists is therefore proof that every file it lists was written.
    """
    entries = sorted(path.rglob("*"))
    for entry in [*entries, path]:
        sync(entry)
    names = [e.relative_to(path).as_posix() for e in entries if e.is_file()]
    _replace(path, content | {"files": _digests(path, names)})


def change_manifest(path: pathlib.Path, **changes) -> None:
    """Changes entries of a manifest at once; the files are as they were written."""
    _replace(path, read_manifest(path) | changes)


def _replace(path: pathlib.Path, content: dict) -> None:
    text = json.dumps(content, indent=1).encode()
    temporary = path / f"{MANIFEST}.tmp"
    # The first line is the digest of the rest, so damage to the manifest is detected.
    digest = hashlib.sha256(text).hexdigest().encode()
    temporary.write_bytes(digest + b"\n" + text)
    sync(temporary)
    temporary.rename(path / MANIFEST)
    sync(path)


def read_manifest(path: pathlib.Path) -> dict:
    """The content of a manifest; raises `DamagedError` if it changed since written."""
    try:
        digest, _, text = (path / MANIFEST).read_bytes().partition(b"\n")
    except OSError as error:
        raise DamagedError(f"{path / MANIFEST}: {error.strerror}") from error
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise DamagedError(f"{path / MANIFEST} changed since it was saved")
    return json.loads(text)


def sync(path: pathlib.Path) -> None:
    """Forces a file, or the list of names in a folder, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
