"""SIGTERM and Ctrl-C as a flag that long loops check between their steps."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from sdpo_jax import distributed, screen

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_log = logging.getLogger(__name__)


class Interrupted(Exception):
    """A signal asked the run to stop."""


class Flag:
    """Set by the first signal; the second one is not caught any more.

    Args:
      kept: what is kept of the work, for the message; None for that of training.
    """

    def __init__(self, kept: str | None = None):
        self._is_set, self._kept = False, kept
        self._unanswered = threading.Lock()

    def handle(self, number: int, frame: Any) -> None:
        """Set the flag; what `signal.signal` calls."""
        self._is_set = True
        signal.signal(number, signal.SIG_DFL)
        self._answer(number)

    def listen(self, reader: int) -> None:
        """Answer the signals whose numbers come from `reader`, until it is closed.

        Python calls `handle` in the main thread only, which may be compiling a program
        for minutes. A second signal ends the process even then.
        """
        heard = set()
        while numbers := os.read(reader, 1):
            (number,) = numbers
            if number not in SIGNALS:
                continue
            self._answer(number)
            if number in heard and not self._is_set:
                os._exit(128 + number)
            heard.add(number)

    def _answer(self, number: int) -> None:
        """Say once what happens now; whoever comes first, and nobody ever waits."""
        if not self._unanswered.acquire(blocking=False):
            return
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
        os.close(writer)
        thread.join()
        os.close(reader)
