"""Any loss on logits, with its gradient, from hidden states and chunk by chunk.

Logits are made for one chunk of response positions at a time and both the value and
the gradient are taken inside the chunk, so no [tokens, vocabulary] array outlives it.

The cut is along the response axis, never along flattened tokens: on a mesh a flat cut
makes every device gather the batch and do all the work. The unembedding comes with a
leading axis of one copy per batch shard, so its gradient is summed locally over chunks
(and over micro-batches by the caller) and reduced once, outside every loop.

Axis letters as in `sdpo_jax/batch.py`; Z is the axis of batch shards.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

Tree = Any
# (student logits [B, C, V], one such array per teacher, per-token arrays [B, C])
# -> (sum of weighted losses, named sums that carry no gradient)
ChunkLoss = Callable[
    [jax.Array, tuple[jax.Array, ...], Tree], tuple[jax.Array, dict[str, jax.Array]]
]


def sum_over_chunks(
    loss: ChunkLoss,
    student: tuple[jax.Array, jax.Array],
    teachers: tuple[tuple[jax.Array, jax.Array], ...],
    mask_BR: jax.Array,
    per_token: Tree,
    *,
    chunk: int,
    batch_axes: tuple[str, ...] = (),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Sum of `loss` over all chunks of the response axis.

    Differentiable in the student only. What stands where `mask_BR` is false is replaced
    by zeros before anything is computed, so it may be NaN.

    Args:
      loss: a function of one chunk; it must give masked tokens the weight 0.
      student: hidden states [B, R, D] and the unembedding [Z, D, V], one copy per
        batch shard (Z = 1 without a mesh).
      teachers: hidden states [B, R, D] and an unembedding [D, V] for each teacher.
      mask_BR: true on tokens that count.
      per_token: a pytree of [B, R] arrays, handed to `loss` chunk by chunk.
      chunk: positions per chunk; peak memory holds a few [B, chunk, V] arrays.
      batch_axes: names of the mesh axes that cut B and Z; empty without a mesh.

    Returns:
      The sum, and the sums that `loss` names.
    """
    walk = functools.partial(_walk, loss, chunk, batch_axes)
    return walk(*student, teachers, mask_BR, per_token)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _walk(
    loss, chunk, batch_axes, hidden_BRD, unembed_ZDV, teachers, mask_BR, per_token
):
    local = functools.partial(_forward, loss, chunk, batch_axes)
    run = _per_shard(local, batch_axes, teachers, out=(False, False))
    return run(hidden_BRD, unembed_ZDV, teachers, mask_BR, per_token)


def _walk_forward(loss, chunk, batch_axes, *arrays):
    local = functools.partial(_forward_and_gradient, loss, chunk, batch_axes)
    run = _per_shard(local, batch_axes, arrays[2], out=(False, False, True, True))
    total, sums, d_hidden, d_unembed = run(*arrays)
    # Empty arrays carry the dtypes in which the cotangents are expected.
    like = (arrays[0][:0], arrays[1][:0])
    return (total, sums), (d_hidden, d_unembed, like)


def _walk_backward(loss, chunk, batch_axes, kept, cotangents):
    d_hidden, d_unembed, (like_hidden, like_unembed) = kept
    scale = cotangents[0]
    d_hidden = (d_hidden * scale.astype(d_hidden.dtype)).astype(like_hidden.dtype)
    d_unembed = (d_unembed * scale.astype(d_unembed.dtype)).astype(like_unembed.dtype)
    return d_hidden, d_unembed, None, None, None


_walk.defvjp(_walk_forward, _walk_backward)


def _per_shard(local, batch_axes, teachers, out):
    """`local` on every batch shard; `out` says which results are cut along it."""
    if not batch_axes:
        return local
    rows, whole = PartitionSpec(batch_axes), PartitionSpec()
    teacher_specs = tuple((rows, whole) for _ in teachers)
    return jax.shard_map(
        local,
        in_specs=(rows, rows, teacher_specs, rows, rows),
        out_specs=tuple(rows if is_cut else whole for is_cut in out),
        axis_names=set(batch_axes),
        check_vma=False,
    )


def _forward(loss, chunk, batch_axes, hidden, unembed_1DV, teachers, mask, per_token):
    """Value only, for callers that do not differentiate."""
    inputs = _zero_masked(mask, (hidden, tuple(h for h, _ in teachers), per_token))
    inputs = _pad_to_chunks(inputs, chunk)
    unembeds = [unembed for _, unembed in teachers]

    def body(carry, index):
        student_h, teacher_hs, tokens = _slice_chunk(inputs, index, chunk)
        teacher_logits = tuple(map(_logits, teacher_hs, unembeds))
        results = loss(_logits(student_h, unembed_1DV[0]), teacher_logits, tokens)
        return jax.tree.map(jnp.add, carry, results), None

    start = _zeros_of_results(loss, inputs, unembed_1DV, unembeds, chunk)
    results, _ = jax.lax.scan(body, start, jnp.arange(_num_chunks(inputs, chunk)))
    return _sum_shards(results, batch_axes)


