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
    """One layer's keys and values: `[U, P, N, E]` of prompts, `[B, S, N, E]` after."""

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
        empty = jnp.zeros((rows * group, slots, heads, width), k_UPNE.dtype)
        return LayerCache(k_UPNE, v_UPNE, empty, empty)

    length_U = jnp.sum(exists_UP, axis=1, dtype=jnp.int32)
    layers = tuple(layer(k, v) for k, v in keys_values)
    return Cache(layers, exists_UP, jnp.repeat(length_U, group))


def grow(cache: Cache, slots: int) -> Cache:
    """The same cache with room for `slots` response tokens."""

    def pad(x: jax.Array) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, slots - x.shape[1]), (0, 0), (0, 0)))

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
        response_k=update(layer.response_k, k_B1NE, slot, axis=1),
        response_v=update(layer.response_v, v_B1NE, slot, axis=1),
    )


def read(q_B1HE: jax.Array, layer: LayerCache, exists_UP, slot) -> jax.Array:
    """Attention of one new token per row to its prompt and its response so far."""
    rows, _, heads, width = q_B1HE.shape
    prompts, prompt_slots = exists_UP.shape
    # The attempts of a question stand as time steps of its one prompt.
    q_UGHE = q_B1HE.reshape(prompts, rows // prompts, heads, width)
    to_prompt = attention.scores(q_UGHE, layer.prompt_k)
    to_response = attention.scores(q_B1HE, layer.response_k)
    floor = jnp.asarray(jnp.finfo(to_prompt.dtype).min, to_prompt.dtype)
    to_prompt = jnp.where(exists_UP[:, None, None, None, :], to_prompt, floor)
    written_S = jnp.arange(layer.response_k.shape[1]) <= slot
    to_response = jnp.where(written_S[None, None, None, None], to_response, floor)

    # [U, N, H/N, G, P] -> [B, N, H/N, 1, P]: from prompts to rows.
    kv_heads = layer.prompt_k.shape[2]
    by_row = (rows, kv_heads, heads // kv_heads, 1, prompt_slots)
    to_prompt = jnp.moveaxis(to_prompt, 3, 1).reshape(by_row)
    logits = jnp.concatenate([to_prompt, to_response], axis=-1)
    weight = jax.nn.softmax(logits, axis=-1)
    weight_prompt, weight_response = jnp.split(weight, [prompt_slots], axis=-1)

    by_prompt = (prompts, rows // prompts, *by_row[1:3], prompt_slots)
    weight_prompt = jnp.moveaxis(weight_prompt.reshape(by_prompt), 1, 3)
    from_prompt = attention.mix(weight_prompt, layer.prompt_v)
    from_response = attention.mix(weight_response, layer.response_v)
    return from_prompt.reshape(q_B1HE.shape) + from_response
