"""Control groups, one per worker: the kernel bounds all its memory and its tasks.

Version 2 where its memory and pids controllers are handed to us, else version 1.
"""

import contextlib
import errno
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

CONTROLLERS = ("memory", "pids")
WORKER_MB = 128  # What a worker and its confinement take beside a program.
WORKER_TASKS = 8
_REMOVE_S = 2.0


class Group:
    """One worker's control group.

    Args:
      number: of the worker; no two of one trainer share it.
      memory_mb: that its program may take in all.
      tasks: processes and threads of its program.
      folders: see `folders`.

    Raises:
      OSError: if it cannot be made here.
    """

    def __init__(self, number: int, memory_mb: int, tasks: int, folders: Mapping):
        name = f"sdpo_jax-{os.getpid()}-{number}"
        self._paths = sorted({folder / name for folder in folders.values()})
        try:
            for path in self._paths:
                # A trainer that was killed may have had this one's pid.
                path.mkdir(exist_ok=True)
            self._limit(memory_mb, tasks, folders["memory"] == folders["pids"])
        except OSError:
            self.close()
            raise

    def _limit(self, memory_mb: int, tasks: int, has_version_2: bool) -> None:
        memory = str((memory_mb + WORKER_MB) << 20)
        if has_version_2:
            self._set("memory.max", memory)
            self._set("memory.swap.max", "0", optional=True)
        else:
            self._set("memory.limit_in_bytes", memory)
            self._set("memory.memsw.limit_in_bytes", memory, optional=True)
        self._set("pids.max", str(tasks + WORKER_TASKS))

    def _set(self, file: str, value: str, optional: bool = False) -> None:
        found = [path / file for path in self._paths if (path / file).exists()]
        if not found and not optional:
            raise OSError(errno.ENOENT, f"the kernel has no {file}")
        for path in found:
            path.write_text(value)

    def add(self, pid: int) -> None:
        """Move a process and all its descendants in; what they start will follow."""
        for path in self._paths:
            (path / "cgroup.procs").write_text(str(pid))
        for child in children(pid):
            # It may have ended meanwhile.
            with contextlib.suppress(ProcessLookupError):
                self.add(child)

    def holds_processes(self) -> bool:
        """Whether processes are in it, by each controller."""
        return all((path / "cgroup.procs").read_text().strip() for path in self._paths)

    def close(self) -> None:
        """Remove it, once its last process is gone; idempotent."""
        deadline = time.monotonic() + _REMOVE_S
        for path in self._paths:
            while path.exists():
                try:
                    path.rmdir()
                except OSError:
                    if time.monotonic() > deadline:
                        break
                    time.sleep(0.005)


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that still run."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError):
            found += map(int, path.read_text().split())
    return found


def folders() -> dict[str, Path]:
    """Controller -> the folder in which groups with it can be made.

    What trainers that were killed left there is removed.

    Raises:
      OSError: if the kernel or this user's rights leave none; says why.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
        own = Path("/proc/self/cgroup").read_text()
    except OSError as error:
        raise OSError(error.errno, "no /proc to find control groups") from error
    found = _version_2(mounts, own) or _version_1(mounts, own)
    if not found:
        raise OSError(errno.EACCES, "no writable control groups for memory and pids")
    for folder in set(found.values()):
        _sweep(folder)
    return found


def _version_2(mounts: str, own: str) -> dict[str, Path]:
    for mount in re.findall(r"^(?:\S+ ){4}(\S+) .*? - cgroup2 ", mounts, re.MULTILINE):
        path = re.search(r"^0::/(.*)$", own, re.MULTILINE)
        places = [Path(mount) / path[1]] if path else []
        # A group that holds processes may not hand on its controllers; the root may.
        for place in [*places, Path(mount)]:
            if _hands_on(place):
                return dict.fromkeys(CONTROLLERS, place)
    return {}


def _hands_on(place: Path) -> bool:
    """Whether groups in `place` have the controllers; switches them on if need be."""
    control = place / "cgroup.subtree_control"
    if not os.access(place, os.W_OK):
        return False
    try:
        missing = set(CONTROLLERS) - set(control.read_text().split())
        if missing:
            control.write_text(" ".join(f"+{name}" for name in sorted(missing)))
        return not set(CONTROLLERS) - set(control.read_text().split())
    except OSError:
        return False


def _version_1(mounts: str, own: str) -> dict[str, Path]:
    found = {}
    for controller in CONTROLLERS:
        options = rf"(?:\S*,)?{controller}(?:,\S*)?"
        mount = re.search(
            rf"^(?:\S+ ){{4}}(\S+) .*? - cgroup \S+ {options}$", mounts, re.MULTILINE
        )
        path = re.search(rf"^\d+:(?:\S*,)?{controller}(?:,\S*)?:/(.*)$", own, re.M)
        if mount is None:
            return {}
        places = [Path(mount[1]) / path[1]] if path else []
        places = [p for p in [*places, Path(mount[1])] if os.access(p, os.W_OK)]
        if not places:
            return {}
        found[controller] = places[0]
    return found


def _sweep(folder: Path) -> None:
    """Remove the empty groups of trainers that are gone."""
    for path in folder.glob("sdpo_jax-*-*"):
        pid = path.name.split("-")[1]
        if not Path("/proc", pid).exists():
            with contextlib.suppress(OSError):
                path.rmdir()
