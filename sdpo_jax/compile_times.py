"""Which program JAX compiles, since when, and how long all compiling took."""

import logging
import threading
import time
from typing import Any

_log = logging.getLogger(__name__)
# Tracing, lowering and compiling of a program; JAX reports when each begins and ends.
_EVENTS = "/jax/core/compile/"
_LAST = f"{_EVENTS}backend_compile_duration"
# Programs that compile faster are not worth a line of the log.
_LOGGED_S = 1.0
# Name of a jitted function -> what a person calls it.
_NAMES = {
    "_train_step": "the update",
    "_score": "the scoring of attempts",
    "_prepare": "the sampler's weights",
    "_start": "the sampler of first tokens",
    "_extend": "the sampler",
    "grow": "the growth of the sampler's cache",
    "_new_state": "the training state",
}


class CompileTimes:
    """Listens to the compilations of the thread that starts it."""

    def __init__(self):
        self._seconds = 0.0
        self._of_program: dict[str, float] = {}
        self._depth = 0
        self._now: tuple[str, float] | None = None

    def start(self) -> None:
        """Begin to listen."""
        import jax

        self._thread = threading.get_ident()
        jax.monitoring.register_scalar_listener(self._begin)
        jax.monitoring.register_event_duration_secs_listener(self._end)

    def stop(self) -> None:
        """Listen no more."""
        import jax

        jax.monitoring.unregister_scalar_listener(self._begin)
        jax.monitoring.unregister_event_duration_listener(self._end)

    def seconds(self) -> float:
        """Spent on compiling so far."""
        now = self._now
        return self._seconds + (time.monotonic() - now[1] if now else 0.0)

    def now(self) -> tuple[str, float] | None:
        """The program that is being compiled and for how many seconds, if any is."""
        now = self._now
        if now is None:
            return None
        name, start_s = now
        return name, self._of_program.get(name, 0.0) + time.monotonic() - start_s

    def _begin(self, event: str, value: Any, fun_name: str = "", **_: Any) -> None:
        if not self._is_ours(event):
            return
        # What a program calls is traced within it.
        if self._depth == 0:
            self._now = _name(fun_name), time.monotonic()
        self._depth += 1

    def _end(self, event: str, seconds: float, **_: Any) -> None:
        if not self._is_ours(event) or self._depth == 0:
            return
        self._depth -= 1
        if self._depth or self._now is None:
            return
        (name, start_s), self._now = self._now, None
        spent_s = time.monotonic() - start_s
        self._seconds += spent_s
        self._of_program[name] = self._of_program.get(name, 0.0) + spent_s
        if event == _LAST:
            in_all_s = self._of_program.pop(name)
            if in_all_s >= _LOGGED_S:
                _log.info("compiled %s in %.0f s", name, in_all_s)

    def _is_ours(self, event: str) -> bool:
        return event.startswith(_EVENTS) and threading.get_ident() == self._thread


def _name(function: str) -> str:
    function = function.removeprefix("jit(").removesuffix(")")
    return _NAMES.get(function, function)
