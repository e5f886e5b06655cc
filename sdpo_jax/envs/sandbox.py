"""Runs untrusted Python programs in confined processes and reports what they did.

Expected outputs never come here: a program is given its inputs, and the caller
compares what comes back. Each worker process (`sandbox_worker.py`) is started afresh,
never forked from the trainer; it runs every test in a fork of its own clean state.

Tiers, best first; "auto" takes the first whose workers stop an escaping program:
  B  bubblewrap namespaces around everything that C does (landlock where present)
  C  landlock, seccomp, resource limits and, for root, a user of its own
  D  resource limits only: no sandbox, must be asked for by name

Programs can read the standard library and nothing else, write no file, start threads
but no process, and have no network. Linux only.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import queue
import re
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo_jax.envs.base import GraderFailure

STATUSES = (
    "ok",  # The call returned, or the script ended.
    "error",
    "time_limit",
    "memory_limit",
    "output_limit",
    "skipped",  # A test before it spent a limit.
)
MAX_DEPTH = 100  # Nesting of a returned value.
START_S = 30.0
WALL_PER_CPU = 5.0
FIRST_UID = 60_000  # One user per worker, so that their process limits are apart.
CREDENTIALS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS")

_WORKER = Path(__file__).with_name("sandbox_worker.py")
_BOOTSTRAP = (
    "import sys; sys.path.pop(0); "
    "exec(compile(sys.stdin.buffer.read(int(sys.argv[1])), 'worker.py', 'exec'))"
)
# `-I` is spelled out, because it would ignore the seed: sets of strings must come in
# the same order in every run. The environment holds nothing else.
_FLAGS = ("-s", "-S", "-B", "-X", "utf8")
_ENVIRONMENT = {"PYTHONHASHSEED": "0"}

# Tries what no program may do and returns the names of what worked.
_CANARY = """
import ctypes, os, resource, socket, threading

def escapes(secret, folder):
    libc = ctypes.CDLL(None, use_errno=True)
    def call(function, *arguments):
        if function(*arguments) < 0:
            raise OSError(ctypes.get_errno(), function.__name__)
    def fork():
        if os.fork() == 0:
            os._exit(0)
    def replace():
        try:
            os.execv("/nonexistent", ["x"])
        except FileNotFoundError:
            pass
    def be_root():
        if os.getuid():
            raise OSError
    parent = os.getppid()
    attempts = {
        "read a file": lambda: open(secret).close(),
        "write a file": lambda: open(os.path.join(folder, "x"), "w").close(),
        "list a folder": lambda: os.listdir(folder),
        "open a socket": lambda: socket.socket().close(),
        "start a process": fork,
        "become another program": replace,
        "signal its worker": lambda: os.kill(parent, 0),
        "limit its worker": lambda: resource.prlimit(parent, resource.RLIMIT_CORE),
        "trace its worker": lambda: call(libc.ptrace, 16, parent, None, None),
        "use its worker's pipes": lambda: os.open(f"/proc/{parent}/fd/1", 1),
        "make a memory file": lambda: os.memfd_create("x"),
        "be root": be_root,
    }
    found = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except (OSError, AttributeError):
            continue
        found.append(name)
    thread = threading.Thread(target=found.append, args=("",))
    thread.start()
    thread.join()
    return [name for name in found if name]
"""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one test may spend.

    Args:
      cpu_s: processor seconds, which decide the time-limit verdict.
      wall_s: seconds on the clock, a backstop for programs that wait; well above
        `cpu_s`, because a busy machine stretches them. None for five times `cpu_s`.
      memory_mb: address space in MiB.
      output_kb: KiB of standard output, and of the returned value.
      processes: threads; enforced when the trainer is root.
      open_files: file descriptors.
    """

    cpu_s: float = 6.0
    wall_s: float | None = None
    memory_mb: int = 1024
    output_kb: int = 1024
    processes: int = 64
    open_files: int = 32

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"Limits.{name} must be positive, got {value}")
        if self.wall_s is not None and self.wall_s < self.cpu_s:
            raise ValueError(
                f"Limits.wall_s ({self.wall_s}) must not be below cpu_s "
                f"({self.cpu_s}); raise wall_s"
            )

    def as_message(self, cpu_s: float | None = None) -> dict[str, float]:
        """What a worker is told; `cpu_s` moves both time limits in proportion."""
        message = dataclasses.asdict(self)
        message["cpu_s"] = self.cpu_s if cpu_s is None else cpu_s
        stretch = (self.wall_s or WALL_PER_CPU * self.cpu_s) / self.cpu_s
        message["wall_s"] = stretch * message["cpu_s"]
        return message


