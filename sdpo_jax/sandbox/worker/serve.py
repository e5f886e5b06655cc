"""Serves requests of the trainer: the worker runs every test in a fork of itself.

The worker confines itself first. A fork then gives up the remaining rights (fork,
signals) and writes to pipes of its own. The worker passes on the fork's output without
parsing it; `records.py` parses it in the trainer.

Modules that are imported here but not used are those that programs import most: forks
find them loaded.

Limits: Linux only. The kernel is trusted, and programs can measure time.
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
from sdpo_jax.sandbox.worker.programs import FILENAME, run_test
from sdpo_jax.sandbox.worker.semaphores import SemLock

CHEAP_CPU_S = 0.2  # For more expensive calls, the cost of a fork each is negligible.
# Of the clock's limit, for all calls in one fork: a program that waits costs it again.
GROUP_WALL_SHARE = 0.25
# Python's default for the program, and 16 for the worker's own frames below it.
RECURSION_LIMIT = 1_000 + 16


class ModuleFinder:
    """Finds the additional modules of programs, but not others in their folders.

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
    """Reset signals that the trainer ignores, such as SIGINT in a background job."""
    # Python itself ignores these two, so programs expect it.
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def open_streams(devnull):
    """Open streams over descriptors 0, 1 and 2 that forks inherit.

    The worker does not use them. Opening them in each fork would take a quarter of the
    time of a short test.
    """
    requests = os.dup(0)
    # A stream checks only once whether it can seek. The pipe of requests cannot, but
    # the standard input of a test can, and so can devnull.
    os.dup2(devnull, 0)
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
    """Let a program open "/dev/stdin" without /proc, to which it is a link."""
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
    # A file in memory: programs may seek in their input, and it needs no writer.
    fd = os.memfd_create("stdin")
    write_all(fd, text)
    os.lseek(fd, 0, os.SEEK_SET)
    os.dup2(fd, 0)


# The core of `json.loads`. The rest would touch more memory, and a fork copies each
# page that it touches.
scan_json = json.JSONDecoder().scan_once


def decoded(text):
    """The value of JSON text in ASCII bytes."""
    return scan_json(text.decode("ascii"), 0)[0]


def run_fork(confinement, resource_limits, request, tests, fds):
    """Run `tests` in a fork, write their reports and exit; never returns."""
    stdout, report, confirm, devnull = fds
    write, leave = os.write, os._exit  # The program may replace them.
    try:
        program = request.program.decode("utf-8", "surrogatepass")
        calls = [decoded(text) if is_call else None for is_call, text in tests]
        for source, target in ((devnull, 0), (stdout, 1), (devnull, 2)):
            os.dup2(source, target)
        # Must precede the filter, which refuses memfd_create.
        if calls == [None]:
            standard_input(tests[0][1])
        confinement.enter_test(resource_limits)
        # Only a fork that reaches this line is confined; see `process.Worker.exchange`.
        os.write(confirm, b"!")
        # A program gets its standard streams and the report's pipe, and nothing else.
        os.closerange(3, report)
        os.closerange(report + 1, MAX_FILES)
        gc.enable()
        text = "\n".join(run_test(program, call) for call in calls)
        text = text.encode("ascii", "replace")
        while text:
            text = text[write(report, text) :]
    finally:
        # Python's exit would run the worker's handlers.
        leave(0)


def cpu_seconds(pid):
    """CPU time of a process that has not been reaped."""
    # The kernel's clock of a process: MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED).
    return time.clock_gettime((~pid << 3) | 2)


class Watch:
    """Reads the output of a fork until it ends or reaches a limit."""

    def __init__(self, pid, limits, outputs):
        self.pid, self.limits = pid, limits
        # Becomes readable when the fork ends.
        self.pidfd = os.pidfd_open(pid)
        self.outputs = {output.fd: output for output in outputs}
        self.poller = select.poll()
        for fd in (0, self.pidfd, *self.outputs):
            self.poller.register(fd, select.POLLIN)

    def follow(self):
        """Wait; return how the fork ended: "exit", "cpu", "wall" or "output"."""
        deadline = time.monotonic() + self.limits["wall_s"]
        while True:
            cpu_left = self.limits["cpu_s"] - cpu_seconds(self.pid)
            wall_left = deadline - time.monotonic()
            if cpu_left <= 0 or wall_left <= 0:
                return "cpu" if cpu_left <= 0 else "wall"
            # At least 1 ms, so that the loop does not spin. At most about 1 s, because
            # several threads use CPU time faster than the clock runs.
            ready = self.poller.poll(1 + 1000 * min(cpu_left, wall_left, 1.0))
            fds = [fd for fd, _ in ready]
            for fd in fds:
                if fd in self.outputs and self._read(self.outputs[fd]):
                    return "output"
            # The trainer sends nothing before it has the answer. So standard input is
            # at its end, and the trainer has ended.
            if 0 in fds:
                os.kill(self.pid, signal.SIGKILL)
                os._exit(0)
            if self.pidfd in fds:
                too_much = any(output.drain() for output in self.outputs.values())
                return "output" if too_much else "exit"

    def _read(self, output):
        """Read once; return whether the output exceeds its limit."""
        exceeds_limit = output.read()
        # A closed pipe is always ready, so that the loop would spin.
        if not output.is_open:
            self.poller.unregister(output.fd)
        return exceeds_limit


