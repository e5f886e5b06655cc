"""What a command does now, and how long it will take: a bar, or lines of text.

A process has one screen, so this module is global, as `logging` is: any code may name a
phase, and it is shown if a `Progress` is open.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import tqdm

from sdpo_jax.compile_times import CompileTimes

# Seconds between two lines where there is no terminal, and between two looks at a bar.
_LINE_S = 30.0
_LOOK_S = 0.5
# Of a terminal that does not say how large it is.
_COLUMNS, _ROWS = 80, 24
_LOG = logging.getLogger("sdpo_jax")
# The open ones; the last is shown.
_open: list["Progress"] = []


def show_log() -> None:
    """Show this package's log on stderr while nobody else shows it, as in a notebook.

    Once the caller sets logging up, before or after, its handlers take over.
    """
    if _LOG.level == logging.NOTSET:
        _LOG.setLevel(logging.INFO)
    if not any(isinstance(handler, _LastResort) for handler in _LOG.handlers):
        _LOG.addHandler(_LastResort())


class _LastResort(logging.Handler):
    """Prints the lines that no other handler gets."""

    def emit(self, record: logging.LogRecord) -> None:
        others = [h for h in logging.root.handlers + _LOG.handlers if h is not self]
        if not others:
            print(self.format(record), file=sys.stderr, flush=True)


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """Show that `name` goes on during the `with` block; phases nest."""
    shown = _open[-1] if _open else None
    if shown is None:
        yield
        return
    shown.phases.append([name, ""])
    try:
        yield
    finally:
        shown.phases.pop()


def count(done: int, total: int) -> None:
    """Show how much of the current phase is done."""
    if _open and _open[-1].phases:
        _open[-1].count(done, total)


def doing() -> str:
    """What goes on now, for a message; empty if nobody said."""
    return _open[-1].doing() if _open else ""


def done() -> int | None:
    """Units that are complete; None if nothing is shown."""
    return _open[-1].done if _open else None


class Progress:
    """A bar on a terminal, redrawn while programs compile; elsewhere lines of text.

    What others print meanwhile stays above the bar. The time left follows from the
    units that this process did, without the seconds of compiling, and without the first
    unit as soon as there is a second: it also warms everything up.

    Args:
      total: units in the entire run.
      unit: what is counted, in the singular.
      done: units that an earlier process did.
      shown: names of the metrics to show beside the bar.
    """

    def __init__(self, total: int, unit: str, done: int = 0, shown: Sequence[str] = ()):
        self.phases: list[list[str]] = []
        self.done = self._before = done
        self._total, self._unit, self._shown = total, unit, shown
        self._values = ""
        self._compiles = CompileTimes()
        self._start_s = time.monotonic()
        self._next_line_s = self._start_s + _LINE_S
        # (units, seconds without compiling) at the start, after the first unit and now.
        self._cold = self._warm = self._last = (done, 0.0)
        self._part: int | None = None
        self._is_closed = threading.Event()
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> "Progress":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def start(self) -> None:
        """Show it."""
        self._is_terminal = sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            total=self._total,
            initial=self.done,
            file=sys.stderr,
            disable=not self._is_terminal,
            bar_format="{n_fmt}/{total_fmt} {unit} |{bar:10}| {desc}",
            unit=f"{self._unit}s",
            # Some terminals say that they have no rows, and then nothing is drawn.
            nrows=_ROWS,
        )
        if self._is_terminal:
            self._exits.enter_context(_above(self._bar))
        self._compiles.start()
        self._exits.callback(self._compiles.stop)
        _open.append(self)
        self._exits.callback(_open.remove, self)
        self._show()
        # A daemon, so that a run which is not closed can end.
        self._thread = threading.Thread(target=self._keep_showing, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Show it no more; the bar stays on the screen as it is."""
        if self._is_closed.is_set():
            return
        self._is_closed.set()
        self._thread.join()
        self._show()
        self._exits.close()
        self._bar.close()

    def move(self, done: int, line: Mapping[str, Any] | None = None) -> None:
        """Show that `done` units are complete, with the metrics in `line`."""
        if line is not None:
            self._values = ", ".join(
                _show(name, line[name]) for name in self._shown if name in line
            )
        self._last = done, self._seconds()
        if done == self._before:
            self._cold = self._last
        if self.done == self._before:
            self._warm = self._last
        is_first, self.done = self.done == self._before, done
        # A first line at once, for whoever waits to see that it works.
        self._show(is_first or done == self._total)

    def count(self, done: int, total: int) -> None:
        """Show how much of the innermost phase is done; a part moves the bar too."""
        self.phases[-1][1] = f" {done}/{total}"
        if self._part is not None and self._part + done > self.done:
            self.move(self._part + done)

    @contextlib.contextmanager
    def part(self, units: int) -> Iterator[None]:
        """Within the block counts are units of the bar, which moves on by `units`."""
        self._part = self.done
        yield
        end, self._part = self._part + units, None
        if end > self.done:
            self.move(end)

    def doing(self) -> str:
        """The program that is being compiled, and the phases."""
        parts = [name + counted for name, counted in list(self.phases)]
        compiled = self._compiles.now()
        # Most programs take milliseconds.
        if compiled and compiled[1] > _LOOK_S:
            parts.insert(0, f"compiling {compiled[0]} for {compiled[1]:.0f} s")
        return ", ".join(parts)

    def _seconds(self) -> float:
        """Seconds since the start, without compiling."""
        return time.monotonic() - self._start_s - self._compiles.seconds()

    def _rate_s(self) -> float | None:
        """Seconds per unit; None before the first is complete."""
        for (few, start_s), (many, end_s) in (
            (self._warm, self._last),
            (self._cold, self._warm),
        ):
            if many > few:
                return (end_s - start_s) / (many - few)
        return None

    def _text(self) -> str:
        """Seconds so far and left, what goes on, and the metrics shown."""
        interval = tqdm.tqdm.format_interval
        so_far, rate_s = interval(time.monotonic() - self._start_s), self._rate_s()
        left, rate = "? left", ""
        if rate_s is not None:
            since_s = self._seconds() - self._last[1]
            left_s = rate_s * (self._total - self.done) - since_s
            left = f"{interval(max(left_s, 0))} left"
            rate = f"{rate_s:.3g} s/{self._unit}"
        parts = so_far, left, self.doing(), self._values, rate
        return ", ".join(filter(None, parts))

    def _show(self, at_once: bool = False) -> None:
        if self._is_terminal:
            self._bar.n, self._bar.ncols = self.done, _columns(self._bar.fp)
            self._bar.set_description_str(self._text())
        elif at_once or time.monotonic() >= self._next_line_s:
            self._next_line_s = time.monotonic() + _LINE_S
            counted = f"{self.done}/{self._total} {self._unit}s"
            print(f"{counted} [{self._text()}]", file=sys.stderr, flush=True)

    def _keep_showing(self) -> None:
        """Redraw while the main thread waits, for a program to be compiled, say."""
        while not self._is_closed.wait(_LOOK_S):
            self._show()


