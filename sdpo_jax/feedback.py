"""Where text becomes arrays: graded attempts in, one batch out.

verdicts -> what each attempt's teacher is shown -> token ids -> Batch
"""

import collections
import dataclasses
import random
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from sdpo_jax import methods, reprompt
from sdpo_jax.batch import Attempts, Batch
from sdpo_jax.data import padding
from sdpo_jax.data.tokenizer import Tokenizer
from sdpo_jax.envs.base import GradedAttempt
from sdpo_jax.methods import grpo
from sdpo_jax.methods.method import REPROMPT, SAMPLER_LOGP

_CUT = "\n[...]\n"


def make_batch(
    c: ConfigDict,
    tokenizer: Tokenizer,
    attempts: Attempts,
    graded: Sequence[GradedAttempt],
    update: int,
) -> tuple[Batch, list[dict], dict[str, float]]:
    """What one update reads, and what the log keeps of it.

    Args:
      c: the run's config; its method says what a row holds.
      tokenizer: of the model.
      attempts: host arrays; a question's attempts are the rows that share a prompt.
      graded: one per attempt.
      update: fixes, with the seed, which demonstrations are drawn.

    Returns:
      The batch as host arrays, a record per attempt for the transcript, and metrics.

    Raises:
      ValueError: if neighbouring rows that should share a prompt do not.
    """
    _check_neighbours(attempts)
    method, group = methods.of(c), attempts.rows_per_prompt
    # An attempt without a verdict teaches nothing, whatever the method.
    has_target_B = np.array([g.verdict is not None for g in graded])
    advantage_B = _advantages(c, graded, group)
    metrics = _metrics(c, graded, group)
    reprompts, reprompt_BQ = [None] * len(graded), None
    if REPROMPT in method.rows:
        shown = _shown(c, tokenizer, graded, group, update)
        reprompts, reprompt_BQ = _encode_reprompts(c, tokenizer, graded, shown)
        has_target_B &= np.array([s.teaches for s in shown])
        metrics |= _teacher_metrics(shown, has_target_B)
    batch = Batch(
        attempts=_narrowed(attempts, keep_logp=SAMPLER_LOGP in method.rows),
        has_target_B=has_target_B,
        loss_weight_B=np.ones(len(graded), np.float32),
        reprompt_BQ=reprompt_BQ,
        advantage_B=advantage_B if method.advantages else None,
    )
    records = [
        _record(*row)
        for row in zip(graded, reprompts, has_target_B, advantage_B, strict=True)
    ]
    return batch, records, metrics


def _check_neighbours(attempts: Attempts) -> None:
    """The update reads a prompt once for all rows that share it."""
    group = attempts.rows_per_prompt
    prompt_BP = np.asarray(attempts.prompt_BP)
    # [prompts, rows of each, P]; every row must equal the first of its prompt.
    prompt_UGP = prompt_BP.reshape(-1, group, prompt_BP.shape[1])
    if np.any(prompt_UGP != prompt_UGP[:, :1]):
        raise ValueError(
            f"every {group} neighbouring rows of the attempts must hold one prompt "
            "(rows_per_prompt); these do not"
        )


def _advantages(
    c: ConfigDict, graded: Sequence[GradedAttempt], group: int
) -> np.ndarray:
    """The method's advantages, float32 [B]; GRPO's, for the log, where it has none."""
    score_UG = np.array([g.score for g in graded], np.float64).reshape(-1, group)
    known_UG = np.array([g.verdict is not None for g in graded]).reshape(-1, group)
    make = methods.of(c).advantages or grpo.advantages
    return make(c, score_UG, known_UG).reshape(-1).astype(np.float32)


def _rules(c: ConfigDict) -> reprompt.Rules:
    fields = [field.name for field in dataclasses.fields(reprompt.Rules)]
    return reprompt.Rules(**{name: c.reprompt[name] for name in fields})


def _shown(c, tokenizer, graded, size, update) -> list[reprompt.Shown]:
    """What the teacher of each attempt is shown; a question has `size` attempts."""
    rules = _rules(c)
    shown = []
    for first in range(0, len(graded), size):
        group = graded[first : first + size]
        # Draws depend on the question, not on its place or on who else is in the batch.
        shown += reprompt.choose(
            rules,
            [g.turn for g in group],
            [g.score >= c.reprompt.success_score for g in group],
            [g.verdict.feedback if g.verdict else "" for g in group],
            random.Random(f"{c.seed}/{update}/{group[0].question.uid}"),
        )
    # Text that a policy or a program wrote must not end a turn of the chat.
    inert = lambda text: None if text is None else tokenizer.inert(text)
    return [
        reprompt.Shown(inert(s.solution), inert(s.attempt), inert(s.feedback))
        for s in shown
    ]