def _forward_and_gradient(
    loss, chunk, batch_axes, hidden, unembed_1DV, teachers, mask, per_token
):
    """Value and gradient in one pass over the chunks."""
    inputs = _zero_masked(mask, (hidden, tuple(h for h, _ in teachers), per_token))
    inputs = _pad_to_chunks(inputs, chunk)
    unembeds = [unembed for _, unembed in teachers]
    unembed_DV = unembed_1DV[0]

    def body(carry, index):
        results, d_hidden, d_unembed = carry
        student_h, teacher_hs, tokens = _slice_chunk(inputs, index, chunk)
        teacher_logits = tuple(map(_logits, teacher_hs, unembeds))
        of_student = lambda logits: loss(logits, teacher_logits, tokens)
        value, pull_back, sums = jax.vjp(
            of_student, _logits(student_h, unembed_DV), has_aux=True
        )
        # Matrix products run in the model's dtype and add up in the wider one.
        (d_logits,) = pull_back(jnp.ones_like(value))
        d_logits = d_logits.astype(student_h.dtype)
        d_chunk = jnp.einsum("bcv,dv->bcd", d_logits, unembed_DV)
        d_hidden = jax.lax.dynamic_update_slice_in_dim(
            d_hidden, d_chunk.astype(d_hidden.dtype), index * chunk, axis=1
        )
        d_unembed = d_unembed + jnp.einsum(
            "bcd,bcv->dv", student_h, d_logits, preferred_element_type=d_unembed.dtype
        )
        results = jax.tree.map(jnp.add, results, (value, sums))
        return (results, d_hidden, d_unembed), None

    results = _zeros_of_results(loss, inputs, unembed_1DV, unembeds, chunk)
    wide = _wide(unembed_DV.dtype)
    start = results, jnp.zeros_like(inputs[0]), jnp.zeros(unembed_DV.shape, wide)
    count = _num_chunks(inputs, chunk)
    (results, d_hidden, d_unembed), _ = jax.lax.scan(body, start, jnp.arange(count))
    total, sums = _sum_shards(results, batch_axes)
    return total, sums, d_hidden[:, : hidden.shape[1]], d_unembed[None]


def token_log_probs(
    hidden_BRD: jax.Array,
    unembed_DV: jax.Array,
    token_BR: jax.Array,
    *,
    temperature: float,
    chunk: int,
) -> jax.Array:
    """Log-probabilities [B, R] of the given tokens, in nats; not differentiable."""
    inputs = _pad_to_chunks((hidden_BRD, token_BR), chunk)
    time = hidden_BRD.shape[1]

    def body(logp_BR, index):
        hidden, token = _slice_chunk(inputs, index, chunk)
        logp = log_probs_of(_logits(hidden, unembed_DV), token, temperature)
        update = jax.lax.dynamic_update_slice_in_dim
        return update(logp_BR, logp, index * chunk, axis=1), None

    start = jnp.zeros(inputs[1].shape, _wide(hidden_BRD.dtype))
    logp_BR, _ = jax.lax.scan(body, start, jnp.arange(_num_chunks(inputs, chunk)))
    return logp_BR[:, :time]


def log_probs_of(
    logits_BCV: jax.Array, token_BC: jax.Array, temperature: float
) -> jax.Array:
    """Log-probabilities [B, C] of tokens at a temperature; ids below 0 read token 0."""
    logits_BCV = logits_BCV / temperature
    index_BC1 = jnp.maximum(token_BC, 0)[..., None]
    chosen_BC = jnp.take_along_axis(logits_BCV, index_BC1, axis=-1)[..., 0]
    return chosen_BC - jax.nn.logsumexp(logits_BCV, axis=-1)


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    return np.promote_types(dtype, np.float32)


def _logits(hidden_BCD: jax.Array, unembed_DV: jax.Array) -> jax.Array:
    wide = _wide(hidden_BCD.dtype)
    product = "bcd,dv->bcv"
    return jnp.einsum(product, hidden_BCD, unembed_DV, preferred_element_type=wide)


def _zero_masked(mask_BR: jax.Array, tree: Tree) -> Tree:
    """Zeros, not NaN times zero, where nothing counts."""

    def zero(x: jax.Array) -> jax.Array:
        mask = mask_BR.reshape(mask_BR.shape + (1,) * (x.ndim - 2))
        return jnp.where(mask, x, jnp.zeros_like(x))

    return jax.tree.map(zero, tree)


def _pad_to_chunks(tree: Tree, chunk: int) -> Tree:
    def pad(x: jax.Array) -> jax.Array:
        widths = [(0, 0)] * x.ndim
        widths[1] = (0, -x.shape[1] % chunk)
        return jnp.pad(x, widths)

    return jax.tree.map(pad, tree)


def _num_chunks(tree: Tree, chunk: int) -> int:
    return jax.tree.leaves(tree)[0].shape[1] // chunk


def _slice_chunk(tree: Tree, index: jax.Array, chunk: int) -> Tree:
    take = jax.lax.dynamic_slice_in_dim
    return jax.tree.map(lambda x: take(x, index * chunk, chunk, axis=1), tree)


def _zeros_of_results(loss, inputs, unembed_1DV, unembeds, chunk):
    """Zeros shaped like what `loss` returns."""

    def one(inputs, unembed_1DV, unembeds):
        student_h, teacher_hs, tokens = _slice_chunk(inputs, jnp.int32(0), chunk)
        teacher_logits = tuple(map(_logits, teacher_hs, unembeds))
        return loss(_logits(student_h, unembed_1DV[0]), teacher_logits, tokens)

    shapes = jax.eval_shape(one, inputs, unembed_1DV, unembeds)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _sum_shards(tree: Tree, batch_axes: tuple[str, ...]) -> Tree:
    return jax.lax.psum(tree, batch_axes) if batch_axes else tree
