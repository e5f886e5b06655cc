"""Rotary positions, masks and grouped-query attention."""

import jax
import jax.numpy as jnp
import numpy as np


def rope(x_BTHE: jax.Array, position_BT: jax.Array, theta: float) -> jax.Array:
    """Rotate the two halves of each head by angles that grow with the position."""
    half = x_BTHE.shape[-1] // 2
    dtype = np.promote_types(x_BTHE.dtype, np.float32)
    frequency = theta ** (-jnp.arange(half, dtype=dtype) / half)
    angle_BTE = jnp.einsum("bt,e->bte", position_BT.astype(dtype), frequency)
    cos, sin = jnp.cos(angle_BTE)[:, :, None], jnp.sin(angle_BTE)[:, :, None]
    first, second = jnp.split(x_BTHE.astype(dtype), 2, axis=-1)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(rotated, axis=-1).astype(x_BTHE.dtype)


def causal_mask(exists_BT: jax.Array) -> jax.Array:
    """[B, T, S]: which earlier or same, existing position each position reads."""
    time = exists_BT.shape[1]
    return jnp.tri(time, dtype=bool)[None] & exists_BT[:, None, :]


def scores(q_BTHE: jax.Array, k_BSNE: jax.Array) -> jax.Array:
    """Scaled products [B, N, H/N, T, S] of grouped queries and their keys."""
    batch, time, heads, width = q_BTHE.shape
    kv_heads = k_BSNE.shape[2]
    q = q_BTHE.reshape(batch, time, kv_heads, heads // kv_heads, width)
    product = jnp.einsum("btnhe,bsne->bnhts", q, k_BSNE)
    dtype = np.promote_types(product.dtype, np.float32)
    return product.astype(dtype) * width**-0.5


def mix(weight_BNHTS: jax.Array, v_BSNE: jax.Array) -> jax.Array:
    """Weighted sums of values, [B, T, H, E]."""
    out = jnp.einsum("bnhts,bsne->btnhe", weight_BNHTS.astype(v_BSNE.dtype), v_BSNE)
    batch, time, kv_heads, group, width = out.shape
    return out.reshape(batch, time, kv_heads * group, width)


def attend(
    q_BTHE: jax.Array, k_BSNE: jax.Array, v_BSNE: jax.Array, mask_BTS: jax.Array
) -> jax.Array:
    """Softmax attention; a position that may read nothing gets a finite mean."""
    logits = scores(q_BTHE, k_BSNE)
    floor = jnp.asarray(jnp.finfo(logits.dtype).min, logits.dtype)
    logits = jnp.where(mask_BTS[:, None, None], logits, floor)
    return mix(jax.nn.softmax(logits, axis=-1), v_BSNE)
