"""Grades many attempts at once, and masks those whose grader fails or hangs."""

import logging
import queue
import threading
from collections.abc import Iterator
from concurrent import futures
from typing import Any

from sdpo_jax.envs.base import Environment, GraderFailure, Verdict, real_number
from sdpo_jax.questions.question import Question

_log = logging.getLogger(__name__)
# More than the cores: graders mostly wait for a sandbox.
_GRADERS = 32
# Includes the wait for a sandbox; an attempt that takes longer is masked.
LIMIT_S = 1800.0


class GradingPool:
    """Threads that grade attempts while more attempts are added.

    An exception, an invalid verdict, or no verdict within `limit_s` is logged as a
    failure of the grader, and the attempt gets no verdict.

    Args:
      environment: grades the attempts.
      limit_s: seconds that grading one attempt may take; None for `LIMIT_S`.
    """

    def __init__(self, environment: Environment, limit_s: float | None = None):
        self._environment = environment
        self._limit_s = LIMIT_S if limit_s is None else limit_s
        self._pool = futures.ThreadPoolExecutor(_GRADERS)
        self._pending = []
        self._replies: list[queue.SimpleQueue] = []
        self._is_closed = False

    def add(self, question: Question, response: str, truncated: bool) -> None:
        """Begin to grade the first act of an episode."""
        attempt = (question, response, truncated)
        self._pending.append(self._pool.submit(self._grade_in_time, *attempt))

    def wait(self, timeout_s: float) -> bool:
        """Wait so long at most; whether all attempts that were added are graded."""
        return not futures.wait(self._pending, timeout_s).not_done

    def verdicts(
        self, first: int = 0, *, wait: bool = True
    ) -> Iterator[dict | str | None]:
        """Results from the attempt `first` on, in the order in which they were added.

        Args:
          first: attempts to pass over.
          wait: for all of them; otherwise until the first that is not graded yet.

        Yields:
          The fields of each `Verdict` in types that survive JSON, the observation of
          an episode that continues, or None if the grader failed.
        """
        for grading in self._pending[first:]:
            if not (wait or grading.done()):
                return
            yield grading.result()

    def close(self) -> None:
        """Start no more grading, abandon what is under way, log no more failures."""
        self._is_closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)
        # Python joins the threads of a pool when it exits: none may wait for a grader.
        for reply in self._replies:
            reply.put(None)

    def _grade_in_time(self, question: Question, *attempt) -> dict | str | None:
        reply = queue.SimpleQueue()
        self._replies.append(reply)
        if self._is_closed:
            return None
        grade = lambda: reply.put(self._grade(question, *attempt))
        # A grader that hangs is abandoned; a daemon thread does not block the exit.
        threading.Thread(target=grade, daemon=True).start()
        try:
            return reply.get(timeout=self._limit_s)
        except queue.Empty:
            self._log_failure(
                question, f": no verdict within {self._limit_s:g} seconds"
            )
            return None

    def _grade(
        self, question: Question, response: str, truncated: bool
    ) -> dict | str | None:
        try:
            reply = self._environment.start(question).act(response, truncated)
            return reply if isinstance(reply, str) else _checked_fields(reply)
        # Any error here is the grader's, not the attempt's; a grader may call sys.exit.
        except (Exception, SystemExit):
            self._log_failure(question, exc_info=True)
            return None

    def _log_failure(self, question: Question, reason: str = "", **options) -> None:
        # After close, a grader may fail only because its sandbox was closed too.
        if not self._is_closed:
            _log.error(
                "question %s: the grader failed%s", question.uid, reason, **options
            )


def _checked_fields(verdict: Any) -> dict:
    """The fields of a verdict in types that survive JSON.

    Raises:
      GraderFailure: if it is not a valid `Verdict`; a custom environment may err.
      UnicodeEncodeError: if its text holds characters that no tokenizer can encode.
    """
    if not isinstance(verdict, Verdict):
        raise GraderFailure(f"expected a Verdict, got {verdict!r:.80}")
    score = _finite("score", verdict.score)
    if not 0 <= score <= 1:
        raise GraderFailure(f"score: expected a number in [0, 1], got {score}")
    for name in ("outcome", "feedback"):
        text = getattr(verdict, name)
        if not isinstance(text, str):
            raise GraderFailure(f"{name}: expected text, got {text!r:.80}")
        text.encode()
    measurements = {
        str(name): _finite(f"measurements[{name!r}]", value)
        for name, value in verdict.measurements.items()
    }
    return {
        "score": score,
        "outcome": verdict.outcome,
        "feedback": verdict.feedback,
        "measurements": measurements,
    }


def _finite(name: str, value: Any) -> float:
    number = real_number(value)
    if number is None:
        raise GraderFailure(f"{name}: expected a finite number, got {value!r:.80}")
    return number
