"""Attempts as text with verdicts: sample, decode and grade, whoever asks for them.

Training, evaluation and a notebook all call `collect`. On a pod every host makes the
same call; the first one grades for all.
"""

import collections
import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from sdpo_jax import distributed, screen, thinking
from sdpo_jax.batch import Attempts
from sdpo_jax.components import Components
from sdpo_jax.data.tokenizer import Tokenizer
from sdpo_jax.envs import grading_pool
from sdpo_jax.envs.base import Environment, GradedAttempt, Verdict
from sdpo_jax.questions import order
from sdpo_jax.questions.question import Question
from sdpo_jax.rollout import Sampling

_log = logging.getLogger(__name__)
# Seconds between two looks at the signals while attempts are graded.
_PAUSE_S = 1.0
# Share of attempts whose grading may fail; above it the rest is no fair sample.
_MOST_FAILURES = 0.05
# Tokens at a prompt's end that may open the reasoning; a tag takes a few of them.
_TAIL = 32


def collect(
    components: Components,
    policy: Any,
    questions: Sequence[Question],
    sampling: Sampling,
    key: jax.Array,
    *,
    timer: Callable[[str], contextlib.AbstractContextManager] = contextlib.nullcontext,
    check_stop: Callable[[], None] = lambda: None,
    each: Callable[[GradedAttempt], None] = lambda graded: None,
) -> tuple[Attempts, list[GradedAttempt]]:
    """Attempts at every question, and what the environment says of each.

    Args:
      components: tokenizer, engine and environment.
      policy: weights as `decoder` reads them.
      questions: what is asked; their place and `key` fix what is drawn.
      sampling: how attempts are drawn, and how many per question.
      key: a JAX random key.
      timer: entered with "sample" and with "grade".
      check_stop: called after each group of rows, and every second while the rest is
        graded; what it raises ends both.
      each: called in order with every graded attempt as soon as those before it are
        graded too; on a pod on the first host only.

    Returns:
      Host arrays, a question's attempts adjacent; and one graded attempt per row.

    Raises:
      ValueError: if a prompt is too long, an episode wants another act, or the grader
        failed on too many attempts.
    """
    prompts = encode(components.config, components.tokenizer, questions)
    of_rows = [q for q in questions for _ in range(sampling.attempts)]
    graders = components.environment, components.tokenizer
    with Grading(*graders, of_rows, each) as grading:

        def grade_group(rows: slice, attempts: Attempts) -> None:
            grading.add(rows, attempts)
            check_stop()

        with timer("sample"), screen.phase("sampling"):
            # Questions are numbered by their place: with the key it fixes the draws.
            # Rows are graded as soon as they are sampled, while the next ones are.
            attempts = components.engine.sample(
                policy, prompts, range(len(questions)), sampling, key, grade_group
            )
        with timer("grade"), screen.phase("grading"):
            return attempts, grading.finish(check_stop)


def sampling_of(c: ConfigDict, how: ConfigDict) -> Sampling:
    """How attempts are drawn by `config.rollout` or `config.eval`, which is `how`."""
    return Sampling(
        how.attempts, how.temperature, how.top_p, how.top_k, c.rollout.max_response
    )


def training_questions(
    components: Components,
) -> tuple[list[Question], dict[str, float]]:
    """The questions to train on, which all fit; and, if any were dropped, how many.

    Raises:
      ValueError: if they are too few for a batch, or a prompt is too long.
    """
    c, tokenizer = components.config, components.tokenizer
    every = components.environment.questions("train")
    questions = drop_long_prompts(c, tokenizer, every, "train")
    # Refused now, not when their turn comes.
    order.of_update(questions, 0, c.rollout.questions, c.seed)
    encode(c, tokenizer, questions)
    num_dropped = len(every) - len(questions)
    counted = {"train/dropped_questions": float(num_dropped)} if num_dropped else {}
    return questions, counted


def encode(
    c: ConfigDict, tokenizer: Tokenizer, questions: Sequence[Question]
) -> list[list[int]]:
    """Prompts as token ids.

    Raises:
      ValueError: if a prompt is longer than `config.rollout.max_prompt`.
    """
    prompts = [tokenizer.encode_chat(q.system, q.prompt) for q in questions]
    for question, prompt in zip(questions, prompts, strict=True):
        if len(prompt) > c.rollout.max_prompt:
            raise ValueError(
                f"question {question.uid} takes {len(prompt)} tokens, more than "
                f"rollout.max_prompt={c.rollout.max_prompt}; raise it, or set "
                "rollout.long_prompts=drop"
            )
    return prompts


def drop_long_prompts(
    c: ConfigDict, tokenizer: Tokenizer, questions: Sequence[Question], split: str
) -> list[Question]:
    """The questions of a split whose prompts fit; logs how many were dropped.

    All of them where `config.rollout.long_prompts` is "refuse": `encode` then raises.

    Raises:
      ValueError: if none fits.
    """
    if c.rollout.long_prompts == "refuse":
        return list(questions)
    length = lambda q: len(tokenizer.encode_chat(q.system, q.prompt))
    kept = [q for q in questions if length(q) <= c.rollout.max_prompt]
    too_long = (
        f"{split}: {len(questions) - len(kept)} of {len(questions)} questions take "
        f"more than rollout.max_prompt={c.rollout.max_prompt} tokens"
    )
    if not kept:
        raise ValueError(f"{too_long}; raise it")
    if len(kept) < len(questions):
        _log.warning("%s and are dropped", too_long)
    return kept


