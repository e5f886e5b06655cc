"""Starts a worker, the confined process that runs programs, and talks to it.

The trainer writes a request (a program and its tests) to the worker's standard input
and reads one record per test from its standard output.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import itertools
import json
import os
import select
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo_jax.sandbox import control_groups
from sdpo_jax.sandbox.values import (
    START_S,
    Limits,
    Packages,
    SandboxFailure,
    SandboxUnavailable,
)
from sdpo_jax.sandbox.worker.pipes import ENDINGS, RECORD

# The kernel counts processes per user, so each worker gets a user of its own.
FIRST_UID, NUM_UIDS = 60_000, 5_000

# The files of `worker/`, each after those that it imports.
_WORKER_FILES = (
    *("kernel", "seccomp", "confinement"),
    *("programs", "semaphores", "pipes", "serve"),
)
# The program of a new worker: reads the files and its setup from standard input, and
# makes modules of the files with the names that they have here. So the worker needs to
# read no file of this package, and imports nothing else of it. `-c` puts the current
# folder first in sys.path; programs must not import from it. What was read is popped:
# programs can see the variables of this one.
_BOOTSTRAP = """
import json, sys, types
sys.path.pop(0)
received = json.loads(sys.stdin.buffer.read(int(sys.argv[1])))
for name, source in received.pop(0).items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)
module.main(received.pop())
"""
# Not `-I`, which ignores PYTHONHASHSEED: the order of a set of strings must be the same
# in every run. The worker has no other variables, so it knows no secret of the trainer.
_FLAGS = ("-s", "-S", "-B", "-X", "utf8")
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}
_worker_numbers = itertools.count()


class Worker:
    """One worker process and the pipes to it.

    Args:
      tier: "A", "B", "C" or "D".
      limits: of each test.
      packages: modules that its programs can import.

    Raises:
      SandboxUnavailable: if the process cannot be started.
    """

    def __init__(self, tier: str, limits: Limits, packages: Packages):
        self._ready, self._unread = False, bytearray()
        setup = _setup(tier, packages)
        source = json.dumps([_worker_sources(), setup]).encode()
        command = _command(tier, len(source), setup["readable"])
        number, identity = next(_worker_numbers), {}
        if os.geteuid() == 0:
            # Trainers with successive pids start 78 users apart, so that the workers of
            # two trainers rarely share a user.
            uid = FIRST_UID + (NUM_UIDS // 64 * os.getpid() + number) % NUM_UIDS
            identity = {"user": uid, "group": uid, "extra_groups": []}
        self._group = _make_group(number, limits) if tier == "A" else None
        try:
            # No `preexec_fn`: Python code between fork and exec can deadlock in a
            # process with JAX's threads.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd="/",
                env=_ENVIRONMENT,
                # Ctrl-C in the trainer's terminal must not reach the worker.
                start_new_session=True,
                **identity,
            )
        except (OSError, subprocess.SubprocessError) as error:
            self._leave_group()
            raise SandboxUnavailable(f"cannot start a worker: {error}") from error
        # The worker waits for its source, so it is in its group before it runs any of
        # it. If the worker died at once, `wait_until_ready` reports why.
        with contextlib.suppress(SandboxFailure, ProcessLookupError):
            if self._group is not None:
                self._group.add(self._process.pid)
            self._write(source)

    def exchange(self, request: dict) -> list[dict]:
        """Send a request; return the record of each test that was run, in order.

        Raises:
          SandboxFailure: if the worker fails; says nothing about the program.
        """
        self.wait_until_ready()
        self._write(_encode(request))
        limits, records = request["limits"], []
        # The first record can take more than a limit: all calls in one process, which
        # is then discarded, and the first test in a process of its own.
        wait_s = START_S + 2 * limits["wall_s"]
        while record := self._read_record(limits["output_kb"] << 10, wait_s):
            records.append(record)
            if len(records) > len(request["tests"]):
                raise SandboxFailure("a sandbox worker sent too many records")
        # A fork that failed before it was confined also ended without running the
        # program. The program must not be blamed for it.
        if any(r["ended"] == "exit" and not r["confined"] for r in records):
            raise SandboxFailure("a sandbox worker could not confine a test")
        return records

    def wait_until_ready(self) -> None:
        """Wait until the worker has confined itself.

        Raises:
          SandboxFailure: if that failed; says why.
        """
        if self._ready:
            return
        try:
            answer = self._read(4096, START_S)
        except SandboxFailure as failure:
            # Killed first: reading stderr to its end would wait for a live process.
            self._process.kill()
            stderr = self._process.stderr.read().decode("utf-8", "replace").strip()
            raise SandboxFailure(f"{failure}: {stderr[-500:]}") from failure
        if "refused" in answer:
            raise SandboxFailure(
                f"the worker cannot confine itself: {answer['refused']}"
            )
        self._ready = True

    def close(self) -> None:
        """End the process and reap it; idempotent."""
        # A worker ends by itself at the end of its standard input.
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            pipe.close()
        try:
            self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._leave_group()

    def is_in_control_group(self) -> bool:
        """Whether a control group limits the worker, as tier A requires."""
        return self._group is not None and self._group.holds_processes()

    def _leave_group(self) -> None:
        if self._group is not None:
            self._group.close()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        # An unbuffered write may take only the first part of the data.
        try:
            while view:
                view = view[self._process.stdin.write(view) :]
        except (BrokenPipeError, ValueError) as error:
            raise SandboxFailure("a sandbox worker died") from error

    def _read(self, max_bytes: int, wait_s: float) -> dict:
        """The next JSON message of the worker, of at most `max_bytes`."""
        deadline = time.monotonic() + wait_s
        (size,) = struct.unpack(">I", self._read_exactly(4, deadline))
        if size > max_bytes:
            raise SandboxFailure(
                f"a sandbox worker sent {size} bytes, {max_bytes} allowed"
            )
        return json.loads(self._read_exactly(size, deadline))

    def _read_record(self, max_bytes: int, wait_s: float) -> dict | None:
        """The record of the next test; None at the end of the answer."""
        deadline = time.monotonic() + wait_s
        head = RECORD.unpack(self._read_exactly(RECORD.size, deadline))
        ended, signal, confined, cpu_s, *sizes = head
        # Checked here too: a worker that a program took over could send any size.
        if max(sizes) > max_bytes:
            raise SandboxFailure(
                f"a sandbox worker sent {sizes} bytes, {max_bytes} allowed"
            )
        if ENDINGS[ended] == "none":
            return None
        stdout, report = (self._read_exactly(size, deadline) for size in sizes)
        return {
            "ended": ENDINGS[ended],
            "signal": signal,
            "confined": bool(confined),
            "cpu_s": cpu_s,
            "stdout": stdout.decode("utf-8", "replace"),
            "report": report.decode("ascii", "replace"),
        }

    def _read_exactly(self, size: int, deadline: float) -> bytes:
        while len(self._unread) < size:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not self._can_read(left_s):
                raise SandboxFailure("a sandbox worker did not answer in time")
            chunk = self._process.stdout.read(1 << 20)
            if not chunk:
                raise SandboxFailure("a sandbox worker died")
            self._unread += chunk
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data

    def _can_read(self, wait_s: float) -> bool:
        poller = select.poll()
        # `close` in another thread closes the pipe, which then has no descriptor.
        try:
            poller.register(self._process.stdout, select.POLLIN)
        except ValueError as error:
            raise SandboxFailure("the sandbox was closed during a run") from error
        return bool(poller.poll(1000 * wait_s))


def _encode(request: dict) -> bytes:
    """The request in the format of `worker.pipes.Request`.

    The header has only sizes and limits. The program and the inputs follow as raw
    bytes, which only forks decode: decoded strings would stay in the worker's memory,
    where later programs can search for them.
    """
    program, *texts = (
        text.encode("utf-8", "surrogatepass")
        for text in (request["program"], *map(_as_text, request["tests"]))
    )
    is_call = ["function" in test for test in request["tests"]]
    header = {
        **request,
        "program": len(program),
        "tests": list(zip(is_call, map(len, texts), strict=True)),
    }
    head = json.dumps(header).encode()
    return b"".join((struct.pack(">I", len(head)), head, program, *texts))


def _as_text(test: dict) -> str:
    return json.dumps(test) if "function" in test else test["stdin"]


@functools.cache
def _worker_sources() -> dict[str, str]:
    """The worker's modules: name -> source."""
    package = f"{__package__}.worker"
    folder = Path(__file__).with_name("worker")
    # The package itself is an empty module.
    sources = {package: ""}
    for name in _WORKER_FILES:
        sources[f"{package}.{name}"] = (folder / f"{name}.py").read_text()
    return sources


