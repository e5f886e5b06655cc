"""Any loss on logits, and its gradient, from hidden states and chunk by chunk.

Logits are made for one chunk of response positions at a time, and value and gradient
are both computed inside the chunk, so no [tokens, vocabulary] array outlives it.

Chunks are slices of the response axis, never of flattened tokens: on a mesh, slices of
the latter make every device gather the batch and do all the work. The unembedding has
a leading axis with one copy per batch shard, so its gradient is summed locally over
chunks (over micro-batches by the caller) and reduced once, outside every loop.

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

    Differentiable in the student only. Values where `mask_BR` is false are replaced by
    zeros before anything is computed, so they may be NaN.

    Args:
      loss: a function of one chunk, in which tokens whose per-token arrays are zero
        must count for nothing.
      student: hidden states [B, R, D] and the unembedding [Z, D, V], one copy per
        batch shard (Z = 1 without a mesh).
      teachers: hidden states [B, R, D] and an unembedding [D, V] for each teacher.
      mask_BR: true on tokens that count.
      per_token: a pytree of [B, R] arrays, handed to `loss` chunk by chunk.
      chunk: positions per chunk; peak memory holds a few [B, chunk, V] arrays.
      batch_axes: names of the mesh axes that shard B and Z; empty without a mesh.

    Returns:
      The sum of losses, and the sums that `loss` names.
    """
    walk = functools.partial(_walk, loss, chunk, batch_axes)
    return walk(*student, teachers, mask_BR, per_token)


# A rule of its own, because autodiff of the scan would either keep the logits of every
# chunk or make them twice; here the gradient comes out of the forward pass.
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
    # Cotangents must have the dtypes of the inputs, which empty arrays carry along.
    like = (arrays[0][:0], arrays[1][:0])
    return (total, sums), (d_hidden, d_unembed, like)


def _walk_backward(loss, chunk, batch_axes, kept, cotangents):
    d_hidden, d_unembed, (like_hidden, like_unembed) = kept
    # The gradient of the sum was taken for a cotangent of 1. The named sums, whose
    # cotangents come second, are for the log and have no gradient.
    scale = cotangents[0]
    d_hidden = (d_hidden * scale.astype(d_hidden.dtype)).astype(like_hidden.dtype)
    d_unembed = (d_unembed * scale.astype(d_unembed.dtype)).astype(like_unembed.dtype)
    # None is a zero cotangent: teachers, mask and per-token arrays are constants.
    return d_hidden, d_unembed, None, None, None


_walk.defvjp(_walk_forward, _walk_backward)


def _per_shard(local, batch_axes, teachers, out):
    """`local` on every batch shard; `out` is true for results that are sharded too."""
    if not batch_axes:
        return local
    # A leading axis: rows of [B, ...] arrays, and each shard's own copy of [Z, D, V].
    sharded, replicated = PartitionSpec(batch_axes), PartitionSpec()
    teacher_specs = tuple((sharded, replicated) for _ in teachers)
    return jax.shard_map(
        local,
        in_specs=(sharded, sharded, teacher_specs, sharded, sharded),
        out_specs=tuple(sharded if is_cut else replicated for is_cut in out),
        # Other mesh axes stay automatic: XLA shards logits over the vocabulary.
        axis_names=set(batch_axes),
        # The check refuses a scan whose carry starts as the same zeros on all shards.
        check_vma=False,
    )


def _forward(loss, chunk, batch_axes, hidden, unembed_1DV, teachers, mask, per_token):
    """Value only, for callers that do not differentiate.

    As in `_forward_and_gradient`, a scan makes the logits of one chunk after the other.
    """
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
        student_loss = lambda logits: loss(logits, teacher_logits, tokens)
        # Autodiff only through the loss; the two products behind it are written out.
        value, pull_back, sums = jax.vjp(
            student_loss, _logits(student_h, unembed_DV), has_aux=True
        )
        # Matrix products take the model's dtype; the unembedding's gradient, a sum over
        # all chunks, accumulates in the wider one.
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
    # Only scalars are reduced over shards here. Gradients stay with their shard: the
    # caller sums the copies of the unembedding's when all micro-batches are done.
    total, sums = _sum_shards(results, batch_axes)
    return total, sums, d_hidden[:, : hidden.shape[1]], d_unembed[None]


