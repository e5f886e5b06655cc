"""Signals become a flag, and their handlers come back."""

import signal
import threading

import pytest

from sdpo_jax import interrupt

SIGNALS = (signal.SIGTERM, signal.SIGINT)


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
