"""Rotary positions, masks and grouped-query attention."""

import functools
from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from sdpo_jax.model.layer_kind import LayerKind, Llama3


def rope_frequencies(kind: LayerKind, head_width: int) -> np.ndarray:
    """Radians per position of each pair of dimensions, [E / 2] in float64.

    Both ways to stretch them keep frequencies that complete many turns within the
    original length, divide those that complete few by a factor, and interpolate
    between the two: YaRN (arXiv:2309.00071, section 3.2) linearly in the dimension,
    Llama 3.1 (arXiv:2407.21783) in the number of turns.
    """
    # NumPy, not JAX: this depends on the config only, so it is a constant of the
    # compiled program.
    half = head_width // 2
    frequency = kind.rope_theta ** (-np.arange(half) / half)
    if kind.llama3 is not None:
        return _stretched(frequency, kind.llama3)
    if kind.yarn is None:
        return frequency
    y = kind.yarn
    # The dimension whose frequency completes `turns` within the original length.
    dimension = lambda turns: (
        half
        * np.log(y.original_positions / (turns * 2 * np.pi))
        / np.log(kind.rope_theta)
    )
    low, high = dimension(y.beta_fast), dimension(y.beta_slow)
    if y.truncate:
        low, high = np.floor(low), np.ceil(high)
    # There are only `half` frequencies, but transformers bounds by the head's width;
    # another bound would change the slope of the ramp.
    low, high = max(low, 0), min(high, head_width - 1)
    if low == high:
        # The slope would be infinite; transformers adds the same number.
        high += 0.001
    slowed = np.clip((np.arange(half) - low) / (high - low), 0, 1)
    return frequency * (1 - slowed) + frequency / y.factor * slowed


