"""Keys and values of a prompt shared by its attempts, and of each attempt.

The prompt is read once per question; its G attempts attend to that one copy.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from sdpo_jax.model import attention


@flax.struct.dataclass
class LayerCache:
    """One layer's keys and values: `[U, N, P, E]` of prompts, `[B, N, S, E]` after.

    Heads come before slots, as attention multiplies them: kept otherwise, the whole
    cache would be transposed at every token.
    """

    prompt_k: jax.Array
    prompt_v: jax.Array
    response_k: jax.Array
    response_v: jax.Array


@flax.struct.dataclass
class Cache:
    """All layers' caches, and which prompt positions exist.

    Args:
      layers: one LayerCache per layer, unstacked: a scan over stacked caches would
        copy them at every token.
      prompt_exists_UP: false on the prompts' padding.
      prompt_length_B: tokens of each row's prompt.
    """

    layers: tuple[Any, ...]
    prompt_exists_UP: jax.Array
    prompt_length_B: jax.Array


def start(keys_values, exists_UP: jax.Array, group: int, slots: int) -> Cache:
    """The cache after a prompt, with empty slots for `group` responses to each."""

    def layer(k_UPNE: jax.Array, v_UPNE: jax.Array) -> LayerCache:
        rows, _, heads, width = k_UPNE.shape
        empty = jnp.zeros((rows * group, heads, slots, width), k_UPNE.dtype)
        return LayerCache(_swap(k_UPNE), _swap(v_UPNE), empty, empty)

    length_U = jnp.sum(exists_UP, axis=1, dtype=jnp.int32)
    layers = tuple(layer(k, v) for k, v in keys_values)
    return Cache(layers, exists_UP, jnp.repeat(length_U, group))


def grow(cache: Cache, slots: int) -> Cache:
    """The same cache with room for `slots` response tokens."""

    def pad(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, slots - x.shape[2]), (0, 0)))

    layers = tuple(
        layer.replace(
            response_k=pad(layer.response_k), response_v=pad(layer.response_v)
        )
        for layer in cache.layers
    )
    return cache.replace(layers=layers)


def write(layer: LayerCache, k_B1NE, v_B1NE, slot: jax.Array) -> LayerCache:
    """Store one token's key and value of every row at `slot`."""
    update = jax.lax.dynamic_update_slice_in_dim
    return layer.replace(
        response_k=update(layer.response_k, _swap(k_B1NE), slot, axis=2),
        response_v=update(layer.response_v, _swap(v_B1NE), slot, axis=2),
    )


def read(q_B1HE: jax.Array, layer: LayerCache, exists_UP, slot) -> jax.Array:
    """Attention of one new token per row to its prompt and its response so far."""
    prompts = exists_UP.shape[0]
    k, v, own_k, own_v = map(_swap, jax.tree.leaves(layer))
    # To the prompt, the attempts of a question are so many positions.
    q_UGHE = q_B1HE.reshape(prompts, -1, *q_B1HE.shape[2:])
    to_prompt = attention.part(q_UGHE, k, v, exists_UP[:, None])
    by_row = lambda x: x.reshape(q_B1HE.shape[0], 1, *x.shape[2:])
    written_11S = (jnp.arange(own_k.shape[1]) <= slot)[None, None]
    to_own = attention.part(q_B1HE, own_k, own_v, written_11S)
    return attention.merge([jax.tree.map(by_row, to_prompt), to_own])


def _swap(x: jax.Array) -> jax.Array:
    """[B, S, N, E] to [B, N, S, E], and back."""
    return jnp.swapaxes(x, 1, 2)
