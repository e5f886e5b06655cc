"""Engines: token ids in, token ids out."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax

from sdpo_jax.batch import Attempts


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How attempts are drawn.

    Args:
      attempts: per prompt.
      temperature: divides the logits; 0 takes the most likely token.
      top_p: keeps the smallest set of tokens with at least this probability; 1 keeps
        all.
      top_k: number of most likely tokens kept, ties included; 0 keeps all.
      max_response: tokens, the stop token included.
    """

    attempts: int
    temperature: float
    top_p: float
    top_k: int
    max_response: int


class Engine(Protocol):
    """Samples attempts with given weights."""

    def sample(
        self,
        params: Any,
        prompts: Sequence[Sequence[int]],
        ids: Sequence[int],
        sampling: Sampling,
        key: jax.Array,
        each: Callable[[slice, Attempts], None] = lambda rows, attempts: None,
    ) -> Attempts:
        """Attempts at every prompt, as host arrays; a prompt's attempts are adjacent.

        Args:
          params: the student's parameters.
          prompts: token ids.
          ids: one number per prompt; with `key` it determines what is drawn for the
            prompt, whatever else is sampled in the same call.
          sampling: how to draw.
          key: a JAX random key.
          each: called in order with every group of rows of the result once they are
            complete; what it starts can run while the next group is sampled.
        """
