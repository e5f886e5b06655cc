"""A vocabulary that the mesh need not divide.

The head is stored without padding, see `decoder.logical_axes`, so that checkpoints do
not depend on the mesh. It is padded where logits are sharded along the vocabulary.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sdpo_jax import distributed
from sdpo_jax.model import decoder
from sdpo_jax.model.families import Architecture

# A logit whose probability is 0 in every floating-point type; finite, because 0 * -inf
# in a divergence would be NaN.
_IMPOSSIBLE = -1e30


def unembedding(arch: Architecture, params: decoder.Params) -> jax.Array:
    """`decoder.unembedding` with columns of zeros, up to a number that divides."""
    unembed_DV = decoder.unembedding(arch, params)
    more = -arch.vocab % distributed.slices("vocab")
    return jnp.pad(unembed_DV, ((0, 0), (0, more))) if more else unembed_DV


def within(arch: Architecture, logits: jax.Array) -> jax.Array:
    """Logits of which those of padding have neither probability nor gradient."""
    if logits.shape[-1] == arch.vocab:
        return logits
    index = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    return jnp.where(index < arch.vocab, logits, _IMPOSSIBLE)


def loss_within(arch: Architecture, loss: Callable) -> Callable:
    """A loss on (student's logits, tuple of teachers' logits, tokens), `within`."""

    def on_chunk(student: jax.Array, teachers: tuple[jax.Array, ...], tokens: Any):
        teachers = tuple(within(arch, logits) for logits in teachers)
        return loss(within(arch, student), teachers, tokens)

    return on_chunk
