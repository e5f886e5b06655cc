"""All that training changes: what it is, how it begins and where it lives."""

import functools
import zlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sdpo_jax import distributed, methods, teacher
from sdpo_jax.model import decoder, lora
from sdpo_jax.model.families import Architecture
from sdpo_jax.optimizer import make_optimizer

Params = Any


@flax.struct.dataclass
class TrainState:
    """All that training changes.

    Args:
      step: optimiser steps taken.
      student: float32 parameters; with LoRA, the adapters.
      opt_state: of the optimiser.
      teacher: as the student; None when the method reads no other weights.
      base: what LoRA's adapters change, frozen, and not part of checkpoints; None
        without LoRA.
    """

    step: jax.Array
    student: Params
    opt_state: Any
    teacher: Params | None
    base: Params | None = None

    @property
    def policy(self) -> Params:
        """The student as `decoder` reads it."""
        return decoder_params(self.base, self.student)


def decoder_params(base: Params | None, trained: Params) -> Params:
    """What `decoder` reads: all weights, or a frozen base together with adapters.

    With adapters the teacher averages each of their two factors; the average of their
    products would have no low rank.
    """
    return trained if base is None else {**base, "adapters": trained}


def compute_dtype(c: ConfigDict) -> jnp.dtype:
    """Of activations and matrix products: bfloat16 on accelerators, float32 on CPU."""
    if c.model.dtype != "auto":
        return jnp.dtype(c.model.dtype)
    on_cpu = jax.default_backend() == "cpu"
    return jnp.dtype(jnp.float32 if on_cpu else jnp.bfloat16)


def has_teacher(c: ConfigDict) -> bool:
    """Whether the state holds weights of the teacher, apart from the student's."""
    return methods.of(c).reads_teacher and c.teacher.mode != "live"


def state_shardings(c: ConfigDict, arch: Architecture, mesh: Mesh) -> TrainState:
    """Where every leaf of the state lives."""
    student, base = decoder.shardings(arch, mesh), None
    if c.lora.rank:
        # The weights are the frozen base then; what is trained are the adapters.
        place = lambda axes: distributed.sharding(mesh, *axes)
        is_axes = lambda leaf: isinstance(leaf, tuple)
        axes = lora.logical_axes(arch, *_lora(c))
        base, student = student, jax.tree.map(place, axes, is_leaf=is_axes)
    optimizer = make_optimizer(c)
    everywhere = distributed.sharding(mesh)
    # Moments live where their weights do; counters everywhere.
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, place: place,
        jax.eval_shape(lambda: optimizer.init(_new_student(c, arch, _random(arch)))),
        student,
        transform_non_params=lambda _: everywhere,
    )
    of_teacher = student if has_teacher(c) else None
    return TrainState(everywhere, student, opt_state, of_teacher, base)


def abstract_state(c: ConfigDict, arch: Architecture, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and placement of the state, without any array."""

    def new() -> TrainState:
        params = _random(arch)
        base = jax.tree.map(lambda x: x.astype(loaded_dtype(c)), params)
        return _new_state(c, arch, params).replace(base=base if c.lora.rank else None)

    shapes = jax.eval_shape(new)
    with_place = lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place)
    return jax.tree.map(with_place, shapes, state_shardings(c, arch, mesh))


def loaded_dtype(c: ConfigDict) -> jnp.dtype:
    """Of a checkpoint's weights: float32 if they are trained, else as computed with."""
    return compute_dtype(c) if c.lora.rank else jnp.dtype(jnp.float32)


def new_state(
    c: ConfigDict, arch: Architecture, mesh: Mesh, params: Params
) -> TrainState:
    """The state before the first update.

    Args:
      c: the run's config.
      arch: the model.
      mesh: devices.
      params: of the checkpoint. They stay usable, but with LoRA they become the
        state's own, which the first step donates.
    """
    shardings = state_shardings(c, arch, mesh)
    new = functools.partial(_new_state, c, arch)
    state = jax.jit(new, out_shardings=shardings.replace(base=None))(params)
    # Not through the jitted function, which would hold the base twice.
    if c.lora.rank:
        state = state.replace(base=jax.device_put(params, shardings.base))
    return state


def _new_state(c: ConfigDict, arch: Architecture, params: Params) -> TrainState:
    """The state without a base."""
    student = _new_student(c, arch, params)
    copy = teacher.start(c.teacher.mode, student) if has_teacher(c) else None
    return TrainState(jnp.int32(0), student, make_optimizer(c).init(student), copy)


def _new_student(c: ConfigDict, arch: Architecture, params: Params) -> Params:
    if c.lora.rank:
        # A key of its own purpose, apart from those of sampling.
        key = jax.random.fold_in(jax.random.key(c.seed), zlib.crc32(b"lora"))
        return lora.init(arch, *_lora(c), key)
    # A copy: the caller's parameters must survive the first step, which donates.
    return jax.tree.map(jnp.copy, params)


def _lora(c: ConfigDict) -> tuple[int, float, tuple[str, ...]]:
    return c.lora.rank, c.lora.alpha, tuple(lora.TARGETS)


def _random(arch: Architecture) -> Params:
    return decoder.init(arch, jax.random.key(0))
