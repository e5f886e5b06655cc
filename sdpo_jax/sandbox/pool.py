"""Runs untrusted Python programs in confined processes and reports the results.

Expected outputs never enter the sandbox: it gets programs and inputs, and the caller
compares the outputs. A worker process (`worker/serve.py`) is a new Python interpreter,
never a fork of the trainer. It runs each test in a fork of its own clean state.

Tiers, strongest first. "auto" selects the first one that stops a program which tries to
escape (`tiers.probe`):
  A  B, in a control group that limits the total memory and tasks of each worker
  B  C inside bubblewrap namespaces; works without landlock too
  C  landlock, seccomp, resource limits and, if the trainer is root, another user
  D  resource limits only: not a sandbox, must be selected by name
  R  any of these on another machine, behind a URL; see `server.py`

Programs can read only the standard library and the packages they may import. They can
start threads, but cannot write files, start processes or use the network. In tier C
they can also see the host's name and which files and processes exist, but not their
content. Linux only.
"""

import contextlib
import logging
import os
import queue
import sys
import threading
from collections.abc import Sequence

from sdpo_jax.sandbox import records, tiers
from sdpo_jax.sandbox.process import Worker
from sdpo_jax.sandbox.remote import RemoteWorker
from sdpo_jax.sandbox.values import (
    MAX_DIGITS,
    Call,
    Execution,
    Limits,
    Packages,
    SandboxFailure,
    SandboxUnavailable,
    Stdin,
    as_message,
)

logger = logging.getLogger(__name__)


class Sandbox:
    """A set of confined workers; `run` may be called from any number of threads.

    Args:
      limits: of each test.
      tier: "auto", "A", "B", "C", "D" or the URL of a server; see the module docstring.
      workers: number of programs that run at the same time; None for one per processor.
      process_per: "test" runs every test in a process of its own. "program" runs all
        calls of a program in one process if it is cheap and neither waits nor prints;
        each call executes the program's top level again. This is up to thirteen times
        as fast, but changes that a program makes to other modules persist between its
        calls.
      packages: modules that programs can import in addition to the standard library.

    Raises:
      SandboxUnavailable: if no allowed tier works here; says what to change.
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
        # Python's own limit, 4300, would refuse to read such a result or a row's test.
        if 0 < sys.get_int_max_str_digits() < MAX_DIGITS:
            sys.set_int_max_str_digits(MAX_DIGITS)
        self.limits = limits
        self.process_per = process_per
        self._lock = threading.Lock()
        self._wall_retries = 0
        self._closed = False
        # None stands for a worker that failed and is started again when needed.
        self._free: queue.SimpleQueue[Worker | RemoteWorker | None]
        self._free = queue.SimpleQueue()
        self._packages, self._url = packages, tier if "://" in tier else ""
        if self._url:
            first = RemoteWorker(tier, limits, packages)
            there, processors = first.about["tier"], first.about["workers"]
            self._tier = f"R/{there}"
        else:
            self._tier, first = tiers.choose(tier, limits, packages)
            # The affinity counts the processors that a container may use.
            processors = len(os.sched_getaffinity(0))
        self.workers = workers or processors
        self._free.put(first)
        for _ in range(1, self.workers):
            self._free.put(self._worker())

    @property
    def tier(self) -> str:
        """The tier in use: "A", "B", "C", "D", or such as "R/A" for A on a server."""
        return self._tier

    @property
    def wall_retries(self) -> int:
        """Number of runs repeated because a test reached `wall_s` before `cpu_s`."""
        return self._wall_retries

    def run(
        self,
        program: str,
        tests: Sequence[Call | Stdin],
        *,
        cpu_s: float | None = None,
        output_kb: int | None = None,
        stop_at_limit: bool = True,
    ) -> list[Execution]:
        """Run `program` on every test, each in a fresh process.

        Args:
          program: Python source, untrusted.
          tests: the inputs.
          cpu_s: replaces `limits.cpu_s` and scales `limits.wall_s` in proportion.
          output_kb: replaces `limits.output_kb`.
          stop_at_limit: skip the tests after the first that reaches a limit.

        Returns:
          One execution per test, in order.

        Raises:
          SandboxFailure: if two workers failed; says nothing about the program.
        """
        limits = self.limits.as_message(cpu_s, output_kb)
        request = {
            "program": program,
            "tests": [as_message(test) for test in tests],
            "limits": limits,
            "stop_at_limit": stop_at_limit,
            "process_per": self.process_per,
        }
        answer = self.exchange(request)
        # A busy machine can stretch the clock of an innocent program: run it once more.
        # Its calls together would reach a limit again.
        if any(record["ended"] == "wall" for record in answer):
            with self._lock:
                self._wall_retries += 1
            answer = self.exchange({**request, "process_per": "test"})
        executions = [
            records.execution(record, test, limits["cpu_s"])
            for record, test in zip(answer, tests, strict=False)
        ]
        skipped = len(tests) - len(executions)
        return executions + [Execution("skipped")] * skipped

    def close(self) -> None:
        """End every worker; idempotent. Calls in progress finish and end theirs."""
        self._closed = True
        idle = []
        with contextlib.suppress(queue.Empty):
            while True:
                idle.append(self._free.get_nowait())
        for worker in idle:
            if worker is not None:
                worker.close()
            # Back into the queue, to wake up calls that wait for a worker.
            self._free.put(worker)

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _worker(self) -> Worker | RemoteWorker:
        if self._url:
            return RemoteWorker(self._url, self.limits, self._packages)
        return Worker(self._tier, self.limits, self._packages)

    def exchange(self, request: dict) -> list[dict]:
        """Send a request to a free worker; if it fails, once more to a new one.

        Args:
          request: a program and its tests, as `run` encodes them.

        Returns:
          The worker's record of each test, for `records.execution`.
        """
        worker, reusable = self._free.get(), None
        if self._closed:
            self._free.put(worker)
            raise ValueError("the sandbox is closed; make a new one")
        try:
            reusable, answer = self._ask(worker, request)
        except SandboxFailure as failure:
            logger.warning("sandbox worker failed (%s); trying once more", failure)
            reusable, answer = self._ask(None, request)
        finally:
            # `close` does not see a worker that was in use.
            if self._closed and reusable is not None:
                reusable.close()
            self._free.put(reusable)
        return answer

    def _ask(
        self, worker: Worker | RemoteWorker | None, request: dict
    ) -> tuple[Worker | RemoteWorker, list[dict]]:
        """The worker (new if None) and its answer; closes a worker that fails."""
        try:
            worker = worker or self._worker()
        except SandboxUnavailable as error:
            raise SandboxFailure(str(error)) from error
        try:
            return worker, worker.exchange(request)
        except BaseException:
            # After any error, Ctrl-C included, the pipe may contain half a message.
            worker.close()
            raise
