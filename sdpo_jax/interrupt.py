"""SIGTERM and Ctrl-C as a flag that long loops check between their steps."""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from sdpo_jax import distributed, screen

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds within which a signal that is repeated is still the first one: `timeout` sends
# two, to the process and to its group.
_ONE_S = 1.0
# Ends the thread that listens; no signal has this number.
_END = b"\0"
_log = logging.getLogger(__name__)


class Interrupted(Exception):
    """A signal asked the run to stop."""


class Flag:
    """Set by the first signal; the second one ends the process at once.

    Args:
      kept: what is kept of the work, for the message; None for that of training.
    """

    def __init__(self, kept: str | None = None):
        self._is_set, self._kept = False, kept

    def handle(self, number: int, frame: Any) -> None:
        """Set the flag; what `signal.signal` calls."""
        self._is_set = True

    def listen(self, reader: int) -> None:
        """Answer the signals whose numbers come from `reader`, until `_END` comes.

        Python calls `handle` in the main thread only, which may be compiling a program
        for minutes. A second signal ends the process even then.
        """
        first_s, numbers = {}, b""
        while _END not in numbers:
            numbers = os.read(reader, 64)
            now_s = time.monotonic()
            for number in filter(numbers.__contains__, SIGNALS):
                if not first_s:
                    self._answer(number)
                if now_s - first_s.setdefault(number, now_s) > _ONE_S:
                    os._exit(128 + number)

    def _answer(self, number: int) -> None:
        """Say what happens now."""
        doing = screen.doing()
        kept = self._kept or "the last complete update is saved"
        if self._kept is None and screen.done() == 0:
            kept = "nothing is kept before the first update is complete"
        _log.warning(
            "%s: stopping as soon as this is done%s; %s. Once more stops at once",
            signal.Signals(number).name,
            f" ({doing})" if doing else "",
            kept,
        )

    def raise_if_set(self) -> None:
        """Raise on every host if any was signalled; every host must call it.

        Raises:
          Interrupted: if a signal arrived.
        """
        if distributed.on_any(self._is_set):
            raise Interrupted("stopped by a signal")


@contextlib.contextmanager
def on_signals(kept: str | None = None) -> Iterator[Flag]:
    """A flag that SIGTERM and Ctrl-C set; the earlier handlers are restored at exit."""
    flag = Flag(kept)
    # Only the main thread may handle signals; elsewhere they are the caller's.
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {number: signal.signal(number, flag.handle) for number in SIGNALS}
    try:
        with _wakeups(flag):
            yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _wakeups(flag: Flag) -> Iterator[None]:
    """Within the block a thread of `flag` hears every signal when it arrives."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=flag.listen, args=[reader], daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        # Not by closing it: a process that was forked meanwhile holds it open.
        os.write(writer, _END)
        thread.join()
        os.close(writer)
        os.close(reader)


def _in_child() -> None:
    """End a forked process by its signals, which are none of this one's business.

    A grader may end a pool of processes, all of which would set the flag, keep running,
    and write to the pipe of the parent, which would then leave.
    """
    for number in SIGNALS:
        if isinstance(getattr(signal.getsignal(number), "__self__", None), Flag):
            signal.signal(number, signal.SIG_DFL)
            signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_in_child)
