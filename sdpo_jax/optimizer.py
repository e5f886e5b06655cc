"""AdamW with gradient clipping, and its schedule over rollout batches."""

from typing import Any

import jax
import numpy as np
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
    # Update u of the ramp has peak (u + 1) / (warmup + 1), so the first one moves too;
    # in the published code it has peak u / warmup.
    start = 0.0 if c.optimizer.schedule == "official" else peak / (warmup + 1)
    ramp = optax.linear_schedule(start, peak, max(warmup, 1))
    rate_of_update = optax.join_schedules([ramp, after], [warmup])
    # optax counts optimiser steps.
    return lambda count: rate_of_update(count // steps_per_batch(c))


def at_update(c: ConfigDict, opt_state: Any, update: int) -> Any:
    """The state with its schedule where it is after `update` rollout batches.

    It differs only if earlier batches had another number of optimiser steps.
    """
    is_schedule = lambda x: isinstance(x, optax.ScaleByScheduleState)
    place = lambda x: x._replace(count=steps_at(c, x.count, update))
    return jax.tree.map(
        lambda x: place(x) if is_schedule(x) else x, opt_state, is_leaf=is_schedule
    )


def steps_at(c: ConfigDict, count: jax.Array, update: int) -> jax.Array:
    """`count`, or if it is not that of `update` batches of this size, theirs."""
    steps = update * steps_per_batch(c)
    if int(count) == steps:
        return count
    # An array for each device: one that several share could not be donated.
    new = lambda _: np.array(steps, count.dtype)
    return jax.make_array_from_callback((), count.sharding, new)