def token_log_probs(
    hidden_BRD: jax.Array,
    unembed_DV: jax.Array,
    token_BR: jax.Array,
    *,
    temperature: float,
    chunk: int,
    within: Callable[[jax.Array], jax.Array] = lambda logits: logits,
) -> jax.Array:
    """Log-probabilities [B, R] of the given tokens, in nats; not differentiable.

    Args:
      hidden_BRD: hidden states.
      unembed_DV: the unembedding.
      token_BR: ids; those below 0 count as 0.
      temperature: divides the logits.
      chunk: positions per chunk.
      within: applied to a chunk's logits, to exclude columns that are no tokens.
    """
    inputs = _pad_to_chunks((hidden_BRD, token_BR), chunk)
    time = hidden_BRD.shape[1]

    def body(logp_BR, index):
        hidden, token = _slice_chunk(inputs, index, chunk)
        logp = log_probs_of(within(_logits(hidden, unembed_DV)), token, temperature)
        update = jax.lax.dynamic_update_slice_in_dim
        return update(logp_BR, logp, index * chunk, axis=1), None

    start = jnp.zeros(inputs[1].shape, _wide(hidden_BRD.dtype))
    logp_BR, _ = jax.lax.scan(body, start, jnp.arange(_num_chunks(inputs, chunk)))
    return logp_BR[:, :time]


def log_probs_of(
    logits_BCV: jax.Array, token_BC: jax.Array, temperature: float
) -> jax.Array:
    """Log-probabilities [B, C] of tokens at a temperature; ids below 0 count as 0."""
    logits_BCV = logits_BCV / temperature
    # Padding must be a valid index; its result is masked by the caller.
    index_BC1 = jnp.maximum(token_BC, 0)[..., None]
    chosen_BC = jnp.take_along_axis(logits_BCV, index_BC1, axis=-1)[..., 0]
    return chosen_BC - jax.nn.logsumexp(logits_BCV, axis=-1)


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    # Float32 for bfloat16, and float64 for itself: tests compare in it.
    return np.promote_types(dtype, np.float32)


def _logits(hidden_BCD: jax.Array, unembed_DV: jax.Array) -> jax.Array:
    # The product accumulates in `wide` and is not rounded to the dtype of its inputs.
    wide = _wide(hidden_BCD.dtype)
    product = "bcd,dv->bcv"
    return jnp.einsum(product, hidden_BCD, unembed_DV, preferred_element_type=wide)


def _zero_masked(mask_BR: jax.Array, tree: Tree) -> Tree:
    """Zeros where the mask is false; multiplying by 0 would keep NaN."""

    def zero(x: jax.Array) -> jax.Array:
        mask = mask_BR.reshape(mask_BR.shape + (1,) * (x.ndim - 2))
        return jnp.where(mask, x, jnp.zeros_like(x))

    return jax.tree.map(zero, tree)


def _pad_to_chunks(tree: Tree, chunk: int) -> Tree:
    # Padded by zeros, like masked tokens, so padded positions count for nothing either.
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
    """Zeros with the shapes and dtypes of what `loss` returns."""

    def first_chunk(inputs, unembed_1DV, unembeds):
        student_h, teacher_hs, tokens = _slice_chunk(inputs, jnp.int32(0), chunk)
        teacher_logits = tuple(map(_logits, teacher_hs, unembeds))
        return loss(_logits(student_h, unembed_1DV[0]), teacher_logits, tokens)

    shapes = jax.eval_shape(first_chunk, inputs, unembed_1DV, unembeds)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)


def _sum_shards(tree: Tree, batch_axes: tuple[str, ...]) -> Tree:
    return jax.lax.psum(tree, batch_axes) if batch_axes else tree
