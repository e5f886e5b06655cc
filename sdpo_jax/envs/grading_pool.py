"""Verdicts on many attempts at once, whatever becomes of their graders."""

import logging
import math
import numbers
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sdpo_jax.envs.base import Environment, GraderFailure, Verdict
from sdpo_jax.questions.question import Question

_log = logging.getLogger(__name__)
# Gradings wait for a sandbox, not for this process.
_GRADERS = 32
# Waiting for a sandbox included; an attempt that takes longer is masked.
LIMIT_S = 1800.0


class GradingPool:
    """Verdicts on attempts, many at a time, while more attempts come.

    An exception, a verdict that makes no sense and none within `limit_s` are logged as
    failures of the grader: they say nothing of the attempt.

    Args:
      environment: what grades.
      limit_s: the longest that one attempt may take; None for `LIMIT_S`.
    """

    def __init__(self, environment: Environment, limit_s: float | None = None):
        self._environment = environment
        self._limit_s = LIMIT_S if limit_s is None else limit_s
        self._pool = ThreadPoolExecutor(_GRADERS)
        self._pending = []
        self._is_closed = False

    def add(self, question: Question, response: str, truncated: bool) -> None:
        """Begin to grade the first act of an episode."""
        attempt = (question, response, truncated)
        self._pending.append(self._pool.submit(self._judge_in_time, *attempt))

    def verdicts(self) -> list[dict | str | None]:
        """Wait for all, in the order in which they were added.

        Returns:
          The fields of each `Verdict` in types that survive JSON, the observation of
          an episode that goes on, or None if the grader failed.
        """
        return [judge.result() for judge in self._pending]

    def close(self) -> None:
        """Begin no more, and tell of no more failures; idempotent."""
        self._is_closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _judge_in_time(self, question: Question, *attempt) -> dict | str | None:
        said = []
        judge = lambda: said.append(self._judge(question, *attempt))
        # A grader that hangs is left behind; as a daemon it lets the process end.
        thread = threading.Thread(target=judge, daemon=True)
        thread.start()
        thread.join(self._limit_s)
        if not said:
            self._tell_failure(
                question, f": no verdict within {self._limit_s:g} seconds"
            )
        return said[0] if said else None

    def _judge(
        self, question: Question, response: str, truncated: bool
    ) -> dict | str | None:
        try:
            reply = self._environment.start(question).act(response, truncated)
            return reply if isinstance(reply, str) else _plain(reply)
        # Whatever it is, the attempt is not to blame; a grader may call sys.exit.
        except (Exception, SystemExit):
            self._tell_failure(question, exc_info=True)
            return None

    def _tell_failure(self, question: Question, why: str = "", **how) -> None:
        # What is still being graded when a run stops may find its sandbox closed.
        if not self._is_closed:
            _log.error("question %s: the grader failed%s", question.uid, why, **how)


def _plain(verdict: Any) -> dict:
    """A verdict in types that survive JSON.

    Raises:
      GraderFailure: if it is none; an environment of one's own may err.
      UnicodeEncodeError: if no tokenizer could read its text.
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
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise GraderFailure(f"{name}: expected a finite number, got {value!r:.80}")
    return float(value)