def _make_group(number: int, limits: Limits) -> control_groups.Group:
    try:
        folders = control_groups.folders()
        return control_groups.Group(number, limits.memory_mb, limits.processes, folders)
    except OSError as error:
        raise SandboxUnavailable(f"no control group: {error}") from error


def _setup(tier: str, packages: Packages) -> dict[str, Any]:
    """What a worker reads at its start; see `worker.confinement`."""
    modules = _module_files(packages)
    readable = _readable_paths(modules)
    return {
        # Bubblewrap also hides files, so only tier C depends on landlock for it.
        "landlock": {"C": "required", "D": "off"}.get(tier, "if_present"),
        "seccomp": tier != "D",
        "drops_uid": os.geteuid() == 0,
        "cache_tag": sys.implementation.cache_tag,
        "modules": modules,
        "readable": readable,
        # The folders in which modules look up versions with importlib.metadata.
        "search": sorted({str(Path(path).parent) for path in readable}),
        "prepare": packages.prepare,
    }


def _command(tier: str, source_size: int, readable: Sequence[str]) -> list[str]:
    """The command line of a worker."""
    command = [interpreter(), *_FLAGS, "-c", _BOOTSTRAP, str(source_size)]
    return _bubblewrap(readable) + command if tier in ("A", "B") else command


