"""What a method is: how graded attempts become a loss. Its file says all of it."""

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

# What a row may hold beside prompt and response.
REPROMPT, ADVANTAGE, SAMPLER_LOGP = "reprompt", "advantage", "sampler_logp"


@dataclasses.dataclass(frozen=True)
class Divergence:
    """Which distance of two next-token distributions a method takes, as data.

    A kernel that never forms logits reads it instead of calling a loss.

    Args:
      kind: "forward_kl", "reverse_kl" or "jensen_shannon".
      mixture: the teacher's share of the Jensen-Shannon mixture, in (0, 1).
      support: "full" vocabulary, the student's "top_k" tokens, or "sampled_token".
      top_k: tokens of that support.
      keep_tail: whether the rest of the vocabulary is one more bucket; else the top
        K are renormalised.
    """

    kind: str
    mixture: float
    support: str
    top_k: int
    keep_tail: bool


@dataclasses.dataclass(frozen=True)
class Method:
    """One method; `config.method` names it and the subtree of that name is its own.

    Args:
      loss: a pure function of one chunk of response positions.
      rows: what each row holds beside prompt and response: any of "reprompt",
        "advantage" and "sampler_logp". `Batch` lacks what is not named here.
      reads_teacher: whether the self-teacher's logits are made for the loss.
      advantages: (config, scores [U, G], known [U, G]) -> float64 [U, G]; where the
        grading failed, `known` is false and the advantage 0. None without "advantage".
      check: raises ValueError where the config makes no sense for this method.
      divergence: the divergence that the config asks for; None where the loss is none.
    """

    loss: Loss
    rows: frozenset[str]
    reads_teacher: bool = False
    advantages: Callable[[ConfigDict, np.ndarray, np.ndarray], np.ndarray] | None = None
    check: Callable[[ConfigDict], None] = lambda c: None
    divergence: Callable[[ConfigDict], Divergence] | None = None

    def __post_init__(self):
        if self.reads_teacher != (REPROMPT in self.rows):
            raise ValueError("a method reads a teacher where its rows hold reprompts")
        if (self.advantages is None) == (ADVANTAGE in self.rows):
            raise ValueError("a method makes advantages where its rows hold them")
