"""Runs untrusted Python programs in confined processes and reports what they did.

Expected outputs never come here: a program is given its inputs, and the caller
compares what comes back. Each worker process (`worker/serve.py`) is started
afresh, never forked from the trainer; it runs every test in a fork of its own clean
state.

Tiers, best first; "auto" takes the first whose workers stop an escaping program:
  A  as B, in a control group that bounds the memory and tasks of all it starts
  B  bubblewrap namespaces around everything that C does (landlock where present)
  C  landlock, seccomp, resource limits and, for root, a user of its own
  D  resource limits only: no sandbox, must be asked for by name
  R  one of these on another machine, behind a URL: see `server.py`

Programs can read the standard library and nothing else, write no file, start threads
but no process, and have no network. In tier C they can also see the host's name and
which files and processes there are, not what is in them. Linux only.
"""

import contextlib
import logging
import os
import queue
import threading
from collections.abc import Sequence

from sdpo_jax.sandbox import records, tiers
from sdpo_jax.sandbox.process import Worker
from sdpo_jax.sandbox.remote import RemoteWorker
from sdpo_jax.sandbox.values import (
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
      limits: what each test may spend.
      tier: "auto", "A", "B", "C", "D" or the URL of a server; see the head of this
        file.
      workers: programs run at the same time; None for one per processor.
      process_per: "test" gives every test a process of its own. "program" lets the
        calls of a cheap, silent program share one, each with freshly run top level:
        up to thirteen times as fast, but what a program does to other modules lasts
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
        self._lock = threading.Lock()
        self._wall_retries = 0
        self._closed = False
        # None stands for a worker that is to be started when it is needed.
        self._free: queue.SimpleQueue[Worker | RemoteWorker | None]
        self._free = queue.SimpleQueue()
        self._packages, self._url = packages, tier if "://" in tier else ""
        if self._url:
            first = RemoteWorker(tier, limits, packages)
            there, processors = first.about["tier"], first.about["workers"]
            self._tier = f"R/{there}"
        else:
            self._tier, first = tiers.first_that_holds(tier, limits, packages)
            processors = len(os.sched_getaffinity(0))
        self.workers = workers or processors
        self._free.put(first)
        for _ in range(1, self.workers):
            self._free.put(self._worker())

    @property
    def tier(self) -> str:
        """The tier in use: "A", "B", "C", "D", or "R/A" for A on another machine."""
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
        output_kb: int | None = None,
        stop_at_limit: bool = True,
    ) -> list[Execution]:
        """Run `program` on every test, each in a fresh process.

        Args:
          program: Python source, untrusted.
          tests: the inputs.
          cpu_s: instead of `limits.cpu_s`; the clock's limit moves in proportion.
          output_kb: instead of `limits.output_kb`.
          stop_at_limit: skip the tests after one that spent a limit.

        Returns:
          One execution per test, in order.

        Raises:
          SandboxFailure: if a worker died twice; the program is not to blame.
        """
        limits = self.limits.as_message(cpu_s, output_kb)
        request = {
            "program": program,
            "tests": [as_message(test) for test in tests],
            "limits": limits,
            "stop_at_limit": stop_at_limit,
            "process_per": self.process_per,
        }
        seen = self.exchange(request)
        if any(record["ended"] == "wall" for record in seen):
            with self._lock:
                self._wall_retries += 1
            seen = self.exchange(request)
        executions = [
            records.execution(record, test, limits["cpu_s"])
            for record, test in zip(seen, tests, strict=False)
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
            if worker is not None:
                worker.close()
            # A call that waits for a worker must wake up and see that it is over.
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
        """Have some worker answer; a fresh one if it dies at the first attempt.

        Args:
          request: what `run` makes of a program and its tests.

        Returns:
          What a worker saw of each test; `records.execution` reads it.
        """
        worker, kept = self._free.get(), None
        if self._closed:
            self._free.put(worker)
            raise ValueError("the sandbox is closed; make a new one")
        try:
            kept, seen = self._attempt(worker, request)
        except SandboxFailure as failure:
            logger.warning("sandbox worker failed (%s); trying once more", failure)
            kept, seen = self._attempt(None, request)
        finally:
            if self._closed and kept is not None:
                kept.close()
            self._free.put(kept)
        return seen

    def _attempt(
        self, worker: Worker | RemoteWorker | None, request: dict
    ) -> tuple[Worker | RemoteWorker, list[dict]]:
        """An answer and whose it is; a worker that gives none is closed."""
        try:
            worker = worker or self._worker()
        except SandboxUnavailable as error:
            raise SandboxFailure(str(error)) from error
        try:
            return worker, worker.exchange(request)
        except BaseException:
            # Whatever it was (also Ctrl-C), the pipe may be in mid-message.
            worker.close()
            raise
