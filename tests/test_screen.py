"""What a command shows while it works: a bar on a terminal, lines elsewhere."""

import contextlib
import io
import logging
import os
import pathlib
import pty
import select
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest

from sdpo_jax import compile_times, metrics, screen

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""

    class Clock:
        now_s = 1000.0

    monkeypatch.setattr(time, "monotonic", lambda: Clock.now_s)
    return Clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_one_bar_with_time_left_and_the_chosen_numbers(
    folder, monkeypatch
):
    monkeypatch.setattr(sys, "stderr", Terminal())
    log = metrics.RunLog(
        folder, num_steps=8, resume_from=4, shown=["train/loss", "absent"]
    )

    log.write_metrics(6, {"train/loss": 0.123456, "train/other": 5.0})
    log.close()

    drawn = sys.stderr.getvalue()
    assert "4/8" in drawn and "6/8" in drawn and "loss 0.1235" in drawn
    assert "other" not in drawn


def test_without_a_terminal_plain_lines_come_now_and_then(folder, capsys):
    log = metrics.RunLog(folder, num_steps=50, shown=["train/loss"])

    for step in range(1, 51):
        log.write_metrics(step, {"train/loss": 0.25, "train/steps": step})
    log.close()

    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("1/50 updates [") and ", loss 0.25, " in first
    assert last.startswith("50/50 updates [") and "\r" not in first + last


def test_the_time_left_counts_only_this_attempt(folder, capsys, clock):
    log = metrics.RunLog(folder, num_steps=60, resume_from=40)
    clock.now_s += 100

    log.write_metrics(50, {})
    log.close()

    # Ten updates took 100 s, and ten are left.
    told = "50/60 updates [01:40, 01:40 left, 10 s/update]"
    assert told in capsys.readouterr().err


def compiled(name, clock, seconds):
    """What JAX reports of a program, that calls another one, and of its compilation."""
    event = lambda kind: f"/jax/core/compile/{kind}_duration"
    for kind, inner in (("jaxpr_trace", True), ("backend_compile", False)):
        jax.monitoring.record_scalar(event(kind), 0.0, fun_name=name)
        if inner:
            jax.monitoring.record_scalar(event(kind), 0.0, fun_name="inner")
            jax.monitoring.record_event_duration_secs(event(kind), 1.0)
        clock.now_s += seconds / 2
        yield
        jax.monitoring.record_event_duration_secs(event(kind), seconds / 2)


def test_time_left_follows_from_warm_updates_without_compiling(capsys, clock, caplog):
    bar = screen.Progress(10, "update")
    text = lambda: bar._text()

    with bar, caplog.at_level("INFO"):
        assert text() == "00:00, ? left"
        # An evaluation of the base, before the first update.
        clock.now_s += 100
        bar.move(0)
        for _ in compiled("jit(_train_step)", clock, 50):
            assert "? left, compiling the update for " in text()
        clock.now_s += 7
        bar.move(1)
        # Nine more like the first, without its compiling.
        assert text() == "02:37, 01:03 left, 7 s/update"
        clock.now_s += 2
        bar.move(2)
        assert text() == "02:39, 00:16 left, 2 s/update"
        # It counts down, but not while a program is compiled.
        clock.now_s += 1
        assert "00:15 left" in text()
        for _ in compiled("_extend", clock, 30):
            assert "00:15 left, compiling the sampler for " in text()
        assert "00:15 left, 2 s/update" in text()

    assert caplog.messages == [
        "compiled the update in 50 s",
        "compiled the sampler in 30 s",
    ]


def test_compilations_of_jax_are_named_and_timed(monkeypatch, caplog, compiles):
    monkeypatch.setattr(compile_times, "_LOGGED_S", 0.0)

    @jax.jit
    def _train_step(x):
        return jax.jit(lambda y: y * 2)(x) + 1

    times = compile_times.CompileTimes()
    x = jnp.ones(3)
    times.start()
    start_s = time.monotonic()
    with caplog.at_level("INFO"):
        _train_step(x)
    took_s = time.monotonic() - start_s
    once_s = times.seconds()
    _train_step(x)
    times.stop()
    jax.jit(lambda x: x - 1)(x)

    assert caplog.messages == ["compiled the update in 0 s"]
    assert 0 < once_s <= took_s and times.seconds() == once_s
    assert times.now() is None


