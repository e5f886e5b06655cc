"""The manifest of a checkpoint: its files with their digests, safely on disk."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

MANIFEST = "manifest.txt"


class DamagedError(OSError):
    """A checkpoint whose files are not the ones that were saved."""


def first_sound(
    candidates: list[int], paths: dict[int, pathlib.Path]
) -> tuple[int | None, list[str]]:
    """The first candidate without a fault, and the faults of those before it."""
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
        found = _digests(path, expected)
    except OSError as error:
        raise DamagedError(f"{error.filename}: {error.strerror}") from error
    for name, (size, digest) in expected.items():
        if found[name][0] != size:
            raise DamagedError(
                f"{path / name} has {found[name][0]} bytes, expected {size}"
            )
        if found[name][1] != digest:
            raise DamagedError(f"{path / name} changed since it was saved")


def _digests(path: pathlib.Path, names: Iterable[str]) -> dict[str, list]:
    """Bytes and digest of each file."""
    # hashlib lets go of the interpreter lock, so threads do help.
    with concurrent.futures.ThreadPoolExecutor() as threads:
        digests = threads.map(lambda name: _digest(path / name), names)
        return dict(zip(names, digests, strict=True))


def _digest(file: pathlib.Path) -> list:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return [stream.tell(), digest]


def write_manifest(path: pathlib.Path, content: dict) -> None:
    """Describes all files of a checkpoint, once they are safely on the disk."""
    entries = sorted(path.rglob("*"))
    for entry in [*entries, path]:
        sync(entry)
    names = [e.relative_to(path).as_posix() for e in entries if e.is_file()]
    text = json.dumps(content | {"files": _digests(path, names)}, indent=1).encode()
    temporary = path / f"{MANIFEST}.tmp"
    # The first line guards the rest, so a flipped bit here is noticed too.
    digest = hashlib.sha256(text).hexdigest().encode()
    temporary.write_bytes(digest + b"\n" + text)
    sync(temporary)
    temporary.rename(path / MANIFEST)
    sync(path)


def read_manifest(path: pathlib.Path) -> dict:
    """What `write_manifest` wrote; raises `DamagedError` if it is not that any more."""
    try:
        digest, _, text = (path / MANIFEST).read_bytes().partition(b"\n")
    except OSError as error:
        raise DamagedError(f"{path / MANIFEST}: {error.strerror}") from error
    if hashlib.sha256(text).hexdigest().encode() != digest:
        raise DamagedError(f"{path / MANIFEST} changed since it was saved")
    return json.loads(text)


def sync(path: pathlib.Path) -> None:
    """Forces a file or a folder's list of names onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
