"""Where text meets arrays: questions in, graded attempts and a batch out.

encode      questions -> token ids
Grading     sampled token ids -> text -> the environment's verdicts
make_batch  verdicts -> what each attempt's teacher is shown -> token ids -> Batch
"""

import collections
import dataclasses
import logging
import random
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from sdpo_jax import distributed, reprompt
from sdpo_jax.batch import Attempts, Batch
from sdpo_jax.data import padding
from sdpo_jax.data.tokenizer import Tokenizer
from sdpo_jax.envs import grading_pool
from sdpo_jax.envs.base import Environment, Verdict
from sdpo_jax.methods import READS_TEACHER
from sdpo_jax.questions.question import Question

_log = logging.getLogger(__name__)
_CUT = "\n[...]\n"
# Share of attempts; above it the rest is no fair sample.
_MOST_FAILURES = 0.05


@dataclasses.dataclass(frozen=True)
class GradedAttempt:
    """One attempt as text, and what the environment said of it.

    Args:
      question: what was asked.
      response: what the policy wrote, without special tokens.
      num_tokens: tokens it drew, the stop token included.
      truncated: whether the length limit cut it off.
      verdict: None when the grader itself failed, so that nothing is known.
    """

    question: Question
    response: str
    num_tokens: int
    truncated: bool
    verdict: Verdict | None

    @property
    def score(self) -> float:
        """The verdict's score; 0 when nothing is known."""
        return self.verdict.score if self.verdict else 0.0


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


def fitting(
    c: ConfigDict, tokenizer: Tokenizer, questions: Sequence[Question], split: str
) -> list[Question]:
    """The questions of a split whose prompts fit; what is dropped is told.

    All of them where `config.rollout.long_prompts` is "refuse", as `encode` does then.

    Raises:
      ValueError: if none fits.
    """
    if c.rollout.long_prompts == "refuse":
        return list(questions)
    length = lambda q: len(tokenizer.encode_chat(q.system, q.prompt))
    kept = [q for q in questions if length(q) <= c.rollout.max_prompt]
    told = (
        f"{split}: {len(questions) - len(kept)} of {len(questions)} questions take "
        f"more than rollout.max_prompt={c.rollout.max_prompt} tokens"
    )
    if not kept:
        raise ValueError(f"{told}; raise it")
    if len(kept) < len(questions):
        _log.warning("%s and are dropped", told)
    return kept


class Grading:
    """Decodes and grades attempts, concurrently, and while others are being sampled.

    On a pod the first host grades for all: a time limit or a traceback may differ from
    host to host, and then so would their batches.

    Args:
      c: the run's config.
      environment: the judge; see `grading_pool.GradingPool` for how it may fail.
      tokenizer: of the model that wrote them.
      questions: one per attempt, in the same order.
    """

    def __init__(
        self,
        c: ConfigDict,
        environment: Environment,
        tokenizer: Tokenizer,
        questions: Sequence[Question],
    ):
        self._tokenizer, self._questions = tokenizer, questions
        self._written: list[GradedAttempt] = []
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
            response = self._tokenizer.decode(ids)
            truncated = not ids or ids[-1] not in self._tokenizer.stop_ids
            self._written.append(
                GradedAttempt(question, response, len(ids), truncated, None)
            )
            if distributed.is_first():
                self._pool.add(question, response, truncated)

    def finish(self) -> list[GradedAttempt]:
        """One GradedAttempt per attempt, in order, whatever order they finish in.

        Raises:
          ValueError: if an episode wants another act, or the grader failed on more than
            one attempt of twenty (a single failure is never too many, unless it is
            all).
        """
        verdicts = self._pool.verdicts() if distributed.is_first() else None
        verdicts = distributed.from_first(verdicts)
        _check_verdicts(self._questions, verdicts)
        known = [verdict and Verdict(**verdict) for verdict in verdicts]
        pairs = zip(self._written, known, strict=True)
        return [dataclasses.replace(w, verdict=verdict) for w, verdict in pairs]


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


