"""AdamW, its clipping and its schedule, counted in rollout batches."""

import optax
from ml_collections import ConfigDict


def steps_per_batch(c: ConfigDict) -> int:
    """Optimiser steps on one rollout batch."""
    return c.rollout.questions // c.step.questions


def make_optimizer(c: ConfigDict) -> optax.GradientTransformation:
    """AdamW with clipping and the config's learning-rate schedule."""
    clip = optax.clip_by_global_norm(c.optimizer.clip_norm)
    adamw = optax.adamw(
        learning_rate(c), b1=0.9, b2=0.999, weight_decay=c.optimizer.weight_decay
    )
    return optax.chain(clip, adamw)


def learning_rate(c: ConfigDict) -> optax.Schedule:
    """Linear warm-up, then constant or cosine to zero at the run's last update.

    It counts rollout batches, as the paper's code does: all optimiser steps on one
    batch have the same rate.
    """
    peak, warmup = c.optimizer.learning_rate, c.optimizer.warmup_updates
    if c.optimizer.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(c.train.updates - warmup, 1))
    else:
        after = optax.constant_schedule(peak)
    # The first update moves already: the ramp starts at peak / (warmup + 1).
    ramp = optax.linear_schedule(peak / (warmup + 1), peak, max(warmup, 1))
    of_update = optax.join_schedules([ramp, after], [warmup])
    return lambda count: of_update(count // steps_per_batch(c))
