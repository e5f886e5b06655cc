"""Whatever a grader does, its attempts are judged or given up; nothing is raised."""

import pathlib
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from sdpo_jax.envs import grading_pool
from sdpo_jax.envs.base import GraderFailure, Verdict
from sdpo_jax.questions.question import Question

ROOT = pathlib.Path(__file__).parents[2]
GOOD = Verdict(0.5, "Half", "told", {"m": 1.0})
PLAIN = {"score": 0.5, "outcome": "Half", "feedback": "told", "measurements": {"m": 1}}


def environment(act):
    return SimpleNamespace(start=lambda question: SimpleNamespace(act=act))


def judged(act, responses=("x",), limit_s=60.0):
    return judged_by(environment(act), responses, limit_s)


def judged_by(environment, responses=("x",), limit_s=60.0):
    pool = grading_pool.GradingPool(environment, limit_s)
    for n, response in enumerate(responses):
        pool.add(Question(f"q{n}", "?"), response, False)
    verdicts = list(pool.verdicts())
    pool.close()
    return verdicts


def returned(verdict):
    """What becomes of a grader's return value."""
    return judged(lambda *_: verdict)[0]


@pytest.mark.parametrize(
    "verdict",
    [
        GOOD,
        Verdict(np.float32(0.5), "Half", "told", {"m": np.float32(1)}),
        Verdict(0.5, "Half", "told", {"m": True}),
    ],
)
def test_verdict_comes_back_in_plain_types(verdict):
    found = returned(verdict)

    assert found == PLAIN
    assert type(found["score"]) is type(found["measurements"]["m"]) is float


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no name")


GARBAGE = {
    "nothing": None,
    "a number": 1.0,
    "a pair": (1.0, "told"),
    "its class": Verdict,
    "a dict": PLAIN,
    "what has no repr": Unprintable(),
    "score is NaN": Verdict(float("nan"), ""),
    "score is infinite": Verdict(float("inf"), ""),
    "score is negative": Verdict(-0.1, ""),
    "score is 2": Verdict(2.0, ""),
    "score is huge": Verdict(10**400, ""),
    "score is text": Verdict("1.0", ""),
    "score is complex": Verdict(1j, ""),
    "score is an array": Verdict(np.ones(3), ""),
    "score is missing": Verdict(None, ""),
    "outcome is missing": Verdict(1.0, None),
    "feedback is missing": Verdict(1.0, "", None),
    "feedback is bytes": Verdict(1.0, "", b"told"),
    "feedback is a list": Verdict(1.0, "", ["told"]),
    "feedback is no unicode": Verdict(1.0, "", "\ud800"),
    "measurements are missing": Verdict(1.0, "", "", None),
    "measurements are a list": Verdict(1.0, "", "", [1.0]),
    "measurement is a lock": Verdict(1.0, "", "", {"m": threading.Lock()}),
    "measurement is NaN": Verdict(1.0, "", "", {"m": float("nan")}),
    "measurement is text": Verdict(1.0, "", "", {"m": "1.0"}),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_a_failure_of_the_grader(garbage, caplog):
    assert returned(garbage) is None
    assert caplog.messages == ["question q0: the grader failed"]


def test_what_is_no_verdict_is_told(caplog):
    assert returned((1.0, "told")) is None
    assert "expected a Verdict, got (1.0, 'told')" in caplog.text


ERRORS = [GraderFailure("x"), ValueError("x"), MemoryError(), RecursionError()]
ERRORS += [SystemExit(0), StopIteration(), AssertionError(), Exception()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["start", "act"])
def test_whatever_is_raised_is_a_failure_of_the_grader(error, where, caplog):
    def fail(*_):
        raise error

    broken = SimpleNamespace(start=fail) if where == "start" else environment(fail)

    assert judged_by(broken) == [None]
    assert type(error).__name__ in caplog.text


def test_observation_is_handed_on():
    assert returned("The board after 1 move") == "The board after 1 move"


def test_grader_that_hangs_costs_its_own_attempt_only(caplog):
    go_on = threading.Event()

    def act(response, truncated):
        return go_on.wait() and GOOD if response == "hang" else GOOD

    responses = ["x"] * 100
    responses[3] = responses[70] = "hang"
    before = time.monotonic()
    found = judged(act, responses, limit_s=2.0)
    took = time.monotonic() - before
    go_on.set()

    assert [n for n, verdict in enumerate(found) if verdict is None] == [3, 70]
    assert found.count(PLAIN) == 98
    assert 2 <= took < 30
    assert set(caplog.messages) == {
        f"question q{n}: the grader failed: no verdict within 2 seconds"
        for n in (3, 70)
    }


def test_more_graders_that_hang_than_run_at_once_end_in_time():
    go_on = threading.Event()

    assert judged(lambda *_: go_on.wait(), ["x"] * 70, limit_s=0.2) == [None] * 70
    go_on.set()


def test_what_is_still_graded_at_the_end_says_nothing_of_a_closed_sandbox(caplog):
    begun, go_on = threading.Event(), threading.Event()

    def act(response, truncated):
        begun.set()
        go_on.wait()
        raise ValueError("the sandbox is closed")

    pool = grading_pool.GradingPool(environment(act), 60.0)
    pool.add(Question("q", "?"), "x", False)
    begun.wait()
    pool.close()
    go_on.set()

    assert list(pool.verdicts()) == [None]
    assert not caplog.messages


def test_waiting_ends_in_time_and_closing_lets_go_of_a_busy_grader():
    go_on = threading.Event()
    pool = grading_pool.GradingPool(environment(lambda *_: go_on.wait() and GOOD), 60.0)
    assert pool.wait(0.0)

    pool.add(Question("q", "?"), "x", False)
    before = time.monotonic()
    assert not pool.wait(0.1)
    pool.close()

    assert pool.wait(30.0) and list(pool.verdicts()) == [None]
    assert time.monotonic() - before < 20
    go_on.set()


def test_no_grading_begins_after_the_end():
    begun, go_on = [], threading.Event()

    def act(response, truncated):
        begun.append(response)
        go_on.wait()
        return GOOD

    pool = grading_pool.GradingPool(environment(act), 60.0)
    for number in range(grading_pool._GRADERS + 8):
        pool.add(Question(f"q{number}", "?"), "x", False)
    while len(begun) < grading_pool._GRADERS:
        time.sleep(0.01)
    pool.close()
    go_on.set()
    pool._pool.shutdown(wait=True)

    assert len(begun) == grading_pool._GRADERS


def test_grader_that_hangs_does_not_keep_the_process():
    code = """
import threading
from types import SimpleNamespace
from sdpo_jax.envs import grading_pool
from sdpo_jax.envs.base import Question
episode = SimpleNamespace(act=lambda *_: threading.Event().wait())
environment = SimpleNamespace(start=lambda question: episode)
pool = grading_pool.GradingPool(environment, 0.2)
pool.add(Question("q", "?"), "x", False)
print(list(pool.verdicts()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert (done.returncode, done.stdout) == (0, "[None]\n"), done.stderr
