"""AdamW with gradient clipping, and its schedule over rollout batches."""

import optax
from ml_collections import ConfigDict


def steps_per_batch(c: ConfigDict) -> int:
    """Optimiser steps on one rollout batch."""
    return c.rollout.questions // c.step.questions


def make_optimizer(c: ConfigDict) -> optax.GradientTransformation:
    """AdamW with clipping and the config's learning-rate schedule."""
    # AdamW's moments see the clipped gradient. b1 and b2 are those of the paper's code.
    clip = optax.clip_by_global_norm(c.optimizer.clip_norm)
    adamw = optax.adamw(
        learning_rate(c), b1=0.9, b2=0.999, weight_decay=c.optimizer.weight_decay
    )
    return optax.chain(clip, adamw)


def learning_rate(c: ConfigDict) -> optax.Schedule:
    """Linear warm-up, then constant or a cosine to zero at the end of the run.

    The schedule counts rollout batches, as the paper's code does: all optimiser steps
    on one batch have the same rate.
    """
    peak, warmup = c.optimizer.learning_rate, c.optimizer.warmup_updates
    if c.optimizer.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(c.train.updates - warmup, 1))
    else:
        after = optax.constant_schedule(peak)
    # Update u of the ramp has peak (u + 1) / (warmup + 1), so the first one moves too.
    ramp = optax.linear_schedule(peak / (warmup + 1), peak, max(warmup, 1))
    rate_of_update = optax.join_schedules([ramp, after], [warmup])
    # optax counts optimiser steps.
    return lambda count: rate_of_update(count // steps_per_batch(c))