@dataclasses.dataclass(frozen=True)
class Packages:
    """Modules beyond the standard library, for programs of our own.

    Args:
      folders: where they lie; every program can read and import all in them.
      prepare: source, trusted, that each worker runs before it confines itself, so
        that its forks find modules imported.
    """

    folders: Sequence[str] = ()
    prepare: str = ""


@dataclasses.dataclass(frozen=True)
class Call:
    """A test that calls a function of the program.

    Args:
      function: a function of the program, or a method of its class `Solution`.
      arguments: JSON values, by position or by name.
    """

    function: str
    arguments: Sequence[Any] | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Stdin:
    """A test that runs the program as a script.

    Args:
      text: what the script reads from standard input.
    """

    text: str


@dataclasses.dataclass(frozen=True)
class Execution:
    """What one test of one program did; everything in it is untrusted text.

    Args:
      status: one of `STATUSES`.
      stdout: what was printed.
      result: what the called function returned, as JSON gives it back.
      error_type: name of the exception.
      error_message: its message.
      error_line: line of the program it came from, from 1; None if unknown.
      error_function: function of the program that it came from.
      error_source: that line.
      cpu_s: processor seconds spent.
    """

    status: str
    stdout: str = ""
    result: Any = None
    error_type: str = ""
    error_message: str = ""
    error_line: int | None = None
    error_function: str = ""
    error_source: str = ""
    cpu_s: float = 0.0


class SandboxUnavailable(RuntimeError):
    """No tier that was allowed works on this machine."""