class Grading:
    """Decodes and grades attempts, concurrently, and while others are being sampled.

    On a pod the first host grades for all: a time limit or a traceback may differ from
    host to host, and then so would their batches.

    Args:
      environment: what grades; see `grading_pool.GradingPool` for how it may fail.
      tokenizer: of the model that wrote them.
      questions: one per attempt, in the same order.
      each: called with every graded attempt, in that order, as soon as it is there.
    """

    def __init__(
        self,
        environment: Environment,
        tokenizer: Tokenizer,
        questions: Sequence[Question],
        each: Callable[[GradedAttempt], None] = lambda graded: None,
    ):
        self._tokenizer, self._questions, self._each = tokenizer, questions, each
        self._written: list[GradedAttempt] = []
        self._verdicts: list[dict | str | None] = []
        # The attempts at a question share its prompt.
        self._opening = functools.cache(self._opening)
        self._reads_reasoning = getattr(environment, "reads_reasoning", False)
        self._pool = grading_pool.GradingPool(environment)

    def __enter__(self) -> "Grading":
        return self

    def __exit__(self, *_) -> None:
        self._pool.close()

    def add(self, rows: slice, attempts: Attempts) -> None:
        """Begin to grade `attempts`, which are those at `rows`; rows come in order."""
        drawn = zip(attempts.response_BR, attempts.response_mask_BR, strict=True)
        for question, (row, mask) in zip(self._questions[rows], drawn, strict=True):
            ids = row[mask].tolist()
            written = GradedAttempt(
                question,
                self._tokenizer.decode(ids),
                len(ids),
                truncated=not ids or ids[-1] not in self._tokenizer.stop_ids,
                verdict=None,
                opening=self._opening(question.system, question.prompt),
            )
            self._written.append(written)
            if distributed.is_first():
                graded = written.response if self._reads_reasoning else written.turn
                self._pool.add(question, graded, written.truncated)
        self._take_verdicts(wait=False)
        screen.count(rows.stop, len(self._questions))

    def _opening(self, system: str, prompt: str) -> str:
        end = self._tokenizer.encode_chat(system, prompt)[-_TAIL:]
        return thinking.opening(self._tokenizer.decode(end))

    def finish(
        self, check_stop: Callable[[], None] = lambda: None
    ) -> list[GradedAttempt]:
        """Every attempt, in the order in which they were added.

        Args:
          check_stop: called every second, on every host; what it raises ends the wait.

        Raises:
          ValueError: if an episode wants another act, or the grader failed on more than
            one attempt of twenty (a single failure is never too many, unless it is
            all).
        """
        # The other hosts have nothing to grade; the first one says when it is done.
        while not distributed.from_first(self._pool.wait(_PAUSE_S)):
            self._take_verdicts(wait=False)
            screen.count(len(self._verdicts), len(self._written))
            check_stop()
        self._take_verdicts(wait=True)
        verdicts = distributed.from_first(self._verdicts)
        # On every host, so that all stop together where the verdicts are of no use.
        _check_verdicts(self._questions, verdicts)
        return list(map(_with_verdict, self._written, verdicts))

    def _take_verdicts(self, wait: bool) -> None:
        """Hand on the attempts that are graded; only the first host has any."""
        for verdict in self._pool.verdicts(len(self._verdicts), wait=wait):
            written = self._written[len(self._verdicts)]
            self._verdicts.append(verdict)
            # An episode that wants another act is refused by `finish`.
            if not isinstance(verdict, str):
                self._each(_with_verdict(written, verdict))


def _with_verdict(written: GradedAttempt, verdict: dict | None) -> GradedAttempt:
    return dataclasses.replace(written, verdict=verdict and Verdict(**verdict))


def _check_verdicts(
    questions: Sequence[Question], verdicts: Sequence[dict | str | None]
) -> None:
    """Stop where no batch can be made of what the graders said."""
    for question, verdict in zip(questions, verdicts, strict=True):
        if isinstance(verdict, str):
            raise ValueError(
                f"question {question.uid}: the episode wants another act; only "
                "episodes of one act can be trained on so far"
            )
    failures = verdicts.count(None)
    if failures > max(_MOST_FAILURES * len(verdicts), 1) or failures == len(verdicts):
        raise ValueError(
            f"the grader failed on {failures} of {len(verdicts)} attempts, which says "
            "too little of the others. See its messages above"
        )


def pass_rates(c: ConfigDict, graded: Sequence[GradedAttempt]) -> dict[str, float]:
    """The solved share of each question's attempts, by its name.

    Attempts whose grading failed do not count; a question without others is left out.
    """
    solved = collections.defaultdict(list)
    for g in graded:
        if g.verdict:
            solved[g.question.uid].append(g.score >= c.reprompt.success_score)
    return {uid: sum(of_it) / len(of_it) for uid, of_it in solved.items()}
