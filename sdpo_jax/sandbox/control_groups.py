"""Control groups: the kernel limits the total memory and tasks of each worker.

Uses version 2 if its memory and pids controllers are delegated to this user, else
version 1.
"""

import contextlib
import errno
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path

CONTROLLERS = ("memory", "pids")
# A worker and bubblewrap need memory and tasks in addition to those of the program.
WORKER_MB = 128
WORKER_TASKS = 8
_REMOVE_S = 2.0  # Time for the kernel to release the tasks of an ended worker.


class Group:
    """The control group of one worker.

    Args:
      number: of the worker, unique within the trainer.
      memory_mb: total memory of its programs in MiB.
      tasks: maximal number of processes and threads of its programs.
      folders: the result of `folders()`.

    Raises:
      OSError: if the group cannot be created.
    """

    def __init__(self, number: int, memory_mb: int, tasks: int, folders: Mapping):
        name = f"sdpo_jax-{os.getpid()}-{number}"
        # Version 2 has one folder for both controllers, version 1 has one for each.
        self._paths = sorted({folder / name for folder in folders.values()})
        try:
            for path in self._paths:
                # A killed trainer with the same pid may have left this folder.
                path.mkdir(exist_ok=True)
            self._limit(memory_mb, tasks, folders["memory"] == folders["pids"])
        except OSError:
            self.close()
            raise

    def _limit(self, memory_mb: int, tasks: int, has_version_2: bool) -> None:
        memory = str((memory_mb + WORKER_MB) << 20)
        # Without a limit on swap, a program could fill it beyond its memory limit. A
        # kernel without swap accounting lacks those files.
        if has_version_2:
            self._set("memory.max", memory)
            self._set("memory.swap.max", "0", optional=True)
        else:
            self._set("memory.limit_in_bytes", memory)
            # Limits the sum of memory and swap.
            self._set("memory.memsw.limit_in_bytes", memory, optional=True)
        self._set("pids.max", str(tasks + WORKER_TASKS))

    def _set(self, file: str, value: str, optional: bool = False) -> None:
        files = [path / file for path in self._paths if (path / file).exists()]
        if not files and not optional:
            raise OSError(errno.ENOENT, f"the kernel has no {file}")
        for path in files:
            path.write_text(value)

    def add(self, pid: int) -> None:
        """Move a process and its descendants into the group; new children follow."""
        # The parent moves first: a child that it starts during this call is then either
        # born in the group or listed by `children`.
        for path in self._paths:
            (path / "cgroup.procs").write_text(str(pid))
        for child in children(pid):
            # The child may have ended in the meantime.
            with contextlib.suppress(ProcessLookupError):
                self.add(child)

    def holds_processes(self) -> bool:
        """Whether the group of each controller has at least one process."""
        return all((path / "cgroup.procs").read_text().strip() for path in self._paths)

    def close(self) -> None:
        """Remove the group after its last process has ended; idempotent."""
        deadline = time.monotonic() + _REMOVE_S
        for path in self._paths:
            while path.exists():
                # Removal fails while the kernel is still releasing the last process.
                try:
                    path.rmdir()
                except OSError:
                    if time.monotonic() > deadline:
                        break
                    time.sleep(0.005)


def children(pid: int) -> list[int]:
    """The pids of the running children of process `pid`."""
    pids = []
    # Each thread has a list of its own.
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError):
            pids += map(int, path.read_text().split())
    return pids


def folders() -> dict[str, Path]:
    """Controller -> the folder in which its groups can be created.

    Also removes the groups that killed trainers have left there.

    Raises:
      OSError: if there is no such folder; says why.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text()
        own = Path("/proc/self/cgroup").read_text()
    except OSError as error:
        raise OSError(error.errno, "no /proc to find control groups") from error
    by_controller = _version_2(mounts, own) or _version_1(mounts, own)
    if not by_controller:
        raise OSError(errno.EACCES, "no writable control groups for memory and pids")
    for folder in set(by_controller.values()):
        _remove_stale(folder)
    return by_controller


def _version_2(mounts: str, own: str) -> dict[str, Path]:
    """`folders` for version 2; empty if its controllers are not available."""
    # Field 5 of a line of mountinfo is the mount point; the file system's type follows
    # " - ".
    for mount in re.findall(r"^(?:\S+ ){4}(\S+) .*? - cgroup2 ", mounts, re.MULTILINE):
        path = re.search(r"^0::/(.*)$", own, re.MULTILINE)
        candidates = [Path(mount) / path[1]] if path else []
        # A group with processes may not delegate controllers, but the root group may.
        for folder in [*candidates, Path(mount)]:
            if _delegates(folder):
                return dict.fromkeys(CONTROLLERS, folder)
    return {}


def _delegates(folder: Path) -> bool:
    """Whether groups in `folder` have the controllers; enables them if necessary."""
    control = folder / "cgroup.subtree_control"
    if not os.access(folder, os.W_OK):
        return False
    try:
        missing = set(CONTROLLERS) - set(control.read_text().split())
        if missing:
            control.write_text(" ".join(f"+{name}" for name in sorted(missing)))
        return not set(CONTROLLERS) - set(control.read_text().split())
    except OSError:
        return False


def _version_1(mounts: str, own: str) -> dict[str, Path]:
    """`folders` for version 1; empty if a controller is not available."""
    by_controller = {}
    for controller in CONTROLLERS:
        # A mount may have several controllers, separated by commas.
        options = rf"(?:\S*,)?{controller}(?:,\S*)?"
        mount = re.search(
            rf"^(?:\S+ ){{4}}(\S+) .*? - cgroup \S+ {options}$", mounts, re.MULTILINE
        )
        path = re.search(rf"^\d+:(?:\S*,)?{controller}(?:,\S*)?:/(.*)$", own, re.M)
        if mount is None:
            return {}
        candidates = [Path(mount[1]) / path[1]] if path else []
        # In a container, /proc may name a folder of the host that the mount lacks.
        candidates = [p for p in [*candidates, Path(mount[1])] if os.access(p, os.W_OK)]
        if not candidates:
            return {}
        by_controller[controller] = candidates[0]
    return by_controller


def _remove_stale(folder: Path) -> None:
    """Remove the empty groups of trainers that no longer run."""
    for path in folder.glob("sdpo_jax-*-*"):
        pid = path.name.split("-")[1]
        if not Path("/proc", pid).exists():
            with contextlib.suppress(OSError):
                path.rmdir()