class Sandbox:
    """A set of confined workers; `run` may be called from any number of threads.

    Args:
      limits: what each test may spend.
      tier: "auto", "B", "C" or "D"; see the head of this file.
      workers: programs run at the same time; None for one per processor.
      process_per: "test" gives every test a process of its own. "program" lets the
        calls of a cheap, silent program share one, each with freshly run top level:
        two to three times as fast, but what a program does to other modules lasts
        from one of its calls to the next.
      packages: what programs can import beside the standard library.

    Raises:
      SandboxUnavailable: if no allowed tier works here; it says what to change.
    """

    def __init__(
        self,
        limits: Limits = Limits(),  # noqa: B008
        tier: str = "auto",
        workers: int | None = None,
        process_per: str = "test",
        packages: Packages = Packages(),  # noqa: B008
    ):
        if process_per not in ("test", "program"):
            raise ValueError(
                f'process_per must be "test" or "program", got {process_per!r}'
            )
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.limits = limits
        self.process_per = process_per
        self._count = workers or len(os.sched_getaffinity(0))
        self._lock = threading.Lock()
        self._wall_retries = 0
        self._closed = False
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._packages = packages
        self._tier, first = _first_that_holds(tier, packages)
        self._free.put(first)
        for slot in range(1, self._count):
            self._free.put(_Worker(self._tier, slot, packages))

    @property
    def tier(self) -> str:
        """The tier in use: "B", "C" or "D"."""
        return self._tier

    @property
    def wall_retries(self) -> int:
        """Tests so far that met `wall_s` before `cpu_s` and were run once more."""
        return self._wall_retries

    def run(
        self,
        program: str,
        tests: Sequence[Call | Stdin],
        *,
        cpu_s: float | None = None,
        stop_at_limit: bool = True,
    ) -> list[Execution]:
        """Run `program` on every test, each in a fresh process.

        Args:
          program: Python source, untrusted.
          tests: the inputs.
          cpu_s: instead of `limits.cpu_s`; the clock's limit moves in proportion.
          stop_at_limit: skip the tests after one that spent a limit.

        Returns:
          One execution per test, in order.

        Raises:
          GraderFailure: if a worker died twice; the program is not to blame.
        """
        limits = self.limits.as_message(cpu_s)
        request = {
            "program": program,
            "tests": [_as_message(test) for test in tests],
            "limits": limits,
            "stop_at_limit": stop_at_limit,
            "process_per": self.process_per,
        }
        records = self._exchange(request)
        if any(record["ended"] == "wall" for record in records):
            with self._lock:
                self._wall_retries += 1
            records = self._exchange(request)
        executions = [
            _judge(record, test, limits["cpu_s"])
            for record, test in zip(records, tests, strict=False)
        ]
        skipped = len(tests) - len(executions)
        return executions + [Execution("skipped")] * skipped

    def close(self) -> None:
        """End every worker; idempotent. Calls in progress end theirs."""
        self._closed = True
        idle = []
        with contextlib.suppress(queue.Empty):
            while True:
                idle.append(self._free.get_nowait())
        for worker in idle:
            worker.close()
            # A call that waits for a worker must wake up and see that it is over.
            self._free.put(worker)

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _exchange(self, request: dict) -> list[dict]:
        """Have some worker answer; a fresh one if it dies at the first attempt."""
        worker = self._free.get()
        if self._closed:
            self._free.put(worker)
            raise ValueError("the sandbox is closed; make a new one")
        try:
            try:
                return worker.exchange(request)
            except GraderFailure as failure:
                logger.warning("sandbox worker failed (%s); trying once more", failure)
            worker.close()
            worker = _Worker(self._tier, worker.slot, self._packages)
            return worker.exchange(request)
        except BaseException:
            # Whatever it was (also Ctrl-C), the pipe may be in mid-message.
            worker.close()
            worker = _Worker(self._tier, worker.slot, self._packages)
            raise
        finally:
            if self._closed:
                worker.close()
            self._free.put(worker)