def make_batch(
    c: ConfigDict,
    tokenizer: Tokenizer,
    attempts: Attempts,
    graded: Sequence[GradedAttempt],
    update: int,
) -> tuple[Batch, list[dict], dict[str, float]]:
    """What one update reads, and what the log keeps of it.

    Args:
      c: the run's config.
      tokenizer: of the model.
      attempts: host arrays; a question's attempts are adjacent.
      graded: one per attempt.
      update: fixes, with the seed, which demonstrations are drawn.

    Returns:
      The batch as host arrays, a record per attempt for the transcript, and metrics.

    Raises:
      ValueError: if neighbouring rows that should share a prompt do not.
    """
    _check_neighbours(c, attempts)
    known_B = np.array([g.verdict is not None for g in graded])
    metrics = _metrics(c, graded)
    if c.method in READS_TEACHER:
        shown = _shown(c, tokenizer, graded, update)
        encoded = [
            _encode_reprompt(c, tokenizer, *pair)
            for pair in zip(graded, shown, strict=True)
        ]
        reprompts, ids = zip(*encoded, strict=True)
        width = padding.bucket(max(map(len, ids)), c.reprompt.max_length)
        reprompt_BQ = padding.pad_left(ids, width)
        has_target_B = known_B & np.array([s.teaches for s in shown])
        metrics |= _teacher_metrics(shown, has_target_B)
    else:
        reprompts = [None] * len(graded)
        reprompt_BQ = padding.pad_left([[]] * len(graded), 1)
        has_target_B = known_B
    advantage_B = advantages(c, [g.score for g in graded], known_B)
    batch = Batch(
        attempts=_narrowed(attempts),
        reprompt_BQ=reprompt_BQ,
        has_target_B=has_target_B,
        advantage_B=advantage_B,
        old_logp_BR=None,
        loss_weight_B=np.ones(len(graded), np.float32),
    )
    records = [
        _record(*row)
        for row in zip(graded, reprompts, has_target_B, advantage_B, strict=True)
    ]
    return batch, records, metrics


def _check_neighbours(c: ConfigDict, attempts: Attempts) -> None:
    """The update reads a prompt once for all attempts at its question."""
    prompt_BP = np.asarray(attempts.prompt_BP)
    prompt_UGP = prompt_BP.reshape(-1, c.rollout.attempts, prompt_BP.shape[1])
    if np.any(prompt_UGP != prompt_UGP[:, :1]):
        raise ValueError(
            f"every {c.rollout.attempts} neighbouring rows of the attempts must hold "
            "one prompt (rollout.attempts); these do not"
        )


def advantages(c: ConfigDict, scores: Sequence[float], known_B) -> np.ndarray:
    """Scores less the mean of their question's attempts (arXiv:2601.20802, Sec. 2).

    An attempt whose grading failed is left out of the mean and gets 0.

    Args:
      c: the run's config; `grpo.normalize_std` divides by the unbiased deviation.
      scores: a question's attempts are adjacent.
      known_B: false where the grading failed.

    Returns:
      float32 [B].
    """
    score_UG = np.asarray(scores, np.float64).reshape(-1, c.rollout.attempts)
    known_UG = np.asarray(known_B).reshape(score_UG.shape)
    count_U1 = np.maximum(known_UG.sum(axis=1, keepdims=True), 1)
    mean_U1 = (score_UG * known_UG).sum(axis=1, keepdims=True) / count_U1
    advantage_UG = (score_UG - mean_U1) * known_UG
    if c.grpo.normalize_std:
        power_U1 = np.square(advantage_UG).sum(axis=1, keepdims=True)
        advantage_UG /= np.sqrt(power_U1 / np.maximum(count_U1 - 1, 1)) + 1e-6
    return advantage_UG.reshape(-1).astype(np.float32)


def _rules(c: ConfigDict) -> reprompt.Rules:
    fields = [field.name for field in dataclasses.fields(reprompt.Rules)]
    return reprompt.Rules(**{name: c.reprompt[name] for name in fields})


def _shown(c, tokenizer, graded, update) -> list[reprompt.Shown]:
    """What each attempt's teacher is shown, question by question."""
    rules, size = _rules(c), c.rollout.attempts
    shown = []
    for first in range(0, len(graded), size):
        group = graded[first : first + size]
        shown += reprompt.choose(
            rules,
            [g.response for g in group],
            [g.score >= c.reprompt.success_score for g in group],
            [g.verdict.feedback if g.verdict else "" for g in group],
            random.Random(f"{c.seed}/{update}/{group[0].question.uid}"),
        )
    # Nothing that a policy or a program wrote may end a turn of the chat.
    inert = lambda text: None if text is None else tokenizer.inert(text)
    return [
        reprompt.Shown(inert(s.solution), inert(s.attempt), inert(s.feedback))
        for s in shown
    ]


