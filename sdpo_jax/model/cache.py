"""Keys and values of prompts, and of the responses that share them.

A prompt is read once per question and its G attempts attend to that one copy. A layer
with a sliding window keeps only what the window can reach: the end of the prompt, and a
ring buffer of the response's last tokens.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from sdpo_jax.model import attention


@flax.struct.dataclass
class LayerCache:
    """One layer's keys and values: prompts' [U, N, P, E], responses' [B, N, S, E].

    Token t of a response is in slot t % S; t exceeds S only in layers with a window.
    Heads come before slots, the order in which attention multiplies them: with slots
    first, the entire cache would be transposed at every token.
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
      slots: response tokens that there is room for; fixed when a program is compiled.
      windows: of each layer; None where it attends to all earlier tokens.
    """

    layers: tuple[Any, ...]
    prompt_exists_UP: jax.Array
    prompt_length_B: jax.Array
    slots: int = flax.struct.field(pytree_node=False)
    windows: tuple[int | None, ...] = flax.struct.field(pytree_node=False)


def start(
    keys_values: Sequence[tuple[jax.Array, jax.Array]],
    windows: Sequence[int | None],
    exists_UP: jax.Array,
    group: int,
    slots: int,
) -> Cache:
    """The cache after reading prompts, with empty slots for `group` responses to each.

    Args:
      keys_values: of every layer, [U, P, N, E] each.
      windows: of every layer.
      exists_UP: false on the prompts' padding.
      group: responses to each prompt.
      slots: tokens of each response that there is room for.
    """

    def layer(k_UPNE: jax.Array, v_UPNE: jax.Array, window: int | None) -> LayerCache:
        rows, _, heads, width = k_UPNE.shape
        room = (rows * group, heads, _ring(slots, window), width)
        empty = jnp.zeros(room, k_UPNE.dtype)
        # The first response token reaches furthest back, to window - 1 positions of the
        # prompt. A window of 1 reaches none; one is kept, as `[-0:]` would keep all.
        reached = slice(None) if window is None else slice(-max(window - 1, 1), None)
        k, v = _swap(k_UPNE[:, reached]), _swap(v_UPNE[:, reached])
        return LayerCache(k, v, empty, empty)

    # Rows of a prompt are neighbours, so its length is repeated in place.
    length_U = jnp.sum(exists_UP, axis=1, dtype=jnp.int32)
    layers = tuple(
        layer(k, v, window) for (k, v), window in zip(keys_values, windows, strict=True)
    )
    return Cache(layers, exists_UP, jnp.repeat(length_U, group), slots, tuple(windows))


def pad(x: jax.Array, more: int) -> jax.Array:
    """Keys or values with `more` empty slots."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0)))


def grow(
    cache: Cache, slots: int, pad: Callable[[jax.Array, int], jax.Array] = pad
) -> Cache:
    """The same cache with room for `slots` response tokens.

    A ring buffer grows only while it is shorter than its window, when it has not
    wrapped around yet: every token keeps its slot.

    Args:
      cache: of the response's first tokens.
      slots: tokens of each response that there is room for.
      pad: called with the arrays that become longer, one after the other.
    """

    def longer(layer: LayerCache, window: int | None) -> LayerCache:
        more = _ring(slots, window) - layer.response_k.shape[2]
        if not more:
            return layer
        k, v = pad(layer.response_k, more), pad(layer.response_v, more)
        return layer.replace(response_k=k, response_v=v)

    layers = tuple(map(longer, cache.layers, cache.windows))
    return cache.replace(layers=layers, slots=slots)


def _ring(slots: int, window: int | None) -> int:
    """Slots of a layer: a ring as long as its window holds exactly what is read."""
    return slots if window is None else min(slots, window)


def write(layer: LayerCache, k_B1NE, v_B1NE, token: jax.Array) -> LayerCache:
    """Store the key and value of response token number `token` of every row."""
    # All rows are at the same token, so one slice of the slots is written; with the
    # cache donated, that happens in place.
    slot = token % layer.response_k.shape[2]
    update = jax.lax.dynamic_update_slice_in_dim
    return layer.replace(
        response_k=update(layer.response_k, _swap(k_B1NE), slot, axis=2),
        response_v=update(layer.response_v, _swap(v_B1NE), slot, axis=2),
    )


def read(
    q_B1HE: jax.Array,
    layer: LayerCache,
    exists_UP: jax.Array,
    token: jax.Array,
    window: int | None,
) -> jax.Array:
    """Attention of response token number `token` to its prompt and its response."""
    prompts = exists_UP.shape[0]
    # A token has few scores, so float32 costs nothing here; rounded to bfloat16, scores
    # of a hundred would differ by half a nat.
    attend = functools.partial(
        attention.attend_partially, dtype=np.promote_types(q_B1HE.dtype, np.float32)
    )
    # In the order of LayerCache's fields, each as [rows, slots, heads, width].
    k, v, own_k, own_v = map(_swap, jax.tree.leaves(layer))
    # [B, 1, H, E] to [U, G, H, E]: attempts at a question take the axis of positions,
    # as queries of one product with the keys of their prompt.
    q_UGHE = q_B1HE.reshape(prompts, -1, *q_B1HE.shape[2:])
    # With a window the cache holds only the end of the prompt.
    reached_UP = exists_UP[:, -k.shape[1] :]
    mask_U1P = attention.prompt_mask_after(reached_UP, token[None], window)
    to_prompt = attend(q_UGHE, k, v, mask_U1P)
    by_row = lambda x: x.reshape(q_B1HE.shape[0], 1, *x.shape[2:])
    # A ring that has wrapped is full: every slot holds a token within the window. Their
    # order does not matter, since keys were rotated by their positions when written.
    written_11S = (jnp.arange(own_k.shape[1]) <= token)[None, None]
    to_own = attend(q_B1HE, own_k, own_v, written_11S)
    merged = attention.merge([jax.tree.map(by_row, to_prompt), to_own])
    return merged.astype(q_B1HE.dtype)


def _swap(x: jax.Array) -> jax.Array:
    """[B, S, N, E] to [B, N, S, E], and back."""
    return jnp.swapaxes(x, 1, 2)