def screen_after(drawn, columns=200):
    """The lines of a terminal on which this was drawn."""
    rows, column = [""], 0
    for letter in drawn:
        if letter == "\n":
            rows, column = [*rows, ""], 0
        elif letter == "\r":
            column = 0
        else:
            row = rows[-1].ljust(column)
            rows[-1] = row[:column] + letter + row[column + 1 :]
            column += 1
    return [row.rstrip() for row in rows]


@contextlib.contextmanager
def terminal():
    """A real terminal of unknown size in place of stdout and stderr; reads it."""
    ours, theirs = pty.openpty()

    def drawn():
        content = b""
        # What was written arrives in parts.
        while select.select([ours], [], [], 0.2)[0]:
            content += os.read(ours, 65536)
        return content.decode().replace("\r\n", "\n")

    with open(theirs, "w", buffering=1) as out, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", out)
        yield drawn
    os.close(ours)


def test_what_others_print_stays_above_the_bar():
    log = logging.getLogger("somebody.else")

    with terminal() as drawn:
        handler = logging.StreamHandler(sys.stderr)
        log.addHandler(handler)
        # As libraries add it to their loggers; it takes no other stream.
        other = logging.getLogger("somebody.else.quiet")
        other.addHandler(logging.lastResort)
        with screen.Progress(4, "update", shown=["loss"]) as bar:
            with screen.phase("sampling"):
                screen.count(3, 8)
                log.warning("a line of the log")
                print("f.py:1: UserWarning: careful", file=sys.stderr)
                print("a grader", end=" ")
                bar.move(1, {"loss": 0.5})
                print("prints\nand prints\non", end="")
        log.warning("after the bar")
        log.removeHandler(handler)
        other.removeHandler(logging.lastResort)
        assert handler.stream is sys.stderr is sys.stdout
        *lines, last, after, end = screen_after(drawn())

    assert lines[0] == "a line of the log" and lines[1].endswith(": careful")
    assert lines[-3:] == ["a grader prints", "and prints", "on"]
    assert last.startswith("1/4 updates |██▌       | 00:0") and "loss 0.5, " in last
    assert (after, end) == ("after the bar", "")


def test_bar_moves_on_while_the_main_thread_waits():
    with terminal() as drawn:
        with screen.Progress(4, "update"), screen.phase("training"):
            time.sleep(1.6)
        text = drawn()

    assert "00:01, ? left, training" in text


def test_without_a_terminal_a_long_phase_is_told_every_half_minute(capsys, clock):
    with screen.Progress(4, "update"), screen.phase("sampling"):
        screen.count(32, 256)
        time.sleep(0.7)
        clock.now_s += 31
        time.sleep(0.7)
        clock.now_s += 29
        time.sleep(0.7)

    told = "0/4 updates [00:31, ? left, sampling 32/256]\n"
    assert capsys.readouterr().err == told


def test_phases_nest_and_end_with_their_block(capsys):
    with screen.phase("nobody looks"):
        screen.count(1, 2)
    assert screen.doing() == "" and screen.done() is None

    with screen.Progress(4, "update", done=3):
        with screen.phase("evaluating heldout"):
            with pytest.raises(KeyError), screen.phase("sampling"):
                screen.count(1, 2)
                assert screen.doing() == "evaluating heldout, sampling 1/2"
                raise KeyError
            assert screen.doing() == "evaluating heldout"
        assert screen.doing() == "" and screen.done() == 3
    assert screen.done() is None


def test_parts_count_what_is_sampled_and_end_complete(capsys):
    with screen.Progress(30, "answer") as bar:
        for size in (10, 20):
            with bar.part(size), screen.phase("sampling"):
                screen.count(8, size)
                sampled = bar.done
            with bar.part(0), screen.phase("grading"):
                pass
            assert bar.done == sampled + size - 8
    assert bar.done == 30


NOTEBOOK = """
import logging
from sdpo_jax import screen
log = logging.getLogger("sdpo_jax.train")
for _ in range(2):
    screen.show_log()
log.info("as in a notebook")
logging.basicConfig(format="mine: %(message)s")
log.info("once")
logging.getLogger("other").info("not asked for")
"""


def test_log_is_shown_once_whoever_sets_it_up():
    done = subprocess.run(
        [sys.executable, "-c", NOTEBOOK], cwd=ROOT, capture_output=True, text=True
    )

    assert done.stderr == "as in a notebook\nmine: once\n"


def test_a_level_that_the_caller_chose_is_kept(monkeypatch):
    monkeypatch.setattr(logging.getLogger("sdpo_jax"), "level", logging.ERROR)

    screen.show_log()

    assert logging.getLogger("sdpo_jax").level == logging.ERROR
