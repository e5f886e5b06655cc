"""Serves requests of the trainer: every test is run in a fork of this process.

It confines itself first and then only ever loses rights: a fork drops what the worker
still may do (fork, signals, sockets) and reports over pipes of its own. What a fork
writes is passed on unread; `records.py` reads it, in the trainer.

Limits: Linux. The kernel is trusted, and programs can tell time.
"""

import _multiprocessing
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
import sys
import time
import typing  # noqa: F401

from sdpo_jax.sandbox.worker.confinement import MAX_FILES, Confinement
from sdpo_jax.sandbox.worker.pipes import Answers, Output, Request, send, write_all
from sdpo_jax.sandbox.worker.programs import FILENAME, solve
from sdpo_jax.sandbox.worker.semaphores import SemLock

CHEAP_CPU_S = 0.2  # Above this a fork per test costs nothing in comparison.
RECURSION = 1_000 + 16  # The worker is that deep when it calls a program.


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


def restore_signals():
    """Forget what the trainer was told to ignore, as jobs in the background are."""
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def open_streams(devnull):
    """Standard streams over descriptors 0, 1 and 2, for the forks to inherit.

    The worker never uses them; opened in each fork they cost a quarter of a test.
    """
    requests = os.dup(0)
    os.dup2(devnull, 0)  # Streams ask once whether they can seek; a test's input can.
    for name, mode, fd in (("stdin", "r", 0), ("stdout", "w", 1), ("stderr", "w", 2)):
        raw = open(fd, mode + "b", closefd=False)
        raw.raw.name = f"<{name}>"
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape")
        stream.mode = mode
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.dup2(requests, 0)
    os.close(requests)


def provide_standard_files():
    """Let a program open "/dev/stdin" where there is no /proc to lead it there."""
    names = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
    real = builtins.open

    @functools.wraps(real)
    def open_file(file, *arguments, **options):
        if isinstance(file, (str, os.PathLike)):
            file = names.get(os.fspath(file), file)
        return real(file, *arguments, **options)

    builtins.open = io.open = open_file


def standard_input(text):
    """Make `text` the standard input of this process."""
    fd = os.memfd_create("stdin")
    write_all(fd, text)
    os.lseek(fd, 0, os.SEEK_SET)
    os.dup2(fd, 0)


# What `json.loads` ends in: a fork copies each page of memory that it touches.
scan_json = json.JSONDecoder().scan_once


def decoded(text):
    """The JSON value of ASCII bytes."""
    return scan_json(text.decode("ascii"), 0)[0]


def run_fork(confinement, bounds, request, tests, fds):
    """The whole life of the process that runs `tests`; never returns."""
    stdout, report, confirm, devnull = fds
    write, leave = os.write, os._exit  # The program may replace them.
    try:
        program = request.program.decode("utf-8", "surrogatepass")
        calls = [decoded(text) if is_call else None for is_call, text in tests]
        for source, target in ((devnull, 0), (stdout, 1), (devnull, 2)):
            os.dup2(source, target)
        if calls == [None]:
            standard_input(tests[0][1])
        confinement.enter_test(bounds)
        os.write(confirm, b"!")
        os.closerange(3, report)
        os.closerange(report + 1, MAX_FILES)
        gc.enable()
        text = "\n".join(solve(program, call) for call in calls)
        text = text.encode("ascii", "replace")
        while text:
            text = text[write(report, text) :]
    finally:
        leave(0)


def cpu_seconds(pid):
    """CPU time of a process that has not been reaped."""
    return time.clock_gettime((~pid << 3) | 2)


class Watch:
    """Reads what one fork writes until it ends or spends a limit."""

    def __init__(self, pid, limits, outputs):
        self.pid, self.limits = pid, limits
        self.pidfd = os.pidfd_open(pid)
        self.outputs = {output.fd: output for output in outputs}
        self.poller = select.poll()
        for fd in (0, self.pidfd, *self.outputs):
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
            fds = [fd for fd, _ in ready]
            for fd in fds:
                if fd in self.outputs and self._read(self.outputs[fd]):
                    return "output"
            if 0 in fds:  # Nothing is sent before the answer: the trainer is gone.
                os.kill(self.pid, signal.SIGKILL)
                os._exit(0)
            if self.pidfd in fds:
                too_much = any(output.drain() for output in self.outputs.values())
                return "output" if too_much else "exit"

    def _read(self, output):
        """Read once; true when there is too much."""
        is_too_much = output.read()
        if not output.is_open:
            self.poller.unregister(output.fd)
        return is_too_much


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


