"""Causal attention in the implementation that the config chooses.

Plain XLA runs everywhere; it takes long sequences by blocks of queries. Splash
attention on TPUs and cuDNN on NVIDIA GPUs skip what no query reads, and hold no scores.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.extend import backend

from sdpo_jax import distributed
from sdpo_jax.model import attention
from sdpo_jax.model.families import Architecture

# What `auto` takes on a backend, where it can.
FUSED = {"tpu": "splash", "gpu": "cudnn"}
# XLA holds the scores of all queries up to this many keys, of a block at a time beyond.
_WHOLE = 2048
_QUERIES_AT_ONCE = 256
# Splash attention's tiles: whole lanes, and at most so many positions.
_LANES, _TILE = 128, 512
_HOPPER_WIDTH = 256


def resolve(wanted: str, arch: Architecture, dtype: jnp.dtype, tensor: int) -> str:
    """The implementation that a config's `model.attention` means on this backend.

    Args:
      wanted: auto | xla | splash | cudnn.
      arch: the model.
      dtype: of activations.
      tensor: parts that heads are cut into.
    """
    if wanted != "auto":
        return wanted
    fused = FUSED.get(jax.default_backend(), "xla")
    return "xla" if obstacle(fused, arch, dtype, tensor) else fused


def obstacle(
    implementation: str, arch: Architecture, dtype: jnp.dtype, tensor: int
) -> str | None:
    """Why an implementation cannot run here, or None if it can; see `resolve`."""
    platform = backend.get_backend().platform_version
    if implementation == "xla":
        return None
    if implementation == "splash" and jax.default_backend() != "tpu":
        return f"splash attention runs on TPUs only, not on {jax.default_backend()}"
    if implementation == "cudnn":
        if "cuda" not in platform:
            return f"cuDNN runs on NVIDIA GPUs only, not on {jax.default_backend()}"
        if jnp.dtype(dtype) != jnp.bfloat16:
            return f"cuDNN attends in bfloat16 only, not in {jnp.dtype(dtype)}"
        if arch.head_width % 8 or arch.head_width > _HOPPER_WIDTH:
            return (
                f"cuDNN attends with heads of a multiple of 8 up to {_HOPPER_WIDTH} "
                f"numbers, not of {arch.head_width}"
            )
    if arch.kv_heads % tensor:
        return f"mesh.tensor={tensor} does not divide {arch.kv_heads} key heads"
    return None


def attend(
    q_BTHE: jax.Array,
    k_BSNE: jax.Array,
    v_BSNE: jax.Array,
    exists_BS: jax.Array,
    window: int | None,
    implementation: str,
) -> jax.Array:
    """Attention of the last T of S positions to themselves and what stands before.

    Args:
      q_BTHE: queries.
      k_BSNE: keys.
      v_BSNE: values.
      exists_BS: false on padding, which never stands between two tokens.
      window: positions that each one reads, itself included; None for all.
      implementation: xla | splash | cudnn.

    Returns:
      [B, T, H, E]; finite numbers that mean nothing on padding.
    """
    args = q_BTHE, k_BSNE, v_BSNE, exists_BS
    if implementation == "splash":
        return _on_each_device(_splash, window)(*args)
    if implementation == "cudnn":
        return _on_each_device(_cudnn, window)(*args)
    if k_BSNE.shape[1] > _WHOLE:
        return _in_blocks(*args, window)
    mask_BTS = attention.causal_mask(exists_BS, window)[:, -q_BTHE.shape[1] :]
    return attention.attend(q_BTHE, k_BSNE, v_BSNE, mask_BTS)


def attend_branches(
    q_UTHE: jax.Array,
    k_UTNE: jax.Array,
    v_UTNE: jax.Array,
    exists_UT: jax.Array,
    prompt: int,
    branches: int,
    window: int | None,
    implementation: str,
) -> jax.Array:
    """Causal attention in rows of a prompt and the branches that continue it.

    Args:
      q_UTHE: queries; T is `prompt` positions and then those of each branch.
      k_UTNE: keys.
      v_UTNE: values.
      exists_UT: false on padding.
      prompt: positions that all branches read.
      branches: continuations of equal length; none reads another.
      window: positions that each one reads, itself included; None for all.
      implementation: xla | splash | cudnn.

    Returns:
      [U, T, H, E].
    """
    rows, time = exists_UT.shape
    length = (time - prompt) // branches
    head = [x[:, :prompt] for x in (q_UTHE, k_UTNE, v_UTNE, exists_UT)]
    in_prompt = attend(*head, window, implementation)
    split = lambda x: x[:, prompt:].reshape(rows * branches, length, *x.shape[2:])
    q, *own = map(split, (q_UTHE, k_UTNE, v_UTNE, exists_UT))
    if implementation == "xla" and prompt + length <= _WHOLE:
        in_branches = attention.attend_after(q, *head[1:], *own, window)
    else:
        repeat = functools.partial(jnp.repeat, repeats=branches, axis=0)
        joined = [
            jnp.concatenate([repeat(before), after], axis=1)
            for before, after in zip(head[1:], own, strict=True)
        ]
        in_branches = attend(q, *joined, window, implementation)
    in_branches = in_branches.reshape(rows, time - prompt, *in_branches.shape[2:])
    return jnp.concatenate([in_prompt, in_branches], axis=1)


def _in_blocks(q_BTHE, k_BSNE, v_BSNE, exists_BS, window):
    """`attend` by XLA, some queries at a time, computed again when going back."""
    time, keys, size = q_BTHE.shape[1], k_BSNE.shape[1], _QUERIES_AT_ONCE
    blocks = -(-time // size)
    before = keys - blocks * size
    reach = keys if window is None else min(keys, size + window - 1)
    # Filled up in front, the last query still stands at the last key.
    fill = ((0, 0), (blocks * size - time, 0), (0, 0), (0, 0))
    q_BZXHE = jnp.pad(q_BTHE, fill).reshape(-1, blocks, size, *q_BTHE.shape[2:])

    @jax.checkpoint
    def one(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        index, q_BXHE = block
        position_X = before + index * size + jnp.arange(size)
        start = jnp.clip(position_X[-1] + 1 - reach, 0, keys - reach)
        take = lambda x: jax.lax.dynamic_slice_in_dim(x, start, reach, axis=1)
        behind_XS = position_X[:, None] - (start + jnp.arange(reach))[None]
        reads_XS = behind_XS >= 0
        if window is not None:
            reads_XS &= behind_XS < window
        mask_BXS = reads_XS[None] & take(exists_BS)[:, None]
        return attention.attend(q_BXHE, take(k_BSNE), take(v_BSNE), mask_BXS)

    by_block = jnp.arange(blocks), jnp.moveaxis(q_BZXHE, 1, 0)
    out_BZXHE = jnp.moveaxis(jax.lax.map(one, by_block), 0, 1)
    return out_BZXHE.reshape(-1, blocks * size, *q_BTHE.shape[2:])[:, -time:]


def _on_each_device(attend_rows, window: int | None):
    """`attend_rows` of each device's own rows and heads."""
    attend_rows = functools.partial(attend_rows, window=window)
    if jax.sharding.get_abstract_mesh().empty:
        return attend_rows
    heads = distributed.spec("batch", None, "heads", None)
    exists = distributed.spec("batch", None)
    return jax.shard_map(
        attend_rows,
        in_specs=(heads, heads, heads, exists),
        out_specs=heads,
        check_vma=False,
    )


