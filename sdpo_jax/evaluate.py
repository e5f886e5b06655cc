"""How good a policy is: avg@k and unbiased pass@k on a split of questions."""

import logging
import math
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from sdpo_jax.collect import collect, drop_long_prompts, sampling_of
from sdpo_jax.components import Components, build
from sdpo_jax.config import SPLITS
from sdpo_jax.envs.base import Environment, GradedAttempt

_log = logging.getLogger(__name__)


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
      environment: the caller's own, used instead of `config.env`'s.

    Returns:
      Split ("train", "validation", "heldout") -> name -> value.
    """
    with build(c, environment, trains=False) as components:
        params = components.load_params()
        return {split: on_split(components, params, split)[0] for split in SPLITS}


def on_splits(
    components: Components, policy: Any, splits: Sequence[str], label: str
) -> dict[str, float]:
    """`on_split` of several splits, as "split/name"; logged as they come.

    Args:
      components: as for `on_split`.
      policy: as for `on_split`.
      splits: of "train", "validation" and "heldout".
      label: what the policy is, for the log.
    """
    values = {}
    for split in splits:
        of_split, _ = on_split(components, policy, split)
        values |= {f"{split}/{name}": x for name, x in of_split.items()}
        named = ", ".join(f"{name} {x:.4g}" for name, x in of_split.items())
        _log.info("%s, %s: %s", label, split, named)
    return values


def on_split(
    components: Components, policy: Any, split: str
) -> tuple[dict[str, float], list[GradedAttempt]]:
    """Sample and grade `config.eval.attempts` attempts at every question of a split.

    The draws depend on the seed and the question only, so two policies are compared on
    the same random numbers.

    Returns:
      {"avg@n": mean score, "pass@k": ..., "length_mean": tokens, "truncated": share},
      with "dropped_questions" if there are any, and the graded attempts.
    """
    c = components.config
    every = components.environment.questions(split)
    questions = drop_long_prompts(c, components.tokenizer, every, split)
    dropped = len(every) - len(questions)
    questions = questions[: c.eval.max_questions or None]
    key = jax.random.fold_in(jax.random.key(c.seed), zlib.crc32(split.encode()))
    _, graded = collect(components, policy, questions, sampling_of(c, c.eval), key)
    counted = {"dropped_questions": float(dropped)} if dropped else {}
    return summarise(c, graded) | counted, graded


def summarise(c, graded: Sequence[GradedAttempt]) -> dict[str, float]:
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
