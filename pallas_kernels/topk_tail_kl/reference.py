"""The definition of every divergence, on log-probabilities of full distributions.

Axis letters as in `sdpo_jax/batch.py`: V vocabulary, K kept tokens (with their tail,
K + 1 buckets); leading axes are free.
"""

import math

import jax
import jax.numpy as jnp

DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon")

# The SDPO paper's code clamps the log of the kept mass to this, so a tail of less than
# 1e-7 is reported as 1e-7 and has no gradient.
_LARGEST_LOG_MASS = -1e-7


def divergence(
    student_logp_V: jax.Array, teacher_logp_V: jax.Array, kind: str, mixture: float
) -> jax.Array:
    """Divergence of two distributions over the same buckets, in nats.

    With student p, teacher q and m = (1 - c) p + c q for the mixture c:

      forward_kl      KL(q || p)
      reverse_kl      KL(p || q)                          (arXiv:2601.20802, eq. 1)
      jensen_shannon  (1 - c) KL(p || m) + c KL(q || m)   (arXiv:2601.18734, eq. 7)

    forward_kl and reverse_kl are not the limits of jensen_shannon, which tends to 0 at
    both ends.

    Args:
      student_logp_V: log-probabilities; the last axis holds the buckets.
      teacher_logp_V: the same shape.
      kind: one of DIVERGENCES.
      mixture: the teacher's share c of the mixture, in (0, 1); used by jensen_shannon.

    Returns:
      The divergence, without the last axis.
    """
    p, q = jnp.exp(student_logp_V), jnp.exp(teacher_logp_V)
    if kind == "forward_kl":
        terms = q * (teacher_logp_V - student_logp_V)
    elif kind == "reverse_kl":
        terms = p * (student_logp_V - teacher_logp_V)
    elif kind == "jensen_shannon":
        # log((1 - c) p + c q), which never leaves the scale of logarithms.
        middle = jnp.logaddexp(
            student_logp_V + math.log1p(-mixture), teacher_logp_V + math.log(mixture)
        )
        terms = (1 - mixture) * p * (student_logp_V - middle)
        terms = terms + mixture * q * (teacher_logp_V - middle)
    else:
        raise ValueError(f"divergence must be one of {DIVERGENCES}: {kind!r}")
    return jnp.sum(terms, axis=-1)


def top_k_buckets(
    student_logp_V: jax.Array,
    teacher_logp_V: jax.Array,
    k: int,
    keep_tail: bool,
    blocks: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Both distributions on the student's top K tokens and one tail bucket.

    The tail is what the kept tokens leave, 1 - sum of their probabilities
    (arXiv:2601.20802, App. A.3, eq. 11). Without it both sides are renormalised over
    the kept tokens; they are never left unnormalised, which would bias the gradient.

    Args:
      student_logp_V: log-probabilities over the vocabulary; its top K are kept.
      teacher_logp_V: the same shape; read at the student's tokens.
      k: number of kept tokens.
      keep_tail: whether the remaining mass is a bucket of its own.
      blocks: see `top_k_ids`.

    Returns:
      Log-probabilities of student and teacher, [..., K + 1] or [..., K].
    """
    # Which tokens are kept has no gradient; their log-probabilities do.
    ids_K = top_k_ids(jax.lax.stop_gradient(student_logp_V), k, blocks)
    student_K = jnp.take_along_axis(student_logp_V, ids_K, axis=-1)
    teacher_K = jnp.take_along_axis(teacher_logp_V, ids_K, axis=-1)
    close = _with_tail if keep_tail else _renormalised
    return close(student_K), close(teacher_K)


def top_k_ids(value_V: jax.Array, k: int, blocks: int = 1) -> jax.Array:
    """Indices of the k largest entries, in the order of `jax.lax.top_k`.

    Each block of the last axis contributes its k largest, and the k largest of those
    are taken. So devices that each hold a block of the vocabulary exchange candidates;
    searching the axis at once, they would exchange and sort every entry. Where the axis
    is not sharded, one block is faster.

    Args:
      value_V: numbers; the last axis is searched.
      k: number of entries, at most the length of the last axis.
      blocks: equal slices of the last axis; one is used where it does not divide, or
        where a slice has no more than k entries.

    Returns:
      Indices [..., k]; of equal entries the lower index comes first.
    """
    *lead, vocab = value_V.shape
    # One axis of rows: on TPUs, `top_k` of more axes sorts the whole vocabulary.
    value_XV = value_V.reshape(-1, vocab)
    rows, width = len(value_XV), vocab // blocks
    if blocks == 1 or vocab % blocks or width <= k:
        return jax.lax.top_k(value_XV, k)[1].reshape(*lead, k)
    # Sharded over as many devices as there are blocks, this moves nothing: the blocks
    # are the major part of the rows, so that each device keeps its own.
    by_block = value_XV.reshape(rows, blocks, width).swapaxes(0, 1)
    value, place = jax.lax.top_k(by_block.reshape(blocks * rows, width), k)
    joined = lambda x: x.reshape(blocks, rows, k).swapaxes(0, 1).reshape(rows, -1)
    first = jax.lax.broadcasted_iota(place.dtype, place.shape, 0) // rows * width
    # Candidates are in the order of their blocks, so among equal values the lower index
    # still comes first.
    _, best_XK = jax.lax.top_k(joined(value), k)
    ids_XK = jnp.take_along_axis(joined(first + place), best_XK, axis=-1)
    return ids_XK.reshape(*lead, k)


def _with_tail(logp_K: jax.Array) -> jax.Array:
    # log(1 - exp(mass)) by expm1, since 1 - exp(mass) cancels where the mass is near 1.
    mass = jax.nn.logsumexp(logp_K, axis=-1, keepdims=True)
    tail = jnp.log(-jnp.expm1(jnp.minimum(mass, _LARGEST_LOG_MASS)))
    return jnp.concatenate([logp_K, tail], axis=-1)


def _renormalised(logp_K: jax.Array) -> jax.Array:
    return logp_K - jax.nn.logsumexp(logp_K, axis=-1, keepdims=True)
