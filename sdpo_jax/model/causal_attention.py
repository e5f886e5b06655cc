"""Causal attention in the implementation that the config chooses.

Plain XLA runs everywhere and handles long sequences in blocks of queries. Splash
attention on TPUs and cuDNN on NVIDIA GPUs skip keys that no query attends to, and never
hold the scores of a sequence in memory.
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

# What `auto` chooses on each backend, where it can run.
FUSED = {"tpu": "splash", "gpu": "cudnn"}
# With more keys than this, XLA computes scores for one block of queries at a time.
_MAX_UNBLOCKED_KEYS = 2048
_QUERIES_AT_ONCE = 256
# Splash attention's tiles: multiples of a TPU's lanes, up to _TILE positions.
_LANES, _TILE = 128, 512
# The widest head that JAX lets cuDNN attend with, on Hopper GPUs and later.
_HOPPER_WIDTH = 256


def resolve(requested: str, arch: Architecture, dtype: jnp.dtype, tensor: int) -> str:
    """The implementation that a config's `model.attention` means on this backend.

    Args:
      requested: auto | xla | splash | cudnn.
      arch: the model.
      dtype: of activations.
      tensor: devices that heads are sharded over.
    """
    if requested != "auto":
        return requested
    fused = FUSED.get(jax.default_backend(), "xla")
    return "xla" if obstacle(fused, arch, dtype, tensor) else fused


def obstacle(
    implementation: str, arch: Architecture, dtype: jnp.dtype, tensor: int
) -> str | None:
    """Why an implementation cannot run here, or None if it can; see `resolve`."""
    # The version's text, because JAX calls AMD's GPUs "gpu" too.
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
    # Every device attends with its own heads, in a shard_map that splits evenly.
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
    """Attention of the last T of S positions to themselves and earlier positions.

    Args:
      q_BTHE: queries.
      k_BSNE: keys.
      v_BSNE: values.
      exists_BS: false on padding, which is never between two tokens.
      window: positions that each one attends to, itself included; None for all.
      implementation: xla | splash | cudnn.

    Returns:
      [B, T, H, E]; finite numbers that mean nothing on padding.
    """
    args = q_BTHE, k_BSNE, v_BSNE, exists_BS
    if implementation == "splash":
        return _on_each_device(_splash, window)(*args)
    if implementation == "cudnn":
        return _on_each_device(_cudnn, window)(*args)
    if k_BSNE.shape[1] > _MAX_UNBLOCKED_KEYS:
        return _in_blocks(*args, window)
    # The queries are the last positions, so their rows are the last of a square mask.
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
      prompt: positions of the prompt, which all branches attend to.
      branches: continuations of equal length; none attends to another.
      window: positions that each one attends to, itself included; None for all.
      implementation: xla | splash | cudnn.

    Returns:
      [U, T, H, E].
    """
    rows, time = exists_UT.shape
    length = (time - prompt) // branches
    shared = [x[:, :prompt] for x in (q_UTHE, k_UTNE, v_UTNE, exists_UT)]
    in_prompt = attend(*shared, window, implementation)
    # [U, branches * length, ...] to [U * branches, length, ...]: one row per branch.
    split = lambda x: x[:, prompt:].reshape(rows * branches, length, *x.shape[2:])
    q, *own = map(split, (q_UTHE, k_UTNE, v_UTNE, exists_UT))
    if implementation == "xla" and prompt + length <= _MAX_UNBLOCKED_KEYS:
        in_branches = attention.attend_after(q, *shared[1:], *own, window)
    else:
        # Kernels and blocks attend to one array of keys per row, so here each branch
        # gets its own copy of the prompt's keys and values.
        repeat = functools.partial(jnp.repeat, repeats=branches, axis=0)
        joined = [
            jnp.concatenate([repeat(before), after], axis=1)
            for before, after in zip(shared[1:], own, strict=True)
        ]
        in_branches = attend(q, *joined, window, implementation)
    in_branches = in_branches.reshape(rows, time - prompt, *in_branches.shape[2:])
    return jnp.concatenate([in_prompt, in_branches], axis=1)


