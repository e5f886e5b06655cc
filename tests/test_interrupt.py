"""Signals become a flag, and their handlers come back."""

import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from sdpo_jax import interrupt, screen
from sdpo_jax.interrupt import SIGNALS

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_sets_the_flag_and_the_second_is_not_caught(number):
    before = [signal.getsignal(n) for n in SIGNALS]
    with interrupt.on_signals() as stop:
        stop.raise_if_set()
        signal.raise_signal(number)
        with pytest.raises(interrupt.Interrupted):
            stop.raise_if_set()
        assert signal.getsignal(number) is signal.SIG_DFL
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_other_threads_leave_signals_to_their_caller():
    before, passed = [signal.getsignal(n) for n in SIGNALS], []

    def run():
        with interrupt.on_signals() as stop:
            stop.raise_if_set()
        passed.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

    assert passed and [signal.getsignal(n) for n in SIGNALS] == before


def blocker(seconds):
    """A call that keeps the main thread from running handlers, as a compiler does."""
    occupy = lambda rounds: hashlib.pbkdf2_hmac("sha256", b"", b"", rounds)
    start_s = time.monotonic()
    occupy(100_000)
    rounds_per_s = 100_000 / (time.monotonic() - start_s)
    return lambda: occupy(int(seconds * rounds_per_s))


def signal_in(seconds, number):
    timer = threading.Timer(seconds, os.kill, [os.getpid(), number])
    timer.start()


@pytest.mark.parametrize(
    "done, kept",
    [
        (0, "nothing is kept before the first update is complete"),
        (3, "the last complete update is saved"),
    ],
)
def test_signal_is_answered_while_the_main_thread_compiles(done, kept, caplog):
    block = blocker(1.5)
    with interrupt.on_signals() as stop, screen.Progress(9, "update", done):
        with screen.phase("sampling"):
            signal_in(0.2, signal.SIGINT)
            block()
            end_s = time.time()
        with pytest.raises(interrupt.Interrupted):
            stop.raise_if_set()

    (record,) = caplog.records
    assert record.getMessage() == (
        f"SIGINT: stopping as soon as this is done (sampling); {kept}. Once more stops "
        "at once"
    )
    assert record.created < end_s - 0.1


TWICE = """
from sdpo_jax import interrupt
from tests.test_interrupt import blocker, signal, signal_in
block = blocker(60)
with interrupt.on_signals():
    signal_in(0.5, signal.SIGINT)
    signal_in(1.0, signal.SIGINT)
    block()
"""


def test_second_signal_ends_a_process_that_compiles():
    start_s = time.monotonic()

    done = subprocess.run(
        [sys.executable, "-c", TWICE], cwd=ROOT, capture_output=True, text=True
    )

    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.startswith("SIGINT: stopping as soon as this is done; the last")
    assert time.monotonic() - start_s < 40


def test_signals_are_nobodys_business_after_the_block():
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with interrupt.on_signals():
        assert signal.set_wakeup_fd(-1) != before

    assert signal.set_wakeup_fd(before) == before