def _stretched(frequency: np.ndarray, scaling: Llama3) -> np.ndarray:
    turns = scaling.original_positions * frequency / (2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return frequency * kept + frequency / scaling.factor * (1 - kept)


def rope(x_BTHE: jax.Array, position_BT: jax.Array, kind: LayerKind) -> jax.Array:
    """Rotate the two halves of each head by angles that grow with the position.

    Dimension i is paired with i + E / 2, as Hugging Face checkpoints expect, not with
    its neighbour.
    """
    # bfloat16 has 8 significant bits, so it would round positions above 256.
    dtype = np.promote_types(x_BTHE.dtype, np.float32)
    frequency_E = jnp.asarray(rope_frequencies(kind, x_BTHE.shape[-1]), dtype)
    angle_BTE = jnp.einsum("bt,e->bte", position_BT.astype(dtype), frequency_E)
    # All heads rotate by the same angles. Cosines and sines stay in float32, as in
    # transformers' Olmo models; its Qwen and Llama round them to the dtype of x.
    cos, sin = jnp.cos(angle_BTE)[:, :, None], jnp.sin(angle_BTE)[:, :, None]
    if kind.yarn is not None:
        # Scaling queries and keys alike scales the scores by the factor's square.
        cos, sin = cos * kind.yarn.attention_factor, sin * kind.yarn.attention_factor
    first, second = jnp.split(x_BTHE.astype(dtype), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x_BTHE.dtype)


def causal_mask(exists_BT: jax.Array, window: int | None) -> jax.Array:
    """[B, T, S]: true where position t attends to position s.

    Args:
      exists_BT: false on padding, which is never between two tokens.
      window: positions that each one attends to, itself included; None for all.
    """
    # Positions of the array are counted, not tokens: within a window that is the same,
    # because padding is at the ends only.
    time = exists_BT.shape[1]
    reads_TS = jnp.tri(time, dtype=bool)
    if window is not None:
        # Removes s <= t - window, which leaves `window` positions up to t.
        reads_TS &= ~jnp.tri(time, k=-window, dtype=bool)
    return reads_TS[None] & exists_BT[:, None, :]


def prompt_mask_after(
    exists_UP: jax.Array, after: jax.Array | np.ndarray, window: int | None
) -> jax.Array:
    """[U, T or 1, P]: true where a continuation attends to a left-padded prompt.

    Args:
      exists_UP: false on padding.
      after: [T], the index of each position in the continuation; 0 follows the prompt.
      window: positions that each one attends to, itself included; None for all.
    """
    if window is None:
        return exists_UP[:, None]
    # Position p of the prompt is P - p before the continuation's first position.
    before_end = exists_UP.shape[1] - np.arange(exists_UP.shape[1])
    near_TP = after[:, None] + before_end[None] < window
    return near_TP[None] & exists_UP[:, None]


def scores(
    q_BTHE: jax.Array, k_BSNE: jax.Array, dtype: jnp.dtype | None = None
) -> jax.Array:
    """Scaled products [B, N, H/N, T, S] of grouped queries and their keys."""
    # Query head h reads key head h // (H / N): the heads of a group are neighbours, so
    # a reshape groups them and no key is repeated.
    batch, time, heads, width = q_BTHE.shape
    kv_heads = k_BSNE.shape[2]
    q = q_BTHE.reshape(batch, time, kv_heads, heads // kv_heads, width)
    product = jnp.einsum("bsne,btnhe->bnhts", k_BSNE, q, preferred_element_type=dtype)
    # The product is in the dtype of activations unless another is named; the softmax of
    # it is in float32 at least, as in transformers.
    dtype = np.promote_types(product.dtype, np.float32)
    return product.astype(dtype) * width**-0.5


def mix(
    weight_BNHTS: jax.Array, v_BSNE: jax.Array, dtype: jnp.dtype | None = None
) -> jax.Array:
    """Weighted sums of values, [B, T, H, E]."""
    # Rounded to the dtype of activations, as in transformers: the product with values
    # need not be one in float32.
    weight_BNHTS = weight_BNHTS.astype(v_BSNE.dtype)
    out = jnp.einsum(
        "bsne,bnhts->btnhe", v_BSNE, weight_BNHTS, preferred_element_type=dtype
    )
    batch, time, kv_heads, group, width = out.shape
    return out.reshape(batch, time, kv_heads * group, width)


@flax.struct.dataclass
class PartialAttention:
    """Attention to a subset of the keys, before the division by the softmax's total.

    Args:
      mixed_BTHE: sums of exp(score - peak) times values.
      total_BTH: sums of exp(score - peak).
      peak_BTH: the largest score.
    """

    mixed_BTHE: jax.Array
    total_BTH: jax.Array
    peak_BTH: jax.Array


def attend_partially(
    q_BTHE: jax.Array,
    k_BSNE: jax.Array,
    v_BSNE: jax.Array,
    mask_BTS: jax.Array,
    dtype: jnp.dtype | None = None,
) -> PartialAttention:
    """Attention to a subset of the keys, to be merged with attention to the others.

    Args:
      q_BTHE: queries.
      k_BSNE: keys.
      v_BSNE: values.
      mask_BTS: true where a query attends to a key.
      dtype: that both products accumulate in and result in; None for that of q.
    """
    logits = scores(q_BTHE, k_BSNE, dtype)
    # The most negative finite number, not -inf: a query that may attend to none of
    # these keys gets a finite mean of values, where -inf would give NaN. Merged with a
    # subset that it may attend to, that mean has the weight exp(floor - peak) = 0.
    floor = jnp.asarray(jnp.finfo(logits.dtype).min, logits.dtype)
    logits = jnp.where(mask_BTS[:, None, None], logits, floor)
    # The peak only prevents overflow: it cancels in `merge`, and so does its gradient.
    peak_BNHT = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    weight = jnp.exp(logits - peak_BNHT[..., None])
    # [B, N, H/N, T] to [B, T, H], the layout of `mix`.
    by_time = lambda x: jnp.moveaxis(x, 3, 1).reshape(q_BTHE.shape[:3])
    total_BTH = by_time(jnp.sum(weight, axis=-1))
    return PartialAttention(mix(weight, v_BSNE, dtype), total_BTH, by_time(peak_BNHT))


def merge(partials: Sequence[PartialAttention]) -> jax.Array:
    """Softmax attention [B, T, H, E] to the keys of all subsets together."""
    # Each subset used its own peak; multiplying by exp(own peak - largest peak) brings
    # all sums to the same scale. The exponent is at most 0, so nothing overflows.
    peak_BTH = functools.reduce(jnp.maximum, [p.peak_BTH for p in partials])
    factors = [jnp.exp(p.peak_BTH - peak_BTH) for p in partials]
    total_BTH = sum(f * p.total_BTH for f, p in zip(factors, partials, strict=True))
    # Factors and totals are in the softmax's dtype; only their quotient is rounded.
    dtype = partials[0].mixed_BTHE.dtype
    shares = [(f / total_BTH)[..., None].astype(dtype) for f in factors]
    return sum(share * p.mixed_BTHE for share, p in zip(shares, partials, strict=True))


def attend(
    q_BTHE: jax.Array, k_BSNE: jax.Array, v_BSNE: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """Softmax attention; a position that may attend to nothing gets a finite mean."""
    return merge([attend_partially(q_BTHE, k_BSNE, v_BSNE, mask_BTS)])


def attend_after(
    q_BTHE: jax.Array,
    prompt_k_UPNE: jax.Array,
    prompt_v_UPNE: jax.Array,
    prompt_exists_UP: jax.Array,
    own_k_BTNE: jax.Array,
    own_v_BTNE: jax.Array,
    own_exists_BT: jax.Array,
    window: int | None,
) -> jax.Array:
    """Causal attention of continuations to their prompts and to themselves.

    The B / U continuations of a prompt are neighbouring rows and share its keys.

    Args:
      q_BTHE: queries.
      prompt_k_UPNE: keys of prompts, padded left.
      prompt_v_UPNE: values of prompts.
      prompt_exists_UP: false on padding.
      own_k_BTNE: keys of continuations, padded right.
      own_v_BTNE: values of continuations.
      own_exists_BT: false on padding.
      window: positions that each one attends to, itself included; None for all.

    Returns:
      [B, T, H, E].
    """
    prompts, (rows, length) = prompt_exists_UP.shape[0], own_exists_BT.shape
    own_mask_BTT = causal_mask(own_exists_BT, window)
    own = attend_partially(q_BTHE, own_k_BTNE, own_v_BTNE, own_mask_BTT)
    # [B, T, H, E] to [U, B / U * T, H, E]: all continuations of a prompt are queries of
    # one product with its keys, which are then neither copied nor read again.
    q_UXHE = q_BTHE.reshape(prompts, -1, *q_BTHE.shape[2:])
    after = np.tile(np.arange(length), rows // prompts)
    mask_UXP = prompt_mask_after(prompt_exists_UP, after, window)
    to_prompt = attend_partially(q_UXHE, prompt_k_UPNE, prompt_v_UPNE, mask_UXP)
    by_row = lambda x: x.reshape(rows, length, *x.shape[2:])
    return merge([jax.tree.map(by_row, to_prompt), own])
