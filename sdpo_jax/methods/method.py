"""What a method is: how graded attempts become a loss; each has one file for it."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict

from sdpo_jax.methods.tokens import Tokens

# (config, student's logits [B, C, V], one such array per teacher, per-token arrays)
# -> (sum of weighted token losses, per-token sums for the log, without gradient)
Loss = Callable[
    [ConfigDict, jax.Array, tuple[jax.Array, ...], Tokens],
    tuple[jax.Array, dict[str, jax.Array]],
]

# What a row may hold besides prompt and response.
REPROMPT, SAMPLER_LOGP = "reprompt", "sampler_logp"


@dataclasses.dataclass(frozen=True)
class Divergence:
    """The divergence of two next-token distributions that a method uses, as data.

    A kernel that never forms logits can read it instead of calling a loss.

    Args:
      kind: "forward_kl", "reverse_kl" or "jensen_shannon".
      mixture: the teacher's share of the Jensen-Shannon mixture, in (0, 1).
      support: "full" vocabulary, the student's "top_k" tokens, or "sampled_token".
      top_k: number of tokens of that support.
      keep_tail: whether the rest of the vocabulary is one more bucket; if not, the top
        K are renormalised.
    """

    kind: str
    mixture: float
    support: str
    top_k: int
    keep_tail: bool


@dataclasses.dataclass(frozen=True)
class Method:
    """One method, named by `config.method`; its options are the subtree of its name.

    Args:
      loss: a pure function of one chunk of response positions.
      rows: what each row holds besides prompt and response: "reprompt", "sampler_logp"
        or both. What is not named here is None in `Batch`.
      reads_teacher: whether the loss needs the self-teacher's logits. The teacher reads
        the reprompt, or the prompt where rows hold no reprompt.
      advantages: (config, scores [U, G], known [U, G]) -> float64 [U, G]; where the
        grading failed, `known` is false and the advantage 0. None for rows without
        advantages.
      check: raises ValueError where the config makes no sense for this method.
      divergence: the divergence of a config; None where the loss is no divergence.
    """

    loss: Loss
    rows: frozenset[str] = frozenset()
    reads_teacher: bool = False
    advantages: Callable[[ConfigDict, np.ndarray, np.ndarray], np.ndarray] | None = None
    check: Callable[[ConfigDict], None] = lambda c: None
    divergence: Callable[[ConfigDict], Divergence] | None = None

    def __post_init__(self):
        unknown = self.rows - {REPROMPT, SAMPLER_LOGP}
        if unknown or (REPROMPT in self.rows and not self.reads_teacher):
            raise ValueError(
                f"rows={sorted(self.rows)}: expected {REPROMPT!r} (only where "
                f"reads_teacher is true) and {SAMPLER_LOGP!r}"
            )