def kill_descendants():
    """Kill the processes that a fork in tier D, without a filter, left behind."""
    path = f"/proc/self/task/{os.getpid()}/children"
    # Until there are none: the children of a killed process become the worker's.
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
        """Run the tests in order and send their records.

        With `stop_at_limit`, stops after the first test that reaches a limit.
        """
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
        """Try to run all calls in one fork; return whether their records were added.

        If the program prints, crashes, waits or is not cheap, the results are
        discarded, and each test needs a fork of its own.
        """
        if len(request.tests) < 2 or not all(is_call for is_call, _ in request.tests):
            return False
        limits = dict(request.limits)
        cheap = min(1.0, CHEAP_CPU_S / limits["cpu_s"])
        limits["cpu_s"] *= cheap
        limits["wall_s"] *= min(cheap, GROUP_WALL_SHARE)
        record = self._run(request, limits, request.tests)
        reports = list(self._report.lines())
        is_clean = (
            record["ended"] == "exit"
            and not record["signal"]
            and not self._stdout.view()
            # Otherwise a call ended the process, or a program forged a report.
            and len(reports) == len(request.tests)
            # Earlier calls may have filled the memory.
            and not self._report.holds(b"MemoryError")
        )
        if is_clean:
            # The time of a single call is not known; the average is below its limit.
            record["cpu_s"] /= len(reports)
            for report in reports:
                self._answers.add(**record, report=report)
        self._clear()
        return is_clean

    def _clear(self):
        self._stdout.clear()
        self._report.clear()

    def _run(self, request, limits, tests):
        """Run tests in one fork; return the record without its texts."""
        (out, out_w), (report, report_w), (confirm, confirm_w) = (
            os.pipe() for _ in "123"
        )
        resource_limits = self._confinement.resource_limits(limits)
        pid = os.fork()
        if pid == 0:
            fds = (out_w, report_w, confirm_w, self._devnull)
            run_fork(self._confinement, resource_limits, request, tests, fds)
        # Without these, the pipes end when the fork ends.
        for fd in (out_w, report_w, confirm_w):
            os.close(fd)
        max_bytes = limits["output_kb"] << 10
        self._stdout.listen(out, max_bytes)
        self._report.listen(report, max_bytes)
        watch = Watch(pid, limits, (self._stdout, self._report))
        ended = watch.follow()
        # If the fork has ended, it is a zombie, on which the signal has no effect.
        os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        if self._confinement.fork_filter is None:
            kill_descendants()
        is_confined = os.read(confirm, 1) == b"!"
        for fd in (out, report, confirm, watch.pidfd):
            os.close(fd)
        return {
            "ended": ended,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            "confined": is_confined,
            "cpu_s": usage.ru_utime + usage.ru_stime,
        }


def main(setup):
    """Confine this process, report that to the trainer, and serve its requests.

    Args:
      setup: what the trainer decided; see `process`.
    """
    devnull = os.open(os.devnull, os.O_RDWR)
    _multiprocessing.SemLock = SemLock
    # Usually from `site`, which the worker skips because it adds the host's packages.
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
    try:
        # This Python may be older than the trainer's; see `process.interpreter`.
        if sys.version_info < (3, 10):  # noqa: UP036
            raise OSError(errno.ENOSYS, f"needs Python 3.10, this is {sys.version}")
        # Programs must not see the command line, which has paths of the host.
        sys.argv = sys.orig_argv = [FILENAME]
        sys.setrecursionlimit(RECURSION_LIMIT)
        # Python refuses to print integers of more than 4300 digits, because that takes
        # long; here the processor time is limited. Python 3.10.0 never refuses.
        if hasattr(sys, "set_int_max_str_digits"):
            sys.set_int_max_str_digits(0)
        # Extension modules load only in the version of Python that they were built for.
        if setup["readable"] and setup["cache_tag"] != sys.implementation.cache_tag:
            raise OSError(
                errno.ENOEXEC,
                f"{setup['readable'][0]} is for {setup['cache_tag']}, and programs run "
                f"in {sys.executable}, which is {sys.implementation.cache_tag}; run "
                "the trainer in the same Python, or set env.programming.packages=()",
            )
        sys.meta_path.append(ModuleFinder(setup["modules"]))
        # Some modules read their version from metadata in these folders on import.
        path, sys.path = sys.path, sys.path + setup["search"]
        exec(setup["prepare"], {})
        sys.path = path
        confinement = Confinement(setup)
        confinement.enter_worker()
    except (OSError, ImportError) as error:
        send({"refused": str(error)})
        return
    restore_signals()
    open_streams(devnull)
    if not os.path.exists("/dev/stdin"):
        provide_standard_files()
    # A collection writes to each object that it visits, so that a fork would copy all
    # of the worker's memory. It does not visit frozen objects.
    gc.collect()
    gc.freeze()
    gc.disable()
    send({"landlock_abi": confinement.landlock_abi})
    server = Server(confinement, devnull)
    while True:
        server.answer(Request())