class _Worker:
    """One worker process and the two pipes to it."""

    def __init__(self, tier: str, slot: int, packages: Packages):
        self.slot = slot
        self._ready = False
        source = _worker_source()
        user = {}
        if os.geteuid() == 0:
            uid = FIRST_UID + slot
            user = {"user": uid, "group": uid, "extra_groups": []}
        try:
            self._process = subprocess.Popen(
                _command(tier, len(source), packages),
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
            raise SandboxUnavailable(f"cannot start a worker: {error}") from error
        # A worker that died at once is reported by the first wait for it.
        with contextlib.suppress(GraderFailure):
            self._write(source)

    def exchange(self, request: dict) -> list[dict]:
        """Send one request and wait for its answer."""
        self.wait_until_ready()
        limits = request["limits"]
        text = json.dumps(request).encode()
        self._write(struct.pack(">I", len(text)) + text)
        # Escaped as JSON, a byte of output is at most six long.
        most = len(request["tests"]) * (12 * limits["output_kb"] * 1024 + 4096) + 4096
        wait_s = START_S + len(request["tests"]) * (limits["wall_s"] + 1.0)
        records = self._read(most, wait_s)["executions"]
        if any(r["ended"] == "exit" and not r["confined"] for r in records):
            raise GraderFailure("a sandbox worker could not confine a test")
        return records

    def wait_until_ready(self) -> None:
        """Wait until the worker has confined itself.

        Raises:
          GraderFailure: if it could not; says why.
        """
        if self._ready:
            return
        try:
            answer = self._read(4096, START_S)
        except GraderFailure as failure:
            self._process.kill()
            said = self._process.stderr.read().decode("utf-8", "replace").strip()
            raise GraderFailure(f"{failure}: {said[-500:]}") from failure
        if "refused" in answer:
            raise GraderFailure(
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

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._process.stdin.write(view) :]
        except (BrokenPipeError, ValueError) as error:
            raise GraderFailure("a sandbox worker died") from error

    def _read(self, most: int, wait_s: float) -> dict:
        """One message, of at most `most` bytes."""
        deadline = time.monotonic() + wait_s
        (size,) = struct.unpack(">I", self._read_exactly(4, deadline))
        if size > most:
            raise GraderFailure(f"a sandbox worker sent {size} bytes, {most} allowed")
        return json.loads(self._read_exactly(size, deadline))

    def _read_exactly(self, size: int, deadline: float) -> bytes:
        stream, data = self._process.stdout, bytearray()
        poller = select.poll()
        try:
            poller.register(stream, select.POLLIN)
        except ValueError as error:
            raise GraderFailure("the sandbox was closed in mid-run") from error
        while len(data) < size:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not poller.poll(1000 * left_s):
                raise GraderFailure("a sandbox worker did not answer in time")
            chunk = stream.read(min(size - len(data), 1 << 20))
            if not chunk:
                raise GraderFailure("a sandbox worker died")
            data += chunk
        return bytes(data)


@functools.cache
def _worker_source() -> bytes:
    return _WORKER.read_bytes()


def _first_that_holds(tier: str, packages: Packages) -> tuple[str, _Worker]:
    """The best allowed tier that stops the canary, and its first worker."""
    if tier not in ("auto", "B", "C", "D"):
        raise ValueError(f'tier must be "auto", "B", "C" or "D", got {tier!r}')
    if sys.platform != "linux":
        raise SandboxUnavailable(
            f"the sandbox needs Linux, this is {sys.platform}; run in a Linux container"
        )
    if tier == "D":
        _refuse_unsafe_limits_only()
        return "D", _Worker("D", 0, packages)
    reasons = []
    for candidate in ("B", "C") if tier == "auto" else (tier,):
        if candidate == "B" and shutil.which("bwrap") is None:
            reasons.append("tier B: bwrap is not installed")
            continue
        worker = None
        try:
            worker = _Worker(candidate, 0, packages)
            found = _probe(worker)
        except (GraderFailure, SandboxUnavailable) as failure:
            found = [str(failure)]
        if not found:
            _announce(candidate)
            return candidate, worker
        if worker is not None:
            worker.close()
        reasons.append(f"tier {candidate}: {', '.join(found)}")
    raise SandboxUnavailable(
        "no sandbox holds on this machine (" + "; ".join(reasons) + "). Install "
        "bubblewrap, or use a kernel with landlock (5.13 or later), or, only where "
        'nothing of value is in reach, pass tier="D"'
    )


def _refuse_unsafe_limits_only() -> None:
    present = [name for name in CREDENTIALS if name in os.environ]
    if os.geteuid() == 0 and present:
        raise SandboxUnavailable(
            f'tier "D" isolates nothing and is refused for root with {present[0]} set; '
            "unset it, or run as another user"
        )
    logger.warning(
        "SANDBOX TIER D: resource limits only. Model-written programs can read this "
        "user's files and use the network."
    )


@functools.cache
def _announce(tier: str) -> None:
    """Say once which tier runs."""
    if tier == "C":
        logger.warning(
            "SANDBOX TIER C: landlock and seccomp, no namespaces. Install bubblewrap "
            "for a second wall."
        )
    else:
        logger.info("sandbox tier %s", tier)


def _probe(worker: _Worker) -> list[str]:
    """What an escaping program gets away with; empty when it is held."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        secret = os.path.join(folder, "secret")
        Path(secret).write_text("x")
        os.chmod(secret, 0o644)
        call = Call("escapes", [secret, folder])
        limits = Limits().as_message()
        request = {
            "program": _CANARY,
            "tests": [_as_message(call)],
            "limits": limits,
            "stop_at_limit": True,
            "process_per": "test",
        }
        (record,) = worker.exchange(request)
        execution = _judge(record, call, limits["cpu_s"])
        written = os.listdir(folder) != ["secret"]
    if execution.status != "ok":
        return [f"{execution.error_type}: {execution.error_message}"]
    return [f"can {name}" for name in execution.result] + ["wrote a file"] * written


def _command(tier: str, source_size: int, packages: Packages) -> list[str]:
    """The command line of a worker."""
    setup = {
        "landlock": {"B": "if_present", "C": "required", "D": "off"}[tier],
        "seccomp": tier != "D",
        "drops_uid": os.geteuid() == 0,
        "packages": list(packages.folders),
        "prepare": packages.prepare,
    }
    command = [_interpreter(), *_FLAGS, "-c", _BOOTSTRAP, str(source_size)]
    command.append(json.dumps(setup))
    return _bubblewrap(packages) + command if tier == "B" else command


def _bubblewrap(packages: Packages) -> list[str]:
    """Bubblewrap's part of a worker's command line; there is no /proc inside."""
    words = [shutil.which("bwrap"), "--unshare-all", "--new-session", "--clearenv"]
    for name, value in _ENVIRONMENT.items():
        words += ["--setenv", name, value]
    words += ["--cap-drop", "ALL", "--hostname", "sandbox", "--chdir", "/"]
    words += ["--ro-bind", "/usr", "/usr"]
    for path in ("/lib", "/lib64", "/etc/ld.so.cache"):
        words += ["--ro-bind-try", path, path]
    prefix = str(Path(_interpreter()).parent.parent)
    for path in (prefix, *packages.folders):
        if not path.startswith("/usr"):
            words += ["--ro-bind", path, path]
    for path in ("/dev/null", "/dev/zero", "/dev/urandom"):
        words += ["--dev-bind", path, path]
    return [*words, "--remount-ro", "/", "--"]


@functools.cache
def _interpreter() -> str:
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


def _as_message(test: Call | Stdin) -> dict:
    if isinstance(test, Stdin):
        return {"stdin": test.text}
    arguments = test.arguments
    if not isinstance(arguments, Mapping):
        arguments = list(arguments)
    return {"function": test.function, "arguments": arguments}


def _judge(record: dict, test: Call | Stdin, cpu_limit_s: float) -> Execution:
    """Turn what a worker saw into an execution."""
    seen = {"stdout": record["stdout"], "cpu_s": record["cpu_s"]}
    if record["ended"] == "output":
        return Execution("output_limit", **seen)
    if record["ended"] in ("cpu", "wall") or record["cpu_s"] >= cpu_limit_s:
        return Execution("time_limit", **seen)
    if record["signal"] == 9:  # No program can send this; the kernel is out of memory.
        return Execution("memory_limit", **seen)
    if record["signal"]:
        message = f"the interpreter crashed with signal {record['signal']}"
        return _error(seen, "Crash", message)
    if record["report"]:
        return _read_report(record["report"], seen)
    if isinstance(test, Call):
        return _error(seen, "SystemExit", f"the program ended inside {test.function}")
    return Execution("ok", **seen)


def _error(seen: dict, kind: str, message: str) -> Execution:
    return Execution("error", error_type=kind, error_message=message, **seen)


def _read_report(report: str, seen: dict) -> Execution:
    """Read what a test says of itself; a test may have written anything here."""
    try:
        if _depth(report) > MAX_DEPTH:
            return _error(seen, "ValueError", f"nested deeper than {MAX_DEPTH} levels")
        said = json.loads(report)
    except (ValueError, RecursionError) as error:
        return _error(seen, "ValueError", f"the result is not JSON: {error}")
    if isinstance(said, dict) and "result" in said:
        return Execution("ok", result=said["result"], **seen)
    error = said.get("error") if isinstance(said, dict) else None
    if not isinstance(error, dict):
        return _error(seen, "ValueError", "the result is not JSON")
    line = error.get("line")
    kind = str(error.get("type", ""))
    return Execution(
        status="memory_limit" if kind == "MemoryError" else "error",
        error_type=kind,
        error_message=str(error.get("message", "")),
        error_line=line if type(line) is int and 0 < line < 1 << 31 else None,
        error_function=str(error.get("function", "")),
        error_source=str(error.get("source", "")),
        **seen,
    )


def _depth(text: str) -> int:
    """Nesting of brackets in JSON text, strings left out."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", re.sub(r'"(?:[^"\\]|\\.)*"', "", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest
