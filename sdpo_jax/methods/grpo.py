"""Group relative policy optimisation, as the SDPO paper compares with it."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from pallas_kernels.topk_tail_kl.chunked import log_probs_of
from sdpo_jax.methods import method
from sdpo_jax.methods.tokens import Tokens, log_ratio, sampler_weight, shared_sums


def loss(
    c: ConfigDict,
    student_BCV: jax.Array,
    teachers: tuple[jax.Array, ...],
    tokens: Tokens,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Clipped policy gradient on the sampled tokens, summed over a chunk.

      L = -sum_t w_t min(w_TIS, rho) min(r A, clip(r, 1 - low, 1 + high) A)

    (arXiv:2601.20802, eq. 12), with the dual clip of the paper's code: where A < 0 a
    token's loss is at most `config.grpo.dual_clip` times |A|.

    Args:
      c: the run's config.
      student_BCV: logits.
      teachers: none.
      tokens: the other per-token arrays.

    Returns:
      The weighted sum of losses, and sums for the log.
    """
    assert not teachers
    logp_BC = log_probs_of(student_BCV, tokens.id_BC, c.rollout.temperature)
    advantage_BC = tokens.advantage_BC
    # r of eq. 12. On the first step it is 1, but its gradient is that of log pi.
    ratio_BC = jnp.exp(log_ratio(tokens, logp_BC))
    clipped_BC = jnp.clip(ratio_BC, 1 - c.grpo.clip_low, 1 + c.grpo.clip_high)
    gain_BC = jnp.minimum(ratio_BC * advantage_BC, clipped_BC * advantage_BC)
    # The dual clip: for A < 0 the minimum above falls without bound as r grows.
    floor_BC = c.grpo.dual_clip * advantage_BC
    gain_BC = jnp.where(advantage_BC < 0, jnp.maximum(gain_BC, floor_BC), gain_BC)

    # Where either clip took effect, a token has no gradient.
    is_clipped_BC = (ratio_BC * advantage_BC != gain_BC).astype(logp_BC.dtype)
    weighted = lambda value_BC: jnp.sum(tokens.weight_BC * value_BC)
    sums = {
        **shared_sums(tokens, student_BCV / c.rollout.temperature, logp_BC),
        "clipped": weighted(is_clipped_BC),
    }
    # min(w_TIS, rho), which has no gradient; after both clips, as in eq. 12.
    gain_BC *= sampler_weight(tokens, logp_BC, c.step.sampler_ratio_cap)
    return -weighted(gain_BC), jax.lax.stop_gradient(sums)


def advantages(c: ConfigDict, score_UG: np.ndarray, known_UG: np.ndarray) -> np.ndarray:
    """Scores minus the mean of their question's attempts (arXiv:2601.20802, Sec. 2).

    An attempt whose grading failed is left out of the mean and gets 0.

    Args:
      c: the run's config; `grpo.normalize_std` divides by the standard deviation, with
        the unbiased estimate of the variance.
      score_UG: float64.
      known_UG: false where the grading failed.

    Returns:
      float64 [U, G].
    """
    count_U1 = np.maximum(known_UG.sum(axis=1, keepdims=True), 1)
    mean_U1 = (score_UG * known_UG).sum(axis=1, keepdims=True) / count_U1
    advantage_UG = (score_UG - mean_U1) * known_UG
    if c.grpo.normalize_std:
        power_U1 = np.square(advantage_UG).sum(axis=1, keepdims=True)
        # A group of equal scores has no deviation; its advantages stay 0.
        advantage_UG /= np.sqrt(power_U1 / np.maximum(count_U1 - 1, 1)) + 1e-6
    return advantage_UG


def check(c: ConfigDict) -> None:
    """Refuse a group of one attempt, whose advantage is always 0."""
    if c.rollout.attempts < 2:
        raise ValueError("rollout.attempts=1: GRPO compares attempts, set at least 2")


METHOD = method.Method(
    loss=loss,
    rows=frozenset({method.SAMPLER_LOGP}),
    advantages=advantages,
    check=check,
)
