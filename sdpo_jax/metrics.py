"""The log of a run: metrics, timings, transcripts and a progress bar.

`metrics.jsonl` holds only what the seed determines, so a resumed run can be compared
with an uninterrupted one bit for bit; everything that depends on the clock goes to
`timings.jsonl`. `json_files` reads both and defines how NaN and infinity are written.

Importing this file does not import JAX, so that reports can read runs without it.
"""

import collections
import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tensorboardX import event_file_writer
from tensorboardX.proto import event_pb2, summary_pb2

from sdpo_jax import json_files, screen
from sdpo_jax.tracker import Tracker

METRICS = "metrics.jsonl"
TIMINGS = "timings.jsonl"
ATTEMPTS = "attempts.jsonl"


class RunLog:
    """The files that one run writes while it trains; only the first process writes.

    Attributes:
      last_step: of the lines of metrics that were there when it was opened; None if
        there were none, and on other processes.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        num_steps: int,
        resume_from: int | None = None,
        shown: Sequence[str] = (),
        wandb_project: str | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        """Opens the log as it was right after step `resume_from`.

        Args:
          folder: the run folder; made if missing.
          num_steps: updates in the entire run, for the remaining time.
          resume_from: the restored step; later lines are dropped. None for a run that
            starts from the beginning: all lines are dropped.
          shown: names of the metrics to show next to the progress bar.
          wandb_project: project to which numbers are sent too; None for no wandb.
          config: every field of the run's config, for wandb.
        """
        self.last_step: int | None = None
        self._writes = is_first_process()
        if not self._writes:
            return
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self._tracker = None
        if wandb_project:
            self._tracker = Tracker(wandb_project, folder, config or {})
        first_step = 0 if resume_from is None else resume_from + 1
        self._files = {}
        for name in (METRICS, TIMINGS, ATTEMPTS):
            json_files.drop_lines_from(folder / name, first_step)
            self._files[name] = (folder / name).open("ab")
        for line in json_files.read_lines(folder / METRICS):
            self.last_step = line["step"]
        self._curves = _Curves(folder / "tensorboard", first_step)
        self._progress = screen.Progress(num_steps, "update", resume_from or 0, shown)
        self._progress.start()

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes one line of metrics and moves the progress bar.

        Args:
          step: updates done.
          metrics: name -> number on the host, determined by the seed; "group/name"
            groups the curves.
        """
        if self._writes:
            line = self._write(METRICS, step, metrics)
            self._draw(step, line)
            self._progress.move(step, line)

    def write_timings(self, step: int, timings: Mapping[str, Any]) -> None:
        """Writes one line of numbers that depend on the clock, as of `Timer.take()`."""
        if self._writes:
            self._draw(step, self._write(TIMINGS, step, timings), "timings/")

    def write_attempts(self, step: int, attempts: Sequence[Mapping[str, Any]]) -> None:
        """Writes one line per attempt: its text, score, feedback and other fields."""
        if self._writes:
            for attempt in attempts:
                self._write(ATTEMPTS, step, attempt)

    def close(self) -> None:
        """Closes every file; the progress bar stays on the screen."""
        if not self._writes:
            return
        for file in self._files.values():
            file.close()
        self._curves.close()
        self._progress.close()
        if self._tracker is not None:
            self._tracker.close()

    def _write(self, name: str, step: int, values: Mapping[str, Any]) -> dict:
        if "step" in values:
            raise ValueError(
                f"a line of {name} has its own step ({step}); rename the value named "
                f"'step' (got {values['step']!r})"
            )
        line = json_files.plain({"step": step, **values})
        text = json.dumps(line, allow_nan=False) + "\n"
        self._files[name].write(text.encode())
        # So that a kill loses at most the line that is being written.
        self._files[name].flush()
        return line

    def _draw(self, step: int, line: Mapping[str, Any], prefix: str = "") -> None:
        numbers = {
            prefix + name: value
            for name, value in line.items()
            if name != "step" and isinstance(value, int | float)
        }
        self._curves.write(step, numbers)
        if self._tracker is not None:
            self._tracker.log(numbers, step)


class Timer:
    """Sums of wall-clock seconds by name."""

    def __init__(self):
        self._seconds: dict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the seconds of the `with` block to those of `name`."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start_s

    def take(self) -> dict[str, float]:
        """The seconds by name since the last call; resets them to zero."""
        seconds = dict(self._seconds)
        self._seconds.clear()
        return seconds


class _Curves:
    """The TensorBoard file of a run, written without a queue.

    tensorboardX's own SummaryWriter loses its queue when it is killed, and overwrites
    the file of a process that started in the same second.
    """

    def __init__(self, folder: pathlib.Path, first_step: int):
        folder.mkdir(exist_ok=True)
        self._events = event_file_writer.EventsWriter(
            str(folder / "events"), filename_suffix=f".{time.time_ns()}"
        )
        # Makes TensorBoard hide what earlier processes wrote from this step on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(step=first_step, session_log=start))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        values = [
            summary_pb2.Summary.Value(tag=name, simple_value=number)
            for name, number in numbers.items()
        ]
        summary = summary_pb2.Summary(value=values)
        self._write(event_pb2.Event(step=step, summary=summary))

    def close(self) -> None:
        self._events.close()

    def _write(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        self._events.write_event(event)
        self._events.flush()


def is_first_process() -> bool:
    """Whether this is the process of a pod that writes."""
    import jax

    return jax.process_index() == 0
