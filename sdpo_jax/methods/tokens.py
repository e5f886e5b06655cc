"""Per-token inputs of a loss besides the logits, and importance weights from them."""

import flax.struct
import jax
import jax.numpy as jnp

# The SDPO paper's code clamps the log of every importance ratio to this before `exp`.
_LARGEST_LOG_RATIO = 20.0


@flax.struct.dataclass
class Tokens:
    """Per-token arrays of one chunk.

    Args:
      id_BC: the sampled token.
      weight_BC: its weight in the loss; 0 where masked.
      advantage_BC: its attempt's advantage; None where the method reads none.
      sampler_logp_BC: nats, under the distribution that was sampled from; None where
        the method does not correct for the sampler.
      old_logp_BC: nats, the trainer's before the first of several optimiser steps on
        this batch; None when there is only one.
    """

    id_BC: jax.Array
    weight_BC: jax.Array
    advantage_BC: jax.Array | None
    sampler_logp_BC: jax.Array | None
    old_logp_BC: jax.Array | None


def log_ratio(tokens: Tokens, logp_BC: jax.Array) -> jax.Array:
    """Log pi / pi_old, clamped; exactly 0 in value when a batch has one step."""
    # With one step, pi_old is pi: the value is 0 and the gradient that of log pi.
    old = tokens.old_logp_BC
    old = jax.lax.stop_gradient(logp_BC) if old is None else old
    return jnp.clip(logp_BC - old, -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)


def sampler_weight(tokens: Tokens, logp_BC: jax.Array, cap: float) -> jax.Array:
    """Truncated importance weight min(pi_old / pi_sampler, cap), no gradient.

    Corrects for the sampler's arithmetic (arXiv:2601.20802, eq. 12, w_TIS).
    """
    # Both are the trainer's arithmetic; only pi_sampler is the sampler's.
    old = logp_BC if tokens.old_logp_BC is None else tokens.old_logp_BC
    gap = jax.lax.stop_gradient(old) - tokens.sampler_logp_BC
    gap = jnp.clip(gap, -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    return jnp.minimum(jnp.exp(gap), cap)


def shared_sums(
    tokens: Tokens, logits_BCV: jax.Array, logp_BC: jax.Array
) -> dict[str, jax.Array]:
    """Sums that every method logs, in nats.

    They are the policy's entropy and, where the sampler's log-probabilities are in the
    batch, their mean absolute difference from the trainer's.
    """
    logp_BCV = jax.nn.log_softmax(logits_BCV, axis=-1)
    entropy_BC = -jnp.sum(jnp.exp(logp_BCV) * logp_BCV, axis=-1)
    weighted = lambda value_BC: jnp.sum(tokens.weight_BC * value_BC)
    sums = {"entropy": weighted(entropy_BC)}
    if tokens.sampler_logp_BC is not None:
        gap_BC = jnp.abs(logp_BC - tokens.sampler_logp_BC)
        sums["sampler_gap"] = weighted(gap_BC)
    return jax.lax.stop_gradient(sums)