def _module_files(packages: Packages) -> dict[str, str]:
    """Module -> the file that its import executes."""
    files = {}
    for name in packages.modules:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.origin:
            raise SandboxUnavailable(
                f"programs may import the module {name}, which is not installed here: "
                f"pip install {name.replace('_', '-')}"
            )
        files[name] = spec.origin
    return files


def _readable_paths(modules: Mapping[str, str]) -> list[str]:
    """Files and folders of the modules, their shared libraries and their metadata."""
    paths = []
    distributions = importlib.metadata.packages_distributions() if modules else {}
    for name, file in modules.items():
        origin = Path(file)
        path = origin.parent if origin.stem == "__init__" else origin
        # Wheels have their shared libraries in a folder of this name.
        paths += [path, path.with_name(f"{name}.libs")]
        for distribution in distributions.get(name, ()):
            version = importlib.metadata.version(distribution)
            stem = distribution.replace("-", "_")
            paths.append(path.with_name(f"{stem}-{version}.dist-info"))
    return [str(path) for path in paths if path.exists()]


def _bubblewrap(readable: Sequence[str]) -> list[str]:
    """The command that runs a worker in bubblewrap, without /proc."""
    words = [shutil.which("bwrap"), "--unshare-all", "--new-session", "--clearenv"]
    for name, value in _ENVIRONMENT.items():
        words += ["--setenv", name, value]
    words += ["--cap-drop", "ALL", "--hostname", "sandbox", "--chdir", "/"]
    words += ["--ro-bind", "/usr", "/usr"]
    # Some distributions have no /lib64, or no cache of the dynamic linker.
    for path in ("/lib", "/lib64", "/etc/ld.so.cache"):
        words += ["--ro-bind-try", path, path]
    prefix = str(Path(interpreter()).parent.parent)
    for path in (prefix, *readable):
        if not path.startswith("/usr"):
            words += ["--ro-bind", path, path]
    for path in ("/dev/null", "/dev/zero", "/dev/urandom"):
        words += ["--dev-bind", path, path]
    # The new root is a tmpfs: if writable, it would be a disk that the programs of one
    # worker share.
    return [*words, "--remount-ro", "/", "--"]


@functools.cache
def interpreter() -> str:
    """The path of a Python whose standard library the worker's user can read.

    Raises:
      SandboxUnavailable: if there is none; says what to change.
    """
    # The Python behind a virtual environment, whose packages programs must not see.
    base = os.path.realpath(sys._base_executable)
    candidates = [base, "/usr/bin/python3", "/usr/local/bin/python3"]
    if os.geteuid() != 0:
        return base
    for path in map(os.path.realpath, candidates):
        if os.path.exists(path) and _is_executable_by_all(path):
            return path
    raise SandboxUnavailable(
        f"{base} is in a folder that only root may enter, and programs do not run as "
        "root; install a system Python (/usr/bin/python3) or move this one to /opt"
    )


def _is_executable_by_all(path: str) -> bool:
    """Whether every user may enter the folders of `path` and execute it."""
    folders = [path, *map(str, Path(path).parents)]
    return all(os.stat(folder).st_mode & 0o001 for folder in folders)
