"""SIGTERM and Ctrl-C as a flag that the training loop checks between its steps."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

from sdpo_jax import distributed

_log = logging.getLogger(__name__)


class Interrupted(Exception):
    """A signal asked the run to stop."""


class Flag:
    """Set by the first signal; the second one is not caught any more."""

    def __init__(self):
        self._is_set = False

    def handle(self, number: int, frame: Any) -> None:
        """Set the flag; what `signal.signal` calls."""
        self._is_set = True
        signal.signal(number, signal.SIG_DFL)
        _log.warning("%s: saving the last complete update", signal.Signals(number).name)

    def raise_if_set(self) -> None:
        """Raise on every host if any was signalled; every host must call it.

        Raises:
          Interrupted: if a signal arrived.
        """
        if distributed.on_any(self._is_set):
            raise Interrupted("stopped by a signal")


@contextlib.contextmanager
def on_signals() -> Iterator[Flag]:
    """A flag that SIGTERM and Ctrl-C set; the earlier handlers are restored at exit."""
    flag, before = Flag(), {}
    # Only the main thread may handle signals; elsewhere they are the caller's.
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, flag.handle)
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
