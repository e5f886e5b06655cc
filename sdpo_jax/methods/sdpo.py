"""Self-distillation policy optimisation (arXiv:2601.20802)."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from pallas_kernels.topk_tail_kl import reference
from sdpo_jax import distributed, teacher
from sdpo_jax.methods import method
from sdpo_jax.methods.tokens import Tokens, log_ratio, sampler_weight, shared_sums


def loss(
    c: ConfigDict,
    student_BCV: jax.Array,
    teachers: tuple[jax.Array, ...],
    tokens: Tokens,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Divergence of the student from the self-teacher, summed over a chunk.

      L = sum_t w_t D(pi_student(. | x, y_<t), stopgrad pi_teacher(. | x, f, y_<t))

    with the `divergence` D of the config (eq. 1 and App. A.3). As in the paper's code,
    w_t is multiplied by two importance weights: the capped ratio to the policy before
    the batch's first step, and the truncated ratio to the sampler.

    Args:
      c: the run's config.
      student_BCV: logits.
      teachers: one teacher's logits, or two for a trust region; see
        `teacher.mixed_logits`.
      tokens: the other per-token arrays.

    Returns:
      The weighted sum of losses, and sums for the log.
    """
    d = divergence(c)
    # Student and teacher are compared at the temperature that was sampled with.
    student_logp = jax.nn.log_softmax(student_BCV / c.rollout.temperature, axis=-1)
    teacher_BCV = jax.lax.stop_gradient(
        teacher.mixed_logits(teachers, c.teacher.mixture)
    )
    teacher_BCV /= c.rollout.temperature
    teacher_logp = jax.nn.log_softmax(teacher_BCV, axis=-1)
    # Padding must be a valid index; its weight is 0.
    chosen_BC1 = jnp.maximum(tokens.id_BC, 0)[..., None]
    logp_BC = jnp.take_along_axis(student_logp, chosen_BC1, axis=-1)[..., 0]
    teacher_logp_BC = jnp.take_along_axis(teacher_logp, chosen_BC1, axis=-1)[..., 0]

    if d.support == "sampled_token":
        # Only the gradient of this surrogate is that of the reverse KL, in expectation
        # over the sampled token (Prop. 2.1). The value for the log is log p - log q.
        advantage_BC = jax.lax.stop_gradient(teacher_logp_BC - logp_BC)
        loss_BC = -advantage_BC * logp_BC
        divergence_BC = -advantage_BC
    else:
        if d.support == "top_k":
            # Blocks where devices hold slices of the vocabulary, see `top_k_ids`.
            student_logp, teacher_logp = reference.top_k_buckets(
                student_logp,
                teacher_logp,
                d.top_k,
                d.keep_tail,
                blocks=distributed.slices("vocab"),
            )
        loss_BC = divergence_BC = reference.divergence(
            student_logp, teacher_logp, d.kind, d.mixture
        )

    # Neither weight has a gradient: the divergence is differentiated, not its weight.
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


def divergence(c: ConfigDict) -> method.Divergence:
    """The divergence that `config.sdpo` specifies."""
    s = c.sdpo
    return method.Divergence(s.divergence, s.mixture, s.support, s.top_k, s.keep_tail)


def check(c: ConfigDict) -> None:
    """Refuse a divergence without an estimator, and a teacher that is shown nothing."""
    if c.sdpo.support == "sampled_token" and c.sdpo.divergence != "reverse_kl":
        raise ValueError(
            "sdpo.support=sampled_token estimates the reverse KL only: set "
            f"sdpo.divergence to reverse_kl, not {c.sdpo.divergence}"
        )
    shows_solutions = c.reprompt.demonstration_from != "nobody"
    if not shows_solutions and c.reprompt.show_feedback == "never":
        raise ValueError(
            "reprompt.demonstration_from=nobody with reprompt.show_feedback=never "
            "shows the teacher nothing; change one of them"
        )


METHOD = method.Method(
    loss=loss,
    rows=frozenset({method.REPROMPT, method.SAMPLER_LOGP}),
    reads_teacher=True,
    check=check,
    divergence=divergence,
)