# Making the kernel takes seconds for long sequences: traced once for all layers alike.
@functools.partial(jax.jit, static_argnames="window")
def _splash(q_BTHE, k_BSNE, v_BSNE, exists_BS, *, window):
    """`attend` by splash attention, which masks padding as a sequence of its own."""
    (_, time, heads, width), keys = q_BTHE.shape, k_BSNE.shape[1]
    q_to, k_to = _tiled(time), _tiled(keys)
    pad = lambda x, to: jnp.pad(
        x, [(0, 0), (0, to - x.shape[1]), *[(0, 0)] * (x.ndim - 2)]
    )
    by_head = lambda x, to: jnp.swapaxes(pad(x, to), 1, 2)
    scaled = (q_BTHE.astype(jnp.float32) * width**-0.5).astype(q_BTHE.dtype)
    sequence_BS = exists_BS.astype(jnp.int32)
    sequences = splash_attention.SegmentIds(
        pad(sequence_BS[:, -time:], q_to), pad(sequence_BS, k_to)
    )
    kernel = _splash_kernel(heads, q_to, k_to, keys - time, window)
    out_BHTE = jax.vmap(kernel)(
        by_head(scaled, q_to), by_head(k_BSNE, k_to), by_head(v_BSNE, k_to), sequences
    )
    return jnp.swapaxes(out_BHTE, 1, 2)[:, :time]


def _tiled(positions: int) -> int:
    """Positions filled up to whole tiles."""
    tile = _tile(positions)
    return -(-positions // tile) * tile


def _tile(positions: int) -> int:
    return min(_TILE, -(-positions // _LANES) * _LANES)


def _splash_kernel(
    heads: int, queries: int, keys: int, offset: int, window: int | None
) -> Any:
    """The kernel for query i at position i + offset among the keys."""
    q, k = _tile(queries), _tile(keys)
    tiles = splash_attention.BlockSizes(
        block_q=q,
        block_kv=k,
        block_q_dkv=q,
        block_kv_dkv=k,
        block_q_dq=q,
        block_kv_dq=k,
    )
    behind = None if window is None else window - 1
    mask = splash_attention.LocalMask((queries, keys), (behind, 0), offset)
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=tiles,
        head_shards=1,
        q_seq_shards=1,
    )


def _cudnn(q_BTHE, k_BSNE, v_BSNE, exists_BS, *, window, implementation="cudnn"):
    """`attend` by cuDNN, which knows padding at the end only, and as many queries."""
    time, keys = q_BTHE.shape[1], k_BSNE.shape[1]
    q_BSHE = jnp.pad(q_BTHE, ((0, 0), (keys - time, 0), (0, 0), (0, 0)))
    start_B = jnp.argmax(exists_BS, axis=1)
    turn = jax.vmap(functools.partial(jnp.roll, axis=0))
    length_B = jnp.maximum(jnp.sum(exists_BS, axis=1, dtype=jnp.int32), 1)
    out_BSHE = jax.nn.dot_product_attention(
        *(turn(x, -start_B) for x in (q_BSHE, k_BSNE, v_BSNE)),
        is_causal=True,
        query_seq_lengths=length_B,
        key_value_seq_lengths=length_B,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
    )
    out_BSHE = jnp.where(exists_BS[..., None, None], turn(out_BSHE, start_B), 0)
    return out_BSHE[:, -time:]
