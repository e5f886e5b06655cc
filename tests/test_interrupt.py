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
def test_first_signal_sets_the_flag_even_if_it_comes_twice(number, caplog):
    before = [signal.getsignal(n) for n in SIGNALS]
    with interrupt.on_signals() as stop:
        stop.raise_if_set()
        # As from `timeout`, which signals the process and then its group.
        signal.raise_signal(number)
        signal.raise_signal(number)
        with pytest.raises(interrupt.Interrupted):
            stop.raise_if_set()
    assert len(caplog.records) == 1
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


def signal_in(seconds, number, before=lambda: None):
    def send():
        before()
        os.kill(os.getpid(), number)

    threading.Timer(seconds, send).start()


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
import sys, time
from sdpo_jax import interrupt
from tests.test_interrupt import blocker, signal, signal_in
block = blocker(60) if sys.argv[1] == "compiles" else lambda: time.sleep(60)
with interrupt.on_signals():
    for seconds in (0.5, 0.51, 2.0):
        signal_in(seconds, signal.SIGINT, lambda: print("sent", flush=True))
    block()
"""


@pytest.mark.parametrize("what", ["compiles", "sleeps"])
def test_second_signal_ends_a_process_that(what):
    start_s = time.monotonic()

    done = subprocess.run(
        [sys.executable, "-c", TWICE, what], cwd=ROOT, capture_output=True, text=True
    )

    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.startswith("SIGINT: stopping as soon as this is done; the last")
    # The one that follows at once is not the second.
    assert done.stdout.split() == 3 * ["sent"]
    assert time.monotonic() - start_s < 40


POOL = """
import multiprocessing, signal, time, warnings
from sdpo_jax import interrupt
warnings.simplefilter("ignore")
with interrupt.on_signals() as stop:
    pool = multiprocessing.get_context("fork").Pool(2)
    busy = pool.map_async(time.sleep, [60, 60])
    time.sleep(0.5)
    pool.terminate()
    pool.join()
    lasting = multiprocessing.get_context("fork").Process(target=time.sleep, args=[60])
    lasting.start()
    stop.raise_if_set()
# It holds the pipe open, and the block has ended.
print(lasting.is_alive(), flush=True)
lasting.terminate()
lasting.join()
print(lasting.exitcode)
"""


def test_processes_of_a_grader_are_ended_without_ending_the_run():
    done = subprocess.run(
        [sys.executable, "-c", POOL],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )

    assert (done.stdout.split(), done.stderr) == (["True", f"-{signal.SIGTERM:d}"], "")
    assert done.returncode == 0


def test_signals_are_nobodys_business_after_the_block():
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    with interrupt.on_signals():
        assert signal.set_wakeup_fd(-1) != before

    assert signal.set_wakeup_fd(before) == before