def _encode_reprompt(
    c: ConfigDict, tokenizer: Tokenizer, graded: GradedAttempt, shown: reprompt.Shown
) -> tuple[str, list[int]]:
    """The teacher's user turn, as text and as the whole chat's token ids.

    What is too long loses its middle, the longest thing shown first; the question, the
    instruction and the chat header always stay whole.
    """
    rules, limit, question = _rules(c), c.reprompt.max_length, graded.question

    def render(shown: reprompt.Shown) -> tuple[str, list[int]]:
        text = reprompt.render(rules, question.prompt, shown)
        return text, tokenizer.encode_chat(question.system, text)

    text, ids = render(shown)
    if len(ids) <= limit:
        return text, ids
    parts = dataclasses.asdict(shown).items()
    whole = {name: tokenizer.encode(part) for name, part in parts if part is not None}
    budget = sum(map(len, whole.values()))
    # What is left of a text may take more tokens than were kept of it: a mark, and
    # broken letters. Only a budget that shrinks each time is sure to come to an end.
    while budget and len(ids) > limit:
        budget = max(budget - (len(ids) - limit), 0)
        text, ids = render(_cut(tokenizer, shown, whole, budget))
    if len(ids) > limit:
        raise ValueError(
            f"question {question.uid} alone takes more than "
            f"reprompt.max_length={limit} tokens; raise it"
        )
    return text, ids


def _cut(
    tokenizer: Tokenizer, shown: reprompt.Shown, whole: dict[str, list[int]], budget
) -> reprompt.Shown:
    """What is shown, cut to `budget` tokens in all by one limit for every part."""
    shorter = {}
    for index, name in enumerate(sorted(whole, key=lambda name: len(whole[name]))):
        kept = min(len(whole[name]), budget // (len(whole) - index))
        budget -= kept
        if kept < len(whole[name]):
            shorter[name] = _without_middle(tokenizer, whole[name], kept)
    return dataclasses.replace(shown, **shorter)


def _without_middle(tokenizer: Tokenizer, ids: list[int], kept: int) -> str:
    """The text of the first and last of `ids`, `kept` in all."""
    half = kept // 2
    head, tail = ids[:half], ids[len(ids) - half :]
    return tokenizer.inert(tokenizer.decode(head) + _CUT + tokenizer.decode(tail))


def _narrowed(attempts: Attempts) -> Attempts:
    """Attempts without columns of nothing but padding, in few different widths.

    The update does not read the log-probabilities at temperature 1.
    """
    limit = attempts.response_BR.shape[1]
    longest = int((attempts.response_BR >= 0).sum(axis=1).max())
    width = padding.bucket(max(longest, 1), limit)
    return attempts.replace(
        response_BR=attempts.response_BR[:, :width],
        response_mask_BR=attempts.response_mask_BR[:, :width],
        sampler_logp_BR=attempts.sampler_logp_BR[:, :width],
        policy_logp_BR=None,
    )


def _record(
    graded: GradedAttempt, reprompted: str | None, has_target, advantage
) -> dict:
    verdict = graded.verdict
    return {
        "question": graded.question.uid,
        "prompt": graded.question.prompt,
        "response": graded.response,
        "num_tokens": graded.num_tokens,
        "truncated": graded.truncated,
        "outcome": verdict.outcome if verdict else "Grader Failure",
        "score": graded.score,
        "advantage": float(advantage),
        "feedback": verdict.feedback if verdict else "",
        "has_target": bool(has_target),
        "reprompt": reprompted if has_target else None,
    }


def _mean(values) -> float:
    return float(np.mean(list(values)))


def _metrics(c: ConfigDict, graded: Sequence[GradedAttempt]) -> dict[str, float]:
    solved_UG = np.array([g.score >= c.reprompt.success_score for g in graded])
    solved_UG = solved_UG.reshape(-1, c.rollout.attempts)
    lengths = [g.num_tokens for g in graded]
    measured = collections.defaultdict(list)
    for g in graded:
        for name, value in (g.verdict.measurements if g.verdict else {}).items():
            measured[name].append(value)
    return {
        "rollout/score": _mean(g.score for g in graded),
        "rollout/solved_samples": _mean(solved_UG),
        "rollout/solved_groups": _mean(solved_UG.any(axis=1)),
        "rollout/length_mean": _mean(lengths),
        "rollout/length_max": float(max(lengths)),
        "rollout/truncated": _mean(g.truncated for g in graded),
        "rollout/grader_failures": float(sum(g.verdict is None for g in graded)),
        **{f"env/{name}": _mean(values) for name, values in sorted(measured.items())},
    }


def _teacher_metrics(shown: Sequence[reprompt.Shown], has_target_B) -> dict[str, float]:
    return {
        "teacher/shown_solution": _mean(s.solution is not None for s in shown),
        "teacher/shown_feedback": _mean(s.feedback is not None for s in shown),
        "teacher/has_target": _mean(has_target_B),
    }
