"""How good a policy is: avg@k and unbiased pass@k on a split of questions."""

import math
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sdpo_jax import config, envs, feedback
from sdpo_jax.components import Parts, build
from sdpo_jax.config import SPLITS
from sdpo_jax.envs.base import Environment
from sdpo_jax.rollout import Sampling


def pass_at_k(num_attempts: int, num_correct: int, k: int) -> float:
    """Probability that k attempts drawn without replacement hold a correct one.

    Unbiased estimator 1 - C(n - c, k) / C(n, k)  (arXiv:2107.03374, eq. 1).

    Args:
      num_attempts: n, attempts made on one question.
      num_correct: c, attempts graded correct.
      k: attempts drawn.

    Returns:
      A probability in [0, 1].

    Raises:
      ValueError: if k exceeds num_attempts.
    """
    if k > num_attempts:
        raise ValueError(
            f"pass@{k} needs at least {k} attempts per question, got "
            f"{num_attempts}; raise eval.attempts"
        )
    missed = math.comb(num_attempts - num_correct, k)
    return 1.0 - missed / math.comb(num_attempts, k)


def run(c, environment: Environment | None = None) -> dict[str, dict[str, float]]:
    """Evaluate the config's checkpoint as it is.

    Args:
      c: the run's config.
      environment: one of the caller's own, instead of `config.env`'s.

    Returns:
      Split ("train", "validation", "heldout") -> name -> value.
    """
    config.validate(c)
    envs.validate(c)
    with build(c, environment) as parts:
        params = parts.load_params()
        return {split: on_split(parts, params, split)[0] for split in SPLITS}


def on_split(
    parts: Parts, policy: Any, split: str
) -> tuple[dict[str, float], list[feedback.GradedAttempt]]:
    """Sample and grade `config.eval.attempts` attempts at every question of a split.

    The draws depend on the seed and the question only, so two policies are compared on
    the same random numbers.

    Returns:
      {"avg@n": mean score, "pass@k": ..., "length_mean": tokens, "truncated": share},
      with "dropped_questions" if there are any, and the graded attempts.
    """
    c = parts.config
    every = parts.environment.questions(split)
    questions = feedback.fitting(c, parts.tokenizer, every, split)
    dropped = len(every) - len(questions)
    questions = questions[: c.eval.max_questions or None]
    sampling = Sampling(
        c.eval.attempts,
        c.eval.temperature,
        c.eval.top_p,
        c.eval.top_k,
        c.rollout.max_response,
    )
    key = jax.random.fold_in(jax.random.key(c.seed), zlib.crc32(split.encode()))
    prompts = feedback.encode(c, parts.tokenizer, questions)
    repeated = [q for q in questions for _ in range(c.eval.attempts)]
    grading = feedback.Grading(c, parts.environment, parts.tokenizer, repeated)
    with grading:
        ids = range(len(questions))
        parts.engine.sample(policy, prompts, ids, sampling, key, grading.add)
        graded = grading.finish()
    counted = {"dropped_questions": float(dropped)} if dropped else {}
    return summarise(c, graded) | counted, graded


def summarise(c, graded: Sequence[feedback.GradedAttempt]) -> dict[str, float]:
    """Named numbers of attempts, where a question's attempts are adjacent."""
    n = c.eval.attempts
    solved_UG = np.array([g.score >= c.reprompt.success_score for g in graded])
    counts = solved_UG.reshape(-1, n).sum(axis=1).tolist()
    passes = {
        f"pass@{k}": float(np.mean([pass_at_k(n, count, k) for count in counts]))
        for k in c.eval.pass_at
    }
    return {
        f"avg@{n}": float(np.mean([g.score for g in graded])),
        **passes,
        "length_mean": float(np.mean([g.num_tokens for g in graded])),
        "truncated": float(np.mean([g.truncated for g in graded])),
        "grader_failures": float(sum(g.verdict is None for g in graded)),
    }
