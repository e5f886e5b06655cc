"""The self-teacher: its weights, and how they follow the student."""

from typing import Any

import jax
import jax.numpy as jnp

Params = Any


def start(mode: str, student: Params) -> Params | None:
    """The teacher's initial weights; None for a live teacher, which has none.

    They are a copy: the update donates the state, and a buffer cannot be donated twice.
    """
    return None if mode == "live" else jax.tree.map(jnp.copy, student)


def teacher_weights(
    mode: str, student: Params, teacher: Params | None
) -> tuple[Params, ...]:
    """The weights that re-read the attempts, and whose logits make the target.

    A trust region mixes the initial policy with the live student, both of which read
    the reprompt (arXiv:2601.20802, eq. 10); every other mode has one model.
    """
    if mode == "live":
        return (student,)
    if mode == "trust_region":
        return (teacher, student)
    return (teacher,)


def mixed_logits(teachers: tuple[jax.Array, ...], mixture: float) -> jax.Array:
    """The teacher's logits [B, C, V] from those of `teacher_weights`.

    A trust region's teacher is q ∝ anchor^(1-a) live^a with a = `mixture`, that is, a
    mixture of raw logits, before any temperature (arXiv:2601.20802, eqs. 10 and 16).
    """
    if len(teachers) == 1:
        return teachers[0]
    anchor_BCV, live_BCV = teachers
    # Log-normalisers are constant over the vocabulary and cancel in the next softmax.
    return anchor_BCV + mixture * (live_BCV - anchor_BCV)


def follow(mode: str, teacher: Params, student: Params, rate: jax.Array) -> Params:
    """The teacher's weights after one update (arXiv:2601.20802, App. A.2).

    An exponential moving average moves by `rate` towards the student; every other
    teacher stays as it is.
    """
    if mode != "ema":
        return teacher
    # In the weights' own float32: in bfloat16, a rate of 0.05 would round away.
    return jax.tree.map(
        lambda t, s: t + rate.astype(t.dtype) * (s - t), teacher, student
    )
