"""Serves requests of the trainer: every test is run in a fork of this process.

It confines itself first and then only ever loses rights: a fork drops what the worker
still may do (fork, signals, sockets) and reports over pipes of its own. What a fork
writes is passed on unread; `sandbox.py` judges it.

Limits: Linux. The kernel is trusted, and programs can tell time.
"""

import _sitebuiltins
import bisect  # noqa: F401
import builtins
import collections  # noqa: F401
import errno
import functools
import gc
import heapq  # noqa: F401
import importlib.util
import io
import itertools  # noqa: F401
import json
import os
import re  # noqa: F401
import select
import signal
import string  # noqa: F401
import struct
import sys
import time
import typing  # noqa: F401

from sdpo_jax.envs.isolation.worker.confinement import MAX_FILES, Confinement
from sdpo_jax.envs.isolation.worker.programs import solve

IDLE_POLL_MS = 5_000
CHEAP_CPU_S = 0.2  # Above this a fork per test costs nothing in comparison.


class Given:
    """Finds the modules that programs are given; their folders stay unsearched.

    Args:
      modules: name -> file.
    """

    def __init__(self, modules):
        self._modules = modules

    def find_spec(self, name, path=None, target=None):
        """How to import `name`; None for any other module."""
        if name in self._modules:
            return importlib.util.spec_from_file_location(name, self._modules[name])
        return None


def open_streams():
    """Standard streams over descriptors 0, 1 and 2, for the forks to inherit.

    The worker never uses them; opened in each fork they cost a quarter of a test.
    """
    for name, mode, fd in (("stdin", "r", 0), ("stdout", "w", 1), ("stderr", "w", 2)):
        raw = open(fd, mode + "b", closefd=False)
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape")
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def provide_standard_files():
    """Let a program open "/dev/stdin" where there is no /proc to lead it there."""
    names = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
    real = builtins.open

    @functools.wraps(real)
    def open_file(file, *arguments, **options):
        file = names.get(file, file) if type(file) is str else file
        return real(file, *arguments, **options)

    builtins.open = open_file


def run_fork(confinement, request, tests, fds):
    """The whole life of the process that runs `tests`; never returns."""
    stdin, stdout, report, confirm, devnull = fds
    write, leave = os.write, os._exit  # The program may replace them.
    try:
        for source, target in ((stdin, 0), (stdout, 1), (devnull, 2)):
            os.dup2(source, target)
        confinement.enter_test(request["limits"])
        os.write(confirm, b"!")
        os.closerange(3, report)
        os.closerange(report + 1, MAX_FILES)
        gc.enable()
        reports = [solve(request["program"], test) for test in tests]
        text = "\n".join(reports).encode("ascii", "replace")
        while text:
            text = text[write(report, text) :]
    finally:
        leave(0)


def cpu_seconds(pid):
    """CPU time of a process that has not been reaped."""
    return time.clock_gettime((~pid << 3) | 2)


class Watch:
    """Reads what one fork writes until it ends or spends a limit."""

    def __init__(self, pid, stdout, report, limits):
        self.pid, self.limits = pid, limits
        self.pidfd = os.pidfd_open(pid)
        self.written = {stdout: bytearray(), report: bytearray()}
        self.open = {stdout, report}
        self.poller = select.poll()
        for fd in (0, self.pidfd, stdout, report):
            self.poller.register(fd, select.POLLIN)

    def follow(self):
        """How it ended: "exit", "cpu", "wall" or "output"."""
        deadline = time.monotonic() + self.limits["wall_s"]
        while True:
            cpu_left = self.limits["cpu_s"] - cpu_seconds(self.pid)
            wall_left = deadline - time.monotonic()
            if cpu_left <= 0 or wall_left <= 0:
                return "cpu" if cpu_left <= 0 else "wall"
            ready = self.poller.poll(1 + 1000 * min(cpu_left, wall_left, 1.0))
            for fd, _ in ready:
                if fd in self.open and self._read(fd):
                    return "output"
            fds = [fd for fd, _ in ready]
            if 0 in fds:  # Nothing is sent before the answer: the trainer is gone.
                os.kill(self.pid, signal.SIGKILL)
                os._exit(0)
            if self.pidfd in fds:
                return "output" if any(map(self._drain, self.written)) else "exit"

    def _read(self, fd):
        """Read once; true when there is too much."""
        try:
            chunk = os.read(fd, 1 << 16)
        except BlockingIOError:  # The program may have read its own output.
            return False
        if not chunk:
            self.poller.unregister(fd)
            self.open.discard(fd)
        written, most = self.written[fd], self.limits["output_kb"] << 10
        written += chunk
        is_too_much = len(written) > most
        del written[most:]
        return is_too_much

    def _drain(self, fd):
        """Read what the ended fork has left; true when there is too much."""
        while fd in self.open:
            size = len(self.written[fd])
            if self._read(fd):
                return True
            if len(self.written[fd]) == size:
                break
        return False


