"""Self-distillation policy optimisation (arXiv:2601.20802)."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from pallas_kernels.topk_tail_kl import reference
from sdpo_jax import distributed
from sdpo_jax.methods.tokens import Tokens, log_ratio, sampler_weight, shared_sums


def sdpo(
    c: ConfigDict,
    student_BCV: jax.Array,
    teachers: tuple[jax.Array, ...],
    tokens: Tokens,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Divergence of the student from the self-teacher, summed over a chunk.

      L = sum_t w_t D(pi_student(. | x, y_<t), stopgrad pi_teacher(. | x, f, y_<t))

    with D of `config.sdpo.divergence` on the support of `config.sdpo.support` (eq. 1
    and App. A.3), and importance weights as in the paper's code: the ratio to the
    policy before the batch's first step and the truncated ratio to the sampler.

    Args:
      c: the run's config.
      student_BCV: logits.
      teachers: one teacher's logits, or (reference, live) for a trust region, mixed as
        q ∝ reference^(1-a) live^a with a = `config.teacher.mixture` (eq. 10).
      tokens: what else is known of each token.

    Returns:
      The weighted sum, and sums for the log.
    """
    student_logp = jax.nn.log_softmax(student_BCV / c.rollout.temperature, axis=-1)
    teacher_BCV = jax.lax.stop_gradient(_mixed(c, teachers)) / c.rollout.temperature
    teacher_logp = jax.nn.log_softmax(teacher_BCV, axis=-1)
    chosen_BC1 = jnp.maximum(tokens.id_BC, 0)[..., None]
    logp_BC = jnp.take_along_axis(student_logp, chosen_BC1, axis=-1)[..., 0]
    teacher_logp_BC = jnp.take_along_axis(teacher_logp, chosen_BC1, axis=-1)[..., 0]

    if c.sdpo.support == "sampled_token":
        # Only the gradient of this surrogate is that of the reverse KL.
        advantage_BC = jax.lax.stop_gradient(teacher_logp_BC - logp_BC)
        loss_BC = -advantage_BC * logp_BC
        divergence_BC = -advantage_BC
    else:
        if c.sdpo.support == "top_k":
            student_logp, teacher_logp = reference.top_k_buckets(
                student_logp,
                teacher_logp,
                c.sdpo.top_k,
                c.sdpo.keep_tail,
                blocks=distributed.slices("vocab"),
            )
        loss_BC = divergence_BC = reference.divergence(
            student_logp, teacher_logp, c.sdpo.divergence, c.sdpo.mixture
        )

    ratio_BC = jnp.exp(jax.lax.stop_gradient(log_ratio(tokens, logp_BC)))
    ratio_BC = jnp.minimum(ratio_BC, c.sdpo.importance_ratio_cap)
    ratio_BC *= sampler_weight(tokens, logp_BC, c.step.sampler_ratio_cap)
    weighted = lambda value_BC: jnp.sum(tokens.weight_BC * value_BC)
    sums = {
        **shared_sums(tokens, student_BCV / c.rollout.temperature, logp_BC),
        "divergence": weighted(divergence_BC),
        "teacher_advantage": weighted(teacher_logp_BC - logp_BC),
    }
    return weighted(ratio_BC * loss_BC), jax.lax.stop_gradient(sums)


def _mixed(c: ConfigDict, teachers: tuple[jax.Array, ...]) -> jax.Array:
    """The teacher's logits; of a trust region, mixed on the raw logits (eq. 16)."""
    if len(teachers) == 1:
        return teachers[0]
    anchor_BCV, live_BCV = teachers
    return anchor_BCV + c.teacher.mixture * (live_BCV - anchor_BCV)