def _encode_reprompts(
    c: ConfigDict,
    tokenizer: Tokenizer,
    graded: Sequence[GradedAttempt],
    shown: Sequence[reprompt.Shown],
) -> tuple[list[str], np.ndarray]:
    """The user turn that each teacher reads, and the chats as token ids [B, Q]."""
    pairs = zip(graded, shown, strict=True)
    encoded = [_encode_reprompt(c, tokenizer, *pair) for pair in pairs]
    texts, ids = zip(*encoded, strict=True)
    # Few widths, so that few shapes of the update are ever compiled.
    width = padding.bucket(max(map(len, ids)), c.reprompt.max_length)
    return list(texts), padding.pad_left(ids, width)


def _encode_reprompt(
    c: ConfigDict, tokenizer: Tokenizer, graded: GradedAttempt, shown: reprompt.Shown
) -> tuple[str, list[int]]:
    """The user turn that the teacher reads, and the token ids of its chat.

    What is too long loses its middle, the longest text first. The question, the
    instruction and the chat header are never cut.

    Raises:
      ValueError: if these alone exceed `config.reprompt.max_length`.
    """
    rules, limit, question = _rules(c), c.reprompt.max_length, graded.question

    def render(shown: reprompt.Shown) -> tuple[str, list[int]]:
        text = reprompt.render(rules, question.prompt, shown)
        return text, tokenizer.encode_chat(question.system, text)

    text, ids = render(shown)
    if len(ids) <= limit:
        return text, ids
    texts = dataclasses.asdict(shown).items()
    uncut = {name: tokenizer.encode(part) for name, part in texts if part is not None}
    budget = sum(map(len, uncut.values()))
    # A text may take more tokens than were kept of it: the mark of the cut, and letters
    # that the cut broke. Only a budget that shrinks in every round is sure to end.
    while budget and len(ids) > limit:
        budget = max(budget - (len(ids) - limit), 0)
        text, ids = render(_cut(tokenizer, shown, uncut, budget))
    if len(ids) > limit:
        raise ValueError(
            f"question {question.uid} alone takes more than "
            f"reprompt.max_length={limit} tokens; raise it"
        )
    return text, ids


def _cut(
    tokenizer: Tokenizer, shown: reprompt.Shown, uncut: dict[str, list[int]], budget
) -> reprompt.Shown:
    """What is shown, cut to `budget` tokens in total by one limit for every text."""
    shorter = {}
    # The shortest first: what it leaves of its share goes to the longer ones.
    for index, name in enumerate(sorted(uncut, key=lambda name: len(uncut[name]))):
        kept = min(len(uncut[name]), budget // (len(uncut) - index))
        budget -= kept
        if kept < len(uncut[name]):
            shorter[name] = _without_middle(tokenizer, uncut[name], kept)
    return dataclasses.replace(shown, **shorter)


def _without_middle(tokenizer: Tokenizer, ids: list[int], kept: int) -> str:
    """The text of the first and last of `ids`, `kept` of them in total."""
    half = kept // 2
    head, tail = ids[:half], ids[len(ids) - half :]
    # Joined, two harmless halves could spell a special token.
    return tokenizer.inert(tokenizer.decode(head) + _CUT + tokenizer.decode(tail))


def _narrowed(attempts: Attempts, keep_logp: bool) -> Attempts:
    """Attempts as the update reads them: without columns that only hold padding.

    Few different widths occur. The log-probabilities at temperature 1 are left out, and
    those of the sampler unless `keep_logp`.
    """
    limit = attempts.response_BR.shape[1]
    longest = int((attempts.response_BR >= 0).sum(axis=1).max())
    width = padding.bucket(max(longest, 1), limit)
    return attempts.replace(
        response_BR=attempts.response_BR[:, :width],
        response_mask_BR=attempts.response_mask_BR[:, :width],
        sampler_logp_BR=attempts.sampler_logp_BR[:, :width] if keep_logp else None,
        policy_logp_BR=None,
    )


def record(graded: GradedAttempt) -> dict:
    """What a transcript holds of an attempt, whoever asked for it."""
    verdict = graded.verdict
    return {
        "question": graded.question.uid,
        "prompt": graded.question.prompt,
        "response": graded.response,
        "num_tokens": graded.num_tokens,
        "truncated": graded.truncated,
        "outcome": verdict.outcome if verdict else "Grader Failure",
        "score": graded.score,
        "feedback": verdict.feedback if verdict else "",
    }


def _record(
    graded: GradedAttempt, reprompted: str | None, has_target, advantage
) -> dict:
    return record(graded) | {
        "advantage": float(advantage),
        "has_target": bool(has_target),
        "reprompt": reprompted if has_target else None,
    }


def _mean(values) -> float:
    return float(np.mean(list(values)))


def _metrics(
    c: ConfigDict, graded: Sequence[GradedAttempt], group: int
) -> dict[str, float]:
    solved_UG = np.array([g.score >= c.reprompt.success_score for g in graded])
    solved_UG = solved_UG.reshape(-1, group)
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