def _in_blocks(q_BTHE, k_BSNE, v_BSNE, exists_BS, window):
    """`attend` by XLA for one block of queries at a time, recomputed for gradients."""
    time, keys, size = q_BTHE.shape[1], k_BSNE.shape[1], _QUERIES_AT_ONCE
    blocks = -(-time // size)
    # Position of the first query among the keys; negative where it is a padded one.
    before = keys - blocks * size
    # Keys that one block can attend to; a static number, as shapes must be.
    reach = keys if window is None else min(keys, size + window - 1)
    # Padded in front, the last query is still at the last key.
    fill = ((0, 0), (blocks * size - time, 0), (0, 0), (0, 0))
    q_BZXHE = jnp.pad(q_BTHE, fill).reshape(-1, blocks, size, *q_BTHE.shape[2:])

    # Without the checkpoint, the backward pass would hold the scores of all blocks.
    @jax.checkpoint
    def attend_block(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        index, q_BXHE = block
        position_X = before + index * size + jnp.arange(size)
        # The slice ends at the block's last query, or starts at the first key where
        # there are fewer than `reach` up to that query.
        start = jnp.clip(position_X[-1] + 1 - reach, 0, keys - reach)
        take = lambda x: jax.lax.dynamic_slice_in_dim(x, start, reach, axis=1)
        behind_XS = position_X[:, None] - (start + jnp.arange(reach))[None]
        reads_XS = behind_XS >= 0
        if window is not None:
            reads_XS &= behind_XS < window
        mask_BXS = reads_XS[None] & take(exists_BS)[:, None]
        return attention.attend(q_BXHE, take(k_BSNE), take(v_BSNE), mask_BXS)

    # `map` runs block after block along the leading axis, where `vmap` would hold the
    # scores of all of them.
    by_block = jnp.arange(blocks), jnp.moveaxis(q_BZXHE, 1, 0)
    out_BZXHE = jnp.moveaxis(jax.lax.map(attend_block, by_block), 0, 1)
    return out_BZXHE.reshape(-1, blocks * size, *q_BTHE.shape[2:])[:, -time:]


def _on_each_device(attend_rows, window: int | None):
    """`attend_rows` on every device, for its own rows and heads.

    Attention crosses neither rows nor heads, so nothing is communicated. XLA cannot
    partition a Pallas kernel by itself.
    """
    attend_rows = functools.partial(attend_rows, window=window)
    if jax.sharding.get_abstract_mesh().empty:
        return attend_rows
    heads = distributed.spec("batch", None, "heads", None)
    exists = distributed.spec("batch", None)
    return jax.shard_map(
        attend_rows,
        in_specs=(heads, heads, heads, exists),
        out_specs=heads,
        # The kernel's outputs do not declare over which mesh axes they vary.
        check_vma=False,
    )


# Building the kernel takes seconds for long sequences. Under its own jit it is traced
# once for all layers with the same shapes and window.
@functools.partial(jax.jit, static_argnames="window")
def _splash(q_BTHE, k_BSNE, v_BSNE, exists_BS, *, window):
    """`attend` by splash attention, with padding as a sequence of its own.

    Positions attend within their sequence only, so no token attends to padding.
    """
    (_, time, heads, width), keys = q_BTHE.shape, k_BSNE.shape[1]
    q_to, k_to = _tiled(time), _tiled(keys)
    pad = lambda x, to: jnp.pad(
        x, [(0, 0), (0, to - x.shape[1]), *[(0, 0)] * (x.ndim - 2)]
    )
    # The kernel takes [heads, positions, width] and scales nothing, so queries are
    # scaled before: in float32, then rounded once.
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
    """Positions, rounded up to a multiple of the tile."""
    tile = _tile(positions)
    return -(-positions // tile) * tile


def _tile(positions: int) -> int:
    return min(_TILE, -(-positions // _LANES) * _LANES)


def _splash_kernel(
    heads: int, queries: int, keys: int, offset: int, window: int | None
) -> Any:
    """The kernel for queries whose i-th is at position i + offset of the keys."""
    q, k = _tile(queries), _tile(keys)
    tiles = splash_attention.BlockSizes(
        block_q=q,
        block_kv=k,
        block_q_dkv=q,
        block_kv_dkv=k,
        block_q_dq=q,
        block_kv_dq=k,
    )
    # `LocalMask` counts the positions before a query, without the query itself; none
    # after it makes the mask causal.
    behind = None if window is None else window - 1
    mask = splash_attention.LocalMask((queries, keys), (behind, 0), offset)
    return splash_attention.make_splash_mha(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=tiles,
        head_shards=1,
        q_seq_shards=1,
    )


def _cudnn(q_BTHE, k_BSNE, v_BSNE, exists_BS, *, window, implementation="cudnn"):
    """`attend` by cuDNN, which needs padding at the end and as many queries as keys."""
    time, keys = q_BTHE.shape[1], k_BSNE.shape[1]
    q_BSHE = jnp.pad(q_BTHE, ((0, 0), (keys - time, 0), (0, 0), (0, 0)))
    # Every row is rolled until its first token is at position 0, and rolled back after.
    start_B = jnp.argmax(exists_BS, axis=1)
    roll = jax.vmap(functools.partial(jnp.roll, axis=0))
    # A row without tokens attends to one position of padding instead of to nothing.
    length_B = jnp.maximum(jnp.sum(exists_BS, axis=1, dtype=jnp.int32), 1)
    out_BSHE = jax.nn.dot_product_attention(
        *(roll(x, -start_B) for x in (q_BSHE, k_BSNE, v_BSNE)),
        is_causal=True,
        query_seq_lengths=length_B,
        key_value_seq_lengths=length_B,
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
    )
    # What cuDNN leaves on padding is not specified.
    out_BSHE = jnp.where(exists_BS[..., None, None], roll(out_BSHE, start_B), 0)
    return out_BSHE[:, -time:]
