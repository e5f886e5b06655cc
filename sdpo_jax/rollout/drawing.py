"""Drawing tokens from logits: temperature, top-k and top-p, without a sort."""

import jax
import jax.numpy as jnp

from sdpo_jax.rollout import Sampling

# Vocabulary entries whose probabilities are summed as one before a token is drawn.
_BLOCK = 128


def log_prob(logp_BV: jax.Array, token_B: jax.Array) -> jax.Array:
    """The tokens' entries [B]."""
    return jnp.take_along_axis(logp_BV, token_B[:, None], axis=-1)[:, 0]


def draw(
    logits_BV: jax.Array, uniform_B: jax.Array, sampling: Sampling
) -> tuple[jax.Array, jax.Array]:
    """One token per row, and its log-probability under the distribution drawn from.

    One uniform number per row picks the token by inverting the cumulative
    distribution; noise for every entry of the vocabulary would cost more than the rest.

    Args:
      logits_BV: float32.
      uniform_B: in [0, 1).
      sampling: temperature, top-p and top-k; a temperature of 0 takes the most likely
        token, with log-probability 0.

    Returns:
      Token ids [B], and nats [B].
    """
    if sampling.temperature == 0:
        best_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        return best_B, jnp.zeros_like(uniform_B)
    logits_BV = keep_likely(
        logits_BV / sampling.temperature, sampling.top_k, sampling.top_p
    )
    logp_BV = jax.nn.log_softmax(logits_BV, axis=-1)
    token_B = _invert(jnp.exp(logp_BV), uniform_B)
    return token_B, log_prob(logp_BV, token_B)


def _invert(p_BV: jax.Array, uniform_B: jax.Array) -> jax.Array:
    """First index whose cumulative probability exceeds the uniform number.

    A block of the vocabulary is found first and then an entry in it: two short running
    sums are faster than a long one, and float32 rounds less.
    """
    rows, vocab = p_BV.shape
    # Padding has no probability, so it is never chosen.
    padded = jnp.pad(p_BV, ((0, 0), (0, -vocab % _BLOCK)))
    blocks_BXY = padded.reshape(rows, -1, _BLOCK)
    block_B, rest_B = _first_above(jnp.sum(blocks_BXY, axis=-1), uniform_B)
    inside_BY = jnp.take_along_axis(blocks_BXY, block_B[:, None, None], axis=1)[:, 0]
    # What is left of the target becomes a share of the block that it is in.
    total_B = jnp.sum(inside_BY, axis=-1)
    index_B, _ = _first_above(inside_BY, rest_B / total_B)
    return block_B * _BLOCK + index_B


def _first_above(p_BX: jax.Array, share_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """First index where the running sum exceeds `share_B` of the total.

    Returns:
      The index, and the part of the target that is within its entry. Only entries with
      a positive probability are ever chosen.
    """
    # A parallel running sum rounds differently from entry to entry, so it may rise or
    # fall where nothing is added: entries without probability are excluded.
    running_BX = jnp.where(p_BX > 0, jnp.cumsum(p_BX, axis=-1), 0.0)
    total_B = jnp.max(running_BX, axis=-1)
    # Rounding must not carry the target up to the total, above which there is no entry.
    target_B = jnp.clip(share_B * total_B, 0.0, total_B * (1 - 2**-22))
    above_BX = running_BX > target_B[:, None]
    index_B = jnp.argmax(above_BX, axis=-1).astype(jnp.int32)
    chosen_B = jnp.take_along_axis(p_BX, index_B[:, None], axis=-1)[:, 0]
    reached_B = jnp.take_along_axis(running_BX, index_B[:, None], axis=-1)[:, 0]
    return index_B, target_B - (reached_B - chosen_B)


def keep_likely(logits_BV: jax.Array, top_k: int, top_p: float) -> jax.Array:
    """Logits with -inf where top-k, then top-p, exclude a token; ties are kept.

    The thresholds are found by bisection over the bits of a float, which is exact and
    needs no sort of the vocabulary.
    """
    # -inf is the probability 0 exactly, and it is safe in the softmax of a draw: the
    # most likely token is always kept.
    if top_k and top_k < logits_BV.shape[-1]:
        p_BV = jax.nn.softmax(logits_BV, axis=-1)
        enough = lambda kept_BV: jnp.sum(kept_BV, axis=-1) >= top_k
        logits_BV = jnp.where(_smallest_set(p_BV, enough), logits_BV, -jnp.inf)
    if top_p < 1:
        # Of the tokens that top-k kept, renormalised, as in transformers.
        p_BV = jax.nn.softmax(logits_BV, axis=-1)
        enough = lambda kept_BV: jnp.sum(p_BV, axis=-1, where=kept_BV) >= top_p
        logits_BV = jnp.where(_smallest_set(p_BV, enough), logits_BV, -jnp.inf)
    return logits_BV


def _smallest_set(p_BV: jax.Array, enough) -> jax.Array:
    """Mask of the fewest most likely entries for which `enough` is true."""
    # Non-negative floats are ordered as their bits are, read as integers.
    bits_BV = jax.lax.bitcast_convert_type(p_BV, jnp.int32)
    low_B = jnp.zeros(p_BV.shape[:1], jnp.int32)
    high_B = jnp.max(bits_BV, axis=-1)

    # The threshold is always within [low, high]: entries of at least `low` are enough,
    # entries above `high` are not.
    def halve(_, bounds):
        low_B, high_B = bounds
        middle_B = low_B + (high_B - low_B + 1) // 2
        is_enough_B = enough(bits_BV >= middle_B[:, None])
        low_B = jnp.where(is_enough_B, middle_B, low_B)
        return low_B, jnp.where(is_enough_B, high_B, middle_B - 1)

    # 31 bits besides the sign, hence 31 halvings.
    low_B, _ = jax.lax.fori_loop(0, 31, halve, (low_B, high_B))
    return bits_BV >= low_B[:, None]