class Server:
    """Answers one request after another."""

    def __init__(self, confinement, devnull):
        self._confinement, self._devnull = confinement, devnull
        self._stdout, self._report, self._answers = Output(), Output(), Answers()

    def answer(self, request):
        """Run the tests in order; stop after one that spent a limit, if so asked."""
        if request.process_per == "test" or not self._run_together(request):
            for test in request.tests:
                record = self._run(request, request.limits, [test])
                views = {"stdout": self._stdout.view(), "report": self._report.view()}
                self._answers.add(**record, **views)
                self._clear()
                if request.stop_at_limit and record["ended"] != "exit":
                    break
        self._answers.add("none")
        self._answers.send()
        request.wipe()

    def _run_together(self, request):
        """Run all calls in one fork; false if that does not tell them apart.

        A program that prints, crashes or is not cheap is left to one fork per test.
        """
        if len(request.tests) < 2 or not all(is_call for is_call, _ in request.tests):
            return False
        limits = dict(request.limits)
        limits["cpu_s"] = min(limits["cpu_s"], CHEAP_CPU_S)
        record = self._run(request, limits, request.tests)
        reports = list(self._report.lines())
        is_clean = (
            record["ended"] == "exit"
            and not record["signal"]
            and not self._stdout.view()
            and len(reports) == len(request.tests)
            and not self._report.holds(b"MemoryError")
        )
        if is_clean:
            record["cpu_s"] /= len(reports)
            for report in reports:
                self._answers.add(**record, report=report)
        self._clear()
        return is_clean

    def _clear(self):
        self._stdout.clear()
        self._report.clear()

    def _run(self, request, limits, tests):
        """Run tests in one fork; how it ended, and what it cost."""
        (out, out_w), (report, report_w), (confirm, confirm_w) = (
            os.pipe() for _ in "123"
        )
        bounds = self._confinement.bounds(limits)
        pid = os.fork()
        if pid == 0:
            fds = (out_w, report_w, confirm_w, self._devnull)
            run_fork(self._confinement, bounds, request, tests, fds)
        for fd in (out_w, report_w, confirm_w):
            os.close(fd)
        most = limits["output_kb"] << 10
        self._stdout.listen(out, most)
        self._report.listen(report, most)
        watch = Watch(pid, limits, (self._stdout, self._report))
        ended = watch.follow()
        os.kill(pid, signal.SIGKILL)  # A zombie takes it without harm.
        _, status, usage = os.wait4(pid, 0)
        if self._confinement.fork_filter is None:
            kill_descendants()
        confirmed = os.read(confirm, 1) == b"!"
        for fd in (out, report, confirm, watch.pidfd):
            os.close(fd)
        return {
            "ended": ended,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            "confined": confirmed,
            "cpu_s": usage.ru_utime + usage.ru_stime,
        }


def main():
    """Confine, say so, and serve until standard input ends."""
    devnull = os.open(os.devnull, os.O_RDWR)
    # Without `site`, which would read the host's packages, these are missing.
    _multiprocessing.SemLock = SemLock
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
    try:
        if sys.version_info < (3, 10):  # noqa: UP036 - not the Python of the trainer.
            raise OSError(errno.ENOSYS, f"needs Python 3.10, this is {sys.version}")
        setup = json.loads(sys.argv[2])
        sys.argv = sys.orig_argv = [FILENAME]
        sys.setrecursionlimit(RECURSION)
        if setup["readable"] and setup["cache_tag"] != sys.implementation.cache_tag:
            raise OSError(
                errno.ENOEXEC,
                f"{setup['readable'][0]} is for {setup['cache_tag']}, and programs run "
                f"in {sys.executable}, which is {sys.implementation.cache_tag}; set "
                "env.programming.packages to (), or give both the same Python",
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
    restore_signals()
    open_streams(devnull)
    if not os.path.exists("/dev/stdin"):
        provide_standard_files()
    gc.collect()
    gc.freeze()
    gc.disable()
    send({"landlock_abi": confinement.landlock_abi})
    server = Server(confinement, devnull)
    while True:
        server.answer(Request())