class _Above:
    """A stream on the terminal of a bar: its lines appear above the bar."""

    def __init__(self, stream: TextIO, bar: tqdm.tqdm):
        self._stream, self._bar, self._line = stream, bar, ""

    def write(self, text: str) -> int:
        with self._bar.get_lock():
            # A line that is not complete would be drawn over.
            whole, newline, self._line = (self._line + text).rpartition("\n")
            if newline:
                self._bar.clear(nolock=True)
                self._stream.write(whole + newline)
                self._bar.refresh(nolock=True)
        return len(text)

    def end(self) -> None:
        """Write the rest, as a line of its own."""
        if self._line:
            self.write("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _above(bar: tqdm.tqdm) -> Iterator[None]:
    """Within the block what others print, warn and log appears above the bar."""
    names = [n for n in ("stdout", "stderr") if getattr(sys, n).isatty()]
    streams = {name: getattr(sys, name) for name in names}
    above = {name: _Above(stream, bar) for name, stream in streams.items()}
    of_stream = {streams[name]: above[name] for name in names}
    handlers = {h: h.stream for h in _handlers() if h.stream in of_stream}
    for name in names:
        setattr(sys, name, above[name])
    for handler, stream in handlers.items():
        handler.setStream(of_stream[stream])
    try:
        yield
    finally:
        for handler, stream in handlers.items():
            handler.setStream(stream)
        for name in names:
            above[name].end()
            setattr(sys, name, streams[name])


def _handlers() -> list[logging.StreamHandler]:
    """Every handler of the process that keeps the stream that it writes to.

    One that looks `sys.stderr` up at every line, as Python's last resort does, needs no
    other, and takes none.
    """
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = [h for each in loggers for h in getattr(each, "handlers", [])]
    streams = [h for h in handlers if isinstance(h, logging.StreamHandler)]
    return [h for h in streams if "stream" in vars(h)]


def _columns(stream: TextIO) -> int:
    try:
        return (os.get_terminal_size(stream.fileno()).columns or _COLUMNS) - 1
    except (OSError, ValueError):
        return _COLUMNS - 1


def _show(name: str, value: Any) -> str:
    number = f"{value:.4g}" if isinstance(value, float) else value
    return f"{name.rpartition('/')[2]} {number}"