def standard_input(text, devnull):
    """A descriptor that reads `text`; None reads as nothing."""
    if text is None:
        return os.dup(devnull)
    fd = os.memfd_create("stdin")
    text = memoryview(text.encode("utf-8", "surrogatepass"))
    while text:
        text = text[os.write(fd, text) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def kill_descendants():
    """End the processes that a fork without a filter has left behind."""
    path = f"/proc/self/task/{os.getpid()}/children"
    while True:
        with open(path) as file:
            pids = [int(pid) for pid in file.read().split()]
        if not pids:
            return
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def run_tests(confinement, request, tests, devnull):
    """Run tests in one fork; what it wrote, how it ended, what it cost."""
    stdin = standard_input(tests[0].get("stdin"), devnull)
    (out, out_w), (report, report_w), (confirm, confirm_w) = (os.pipe() for _ in "123")
    pid = os.fork()
    if pid == 0:
        fds = (stdin, out_w, report_w, confirm_w, devnull)
        run_fork(confinement, request, tests, fds)
    for fd in (stdin, out_w, report_w, confirm_w):
        os.close(fd)
    os.set_blocking(out, False)
    os.set_blocking(report, False)
    watch = Watch(pid, out, report, request["limits"])
    ended = watch.follow()
    os.kill(pid, signal.SIGKILL)  # A zombie takes it without harm.
    _, status, usage = os.wait4(pid, 0)
    if confinement.fork_filter is None:
        kill_descendants()
    confirmed = os.read(confirm, 1) == b"!"
    for fd in (out, report, confirm, watch.pidfd):
        os.close(fd)
    return {
        "ended": ended,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
        "confined": confirmed,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "stdout": watch.written[out].decode("utf-8", "replace"),
        "report": watch.written[report].decode("ascii", "replace"),
    }


def run_together(confinement, request, devnull):
    """Run all calls in one fork, if that tells them apart; None if it does not.

    A program that prints, crashes or is not cheap is left to one fork per test.
    """
    tests, limits = request["tests"], dict(request["limits"])
    if len(tests) < 2 or any("stdin" in test for test in tests):
        return None
    limits["cpu_s"] = min(limits["cpu_s"], CHEAP_CPU_S)
    record = run_tests(confinement, {**request, "limits": limits}, tests, devnull)
    reports = record["report"].split("\n")
    clean = record["ended"] == "exit" and not record["signal"] and not record["stdout"]
    if not clean or len(reports) != len(tests) or "MemoryError" in record["report"]:
        return None
    cpu_s = record["cpu_s"] / len(tests)
    return [{**record, "cpu_s": cpu_s, "report": report} for report in reports]


def run_program(confinement, request, devnull):
    """Run the tests in order; stop after one that spent a limit, if so asked."""
    if request["process_per"] == "program":
        together = run_together(confinement, request, devnull)
        if together is not None:
            return together
    executions = []
    for test in request["tests"]:
        executions.append(run_tests(confinement, request, [test], devnull))
        if request["stop_at_limit"] and executions[-1]["ended"] != "exit":
            break
    return executions


def read_exactly(size):
    """`size` bytes of standard input; exits at its end, or when orphaned."""
    parent, chunks = os.getppid(), bytearray()
    poller = select.poll()
    poller.register(0, select.POLLIN)
    while len(chunks) < size:
        if not poller.poll(IDLE_POLL_MS):
            # A fork of the trainer may hold the other end open for ever.
            if os.getppid() != parent:
                os._exit(0)
            continue
        chunk = os.read(0, min(size - len(chunks), 1 << 20))
        if not chunk:
            os._exit(0)
        chunks += chunk
    return bytes(chunks)


def send(message):
    """Write one message to the trainer: four bytes of length, then JSON."""
    text = json.dumps(message).encode()
    data = memoryview(struct.pack(">I", len(text)) + text)
    while data:
        data = data[os.write(1, data) :]


def main():
    """Confine, say so, and serve until standard input ends."""
    devnull = os.open(os.devnull, os.O_RDWR)
    # Without `site`, which would read the host's packages, these are missing.
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
    try:
        if sys.version_info < (3, 10):  # noqa: UP036 - not the Python of the trainer.
            raise OSError(errno.ENOSYS, f"needs Python 3.10, this is {sys.version}")
        setup = json.loads(sys.argv[2])
        if setup["readable"] and setup["cache_tag"] != sys.implementation.cache_tag:
            raise OSError(
                errno.ENOEXEC,
                f"{setup['readable'][0]} is for {setup['cache_tag']}, and programs run "
                f"in {sys.executable}, which is {sys.implementation.cache_tag}",
            )
        sys.meta_path.append(Given(setup["modules"]))
        # Some modules look for versions there.
        search, sys.path = sys.path, sys.path + setup["search"]
        exec(setup["prepare"], {})
        sys.path = search
        confinement = Confinement(setup)
        confinement.enter_worker()
    except (OSError, ImportError) as error:
        send({"refused": str(error)})
        return
    open_streams()
    if not os.path.exists("/dev/stdin"):
        provide_standard_files()
    gc.collect()
    gc.freeze()
    gc.disable()
    send({"landlock_abi": confinement.landlock_abi})
    while True:
        (size,) = struct.unpack(">I", read_exactly(4))
        request = json.loads(read_exactly(size))
        send({"executions": run_program(confinement, request, devnull)})
