"""One confined process that runs programs, and the two pipes to it."""

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

from sdpo_jax.sandbox import control_groups
from sdpo_jax.sandbox.values import (
    START_S,
    Limits,
    Packages,
    SandboxFailure,
    SandboxUnavailable,
)
from sdpo_jax.sandbox.worker.pipes import ENDINGS, RECORD

# One user per worker, so that their process limits are apart; and those of trainers.
FIRST_UID, NUM_UIDS = 60_000, 5_000

# The files of a worker, in the order of their imports.
_WORKER = (
    *("kernel", "seccomp", "confinement"),
    *("programs", "semaphores", "pipes", "serve"),
)
# They are modules there as they are here; nothing else of this package is.
_BOOTSTRAP = """
import json, sys, types
sys.path.pop(0)
for name, source in json.loads(sys.stdin.buffer.read(int(sys.argv[1]))).items():
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)
module.main()
"""
# `-I` is spelled out, because it would ignore the seed: sets of strings must come in
# the same order in every run. The environment holds nothing else.
_FLAGS = ("-s", "-S", "-B", "-X", "utf8")
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}
_numbers = itertools.count()


class Worker:
    """One worker process and the two pipes to it.

    Args:
      tier: "A", "B", "C" or "D".
      limits: of its programs.
      packages: what its programs can import.

    Raises:
      SandboxUnavailable: if it cannot be started.
    """

    def __init__(self, tier: str, limits: Limits, packages: Packages):
        self._ready, self._unread = False, bytearray()
        source = _worker_source()
        command = _command(tier, len(source), packages)
        number, user = next(_numbers), {}
        if os.geteuid() == 0:
            uid = FIRST_UID + (NUM_UIDS // 64 * os.getpid() + number) % NUM_UIDS
            user = {"user": uid, "group": uid, "extra_groups": []}
        self._group = _group(number, limits) if tier == "A" else None
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd="/",
                env=_ENVIRONMENT,
                start_new_session=True,
                **user,
            )
        except (OSError, subprocess.SubprocessError) as error:
            self._leave_group()
            raise SandboxUnavailable(f"cannot start a worker: {error}") from error
        # It does nothing before it has read its source, and is bound by then. One that
        # died at once is reported by the first wait for it.
        with contextlib.suppress(SandboxFailure, ProcessLookupError):
            if self._group is not None:
                self._group.add(self._process.pid)
            self._write(source)

    def exchange(self, request: dict) -> list[dict]:
        """Send one request and wait for its answer."""
        self.wait_until_ready()
        self._write(_framed(request))
        limits, records = request["limits"], []
        wait_s = START_S + 2 * limits["wall_s"]
        while record := self._read_record(limits["output_kb"] << 10, wait_s):
            records.append(record)
            if len(records) > len(request["tests"]):
                raise SandboxFailure("a sandbox worker sent too many records")
        if any(r["ended"] == "exit" and not r["confined"] for r in records):
            raise SandboxFailure("a sandbox worker could not confine a test")
        return records

    def wait_until_ready(self) -> None:
        """Wait until the worker has confined itself.

        Raises:
          SandboxFailure: if it could not; says why.
        """
        if self._ready:
            return
        try:
            answer = self._read(4096, START_S)
        except SandboxFailure as failure:
            self._process.kill()
            said = self._process.stderr.read().decode("utf-8", "replace").strip()
            raise SandboxFailure(f"{failure}: {said[-500:]}") from failure
        if "refused" in answer:
            raise SandboxFailure(
                f"the worker cannot confine itself: {answer['refused']}"
            )
        self._ready = True

    def close(self) -> None:
        """End the process and reap it; idempotent."""
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            pipe.close()
        try:
            self._process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._leave_group()

    def is_bound(self) -> bool:
        """Whether a control group holds it, as tier A promises."""
        return self._group is not None and self._group.holds_processes()

    def _leave_group(self) -> None:
        if self._group is not None:
            self._group.close()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._process.stdin.write(view) :]
        except (BrokenPipeError, ValueError) as error:
            raise SandboxFailure("a sandbox worker died") from error

    def _read(self, most: int, wait_s: float) -> dict:
        """One message, of at most `most` bytes."""
        deadline = time.monotonic() + wait_s
        (size,) = struct.unpack(">I", self._read_exactly(4, deadline))
        if size > most:
            raise SandboxFailure(f"a sandbox worker sent {size} bytes, {most} allowed")
        return json.loads(self._read_exactly(size, deadline))

    def _read_record(self, most: int, wait_s: float) -> dict | None:
        """What a worker saw of one test; None when that was the last."""
        deadline = time.monotonic() + wait_s
        head = RECORD.unpack(self._read_exactly(RECORD.size, deadline))
        ended, signal, confined, cpu_s, *sizes = head
        if max(sizes) > most:
            raise SandboxFailure(f"a sandbox worker sent {sizes} bytes, {most} allowed")
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
        try:
            poller.register(self._process.stdout, select.POLLIN)
        except ValueError as error:
            raise SandboxFailure("the sandbox was closed in mid-run") from error
        return bool(poller.poll(1000 * wait_s))


def _framed(request: dict) -> bytes:
    """A request as a worker reads it: what it needs to know, then what forks decode."""
    program, *texts = (
        text.encode("utf-8", "surrogatepass")
        for text in (request["program"], *map(_as_text, request["tests"]))
    )
    calls = ["function" in test for test in request["tests"]]
    header = {
        **request,
        "program": len(program),
        "tests": list(zip(calls, map(len, texts), strict=True)),
    }
    start = json.dumps(header).encode()
    return b"".join((struct.pack(">I", len(start)), start, program, *texts))


def _as_text(test: dict) -> str:
    return json.dumps(test) if "function" in test else test["stdin"]


@functools.cache
def _worker_source() -> bytes:
    """The worker's modules, name -> text."""
    package = f"{__package__}.worker"
    folder = Path(__file__).with_name("worker")
    sources = {package: ""}
    for name in _WORKER:
        sources[f"{package}.{name}"] = (folder / f"{name}.py").read_text()
    return json.dumps(sources).encode()


def _group(number: int, limits: Limits) -> control_groups.Group:
    try:
        folders = control_groups.folders()
        return control_groups.Group(number, limits.memory_mb, limits.processes, folders)
    except OSError as error:
        raise SandboxUnavailable(f"no control group: {error}") from error


def _command(tier: str, source_size: int, packages: Packages) -> list[str]:
    """The command line of a worker."""
    modules = _origins(packages)
    readable = _readable(modules)
    setup = {
        "landlock": {"C": "required", "D": "off"}.get(tier, "if_present"),
        "seccomp": tier != "D",
        "drops_uid": os.geteuid() == 0,
        "cache_tag": sys.implementation.cache_tag,
        "modules": modules,
        "readable": readable,
        "search": sorted({str(Path(path).parent) for path in readable}),
        "prepare": packages.prepare,
    }
    command = [interpreter(), *_FLAGS, "-c", _BOOTSTRAP, str(source_size)]
    command.append(json.dumps(setup))
    return _bubblewrap(readable) + command if tier in ("A", "B") else command


def _origins(packages: Packages) -> dict[str, str]:
    """Module -> the file that an import of it runs."""
    found = {}
    for name in packages.modules:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.origin:
            raise SandboxUnavailable(
                f"programs are given the module {name}, which is not installed here: "
                f"pip install {name.replace('_', '-')}"
            )
        found[name] = spec.origin
    return found


def _readable(modules: Mapping[str, str]) -> list[str]:
    """What holds the modules, their libraries, and what says their versions."""
    found = []
    distributions = importlib.metadata.packages_distributions() if modules else {}
    for name, file in modules.items():
        origin = Path(file)
        path = origin.parent if origin.stem == "__init__" else origin
        found += [path, path.with_name(f"{name}.libs")]
        for distribution in distributions.get(name, ()):
            version = importlib.metadata.version(distribution)
            stem = distribution.replace("-", "_")
            found.append(path.with_name(f"{stem}-{version}.dist-info"))
    return [str(path) for path in found if path.exists()]


def _bubblewrap(readable: Sequence[str]) -> list[str]:
    """Bubblewrap's part of a worker's command line; there is no /proc inside."""
    words = [shutil.which("bwrap"), "--unshare-all", "--new-session", "--clearenv"]
    for name, value in _ENVIRONMENT.items():
        words += ["--setenv", name, value]
    words += ["--cap-drop", "ALL", "--hostname", "sandbox", "--chdir", "/"]
    words += ["--ro-bind", "/usr", "/usr"]
    for path in ("/lib", "/lib64", "/etc/ld.so.cache"):
        words += ["--ro-bind-try", path, path]
    prefix = str(Path(interpreter()).parent.parent)
    for path in (prefix, *readable):
        if not path.startswith("/usr"):
            words += ["--ro-bind", path, path]
    for path in ("/dev/null", "/dev/zero", "/dev/urandom"):
        words += ["--dev-bind", path, path]
    return [*words, "--remount-ro", "/", "--"]


@functools.cache
def interpreter() -> str:
    """A Python whose standard library the worker's user can read."""
    base = os.path.realpath(sys._base_executable)
    candidates = [base, "/usr/bin/python3", "/usr/local/bin/python3"]
    if os.geteuid() != 0:
        return base
    for path in map(os.path.realpath, candidates):
        if os.path.exists(path) and _open_to_all(path):
            return path
    raise SandboxUnavailable(
        f"{base} lies in a folder that only root may enter, and programs do not run as "
        "root; install a system Python (/usr/bin/python3) or move this one to /opt"
    )


def _open_to_all(path: str) -> bool:
    """Whether every user may run `path`."""
    folders = [path, *map(str, Path(path).parents)]
    return all(os.stat(folder).st_mode & 0o001 for folder in folders)
