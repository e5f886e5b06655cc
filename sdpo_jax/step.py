"""The update: one pure jitted function of state and batch, over a device mesh.

hidden states of the student on prompt + response, of the teacher on reprompt +
response -> a loss, chunk by chunk -> gradient -> AdamW -> the teacher follows
"""

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pallas_kernels.topk_tail_kl import chunked
from sdpo_jax import distributed, teacher
from sdpo_jax.batch import Attempts, Batch
from sdpo_jax.distributed import constrain
from sdpo_jax.methods import LOSSES, READS_TEACHER, weights
from sdpo_jax.methods.tokens import Tokens
from sdpo_jax.model import causal_attention, decoder, lora
from sdpo_jax.model.families import Architecture

Params = Any
Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """All that training changes.

    Args:
      step: optimiser steps taken.
      student: float32 parameters; with LoRA, the adapters.
      opt_state: of the optimiser.
      teacher: as the student; None when the method reads no copy of its own.
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
        return whole(self.base, self.student)


def whole(base: Params | None, trained: Params) -> Params:
    """What `decoder` reads: all weights, or frozen ones and the adapters beside them.

    With adapters a teacher's average is taken of their two factors, each for itself;
    the average of their product would be of no low rank.
    """
    return trained if base is None else {**base, "adapters": trained}


def compute_dtype(c: ConfigDict) -> jnp.dtype:
    """Of activations and matrix products: bfloat16 on accelerators, float32 on CPU."""
    if c.model.dtype != "auto":
        return jnp.dtype(c.model.dtype)
    on_cpu = jax.default_backend() == "cpu"
    return jnp.dtype(jnp.float32 if on_cpu else jnp.bfloat16)


def attention(c: ConfigDict, arch: Architecture) -> str:
    """How the model attends on the mesh that is set, see `causal_attention`."""
    tensor = distributed.slices("heads")
    return causal_attention.resolve(c.model.attention, arch, compute_dtype(c), tensor)


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


def has_teacher(c: ConfigDict) -> bool:
    """Whether the state holds weights of a teacher's own."""
    return c.method in READS_TEACHER and c.teacher.mode != "live"


def state_shardings(c: ConfigDict, arch: Architecture, mesh: Mesh) -> TrainState:
    """Where every leaf of the state lives."""
    is_axes = lambda leaf: isinstance(leaf, tuple)
    place = lambda axes: distributed.sharding(mesh, *axes)
    placed = lambda tree: jax.tree.map(place, tree, is_leaf=is_axes)
    student, base = placed(decoder.logical_axes(arch)), None
    if c.lora.rank:
        base, student = student, placed(lora.logical_axes(arch, *_lora(c)))
    optimizer = make_optimizer(c)
    everywhere = distributed.sharding(mesh)
    opt_state = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, place: place,
        jax.eval_shape(lambda: optimizer.init(_new_student(c, arch, _random(arch)))),
        student,
        transform_non_params=lambda _: everywhere,
    )
    own = student if has_teacher(c) else None
    return TrainState(everywhere, student, opt_state, own, base)


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
    if c.lora.rank:
        state = state.replace(base=jax.device_put(params, shardings.base))
    return state


def _new_state(c: ConfigDict, arch: Architecture, params: Params) -> TrainState:
    """The state without a base."""
    student = _new_student(c, arch, params)
    own = teacher.start(c.teacher.mode, student) if has_teacher(c) else None
    return TrainState(jnp.int32(0), student, make_optimizer(c).init(student), own)


def _new_student(c: ConfigDict, arch: Architecture, params: Params) -> Params:
    if c.lora.rank:
        key = jax.random.fold_in(jax.random.key(c.seed), zlib.crc32(b"lora"))
        return lora.init(arch, *_lora(c), key)
    return jax.tree.map(jnp.copy, params)


def _lora(c: ConfigDict) -> tuple[int, float, tuple[str, ...]]:
    return c.lora.rank, c.lora.alpha, tuple(lora.TARGETS)


def _random(arch: Architecture) -> Params:
    return decoder.init(arch, jax.random.key(0))


def make_train_step(
    c: ConfigDict, arch: Architecture, mesh: Mesh
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Metrics]]:
    """One optimiser step, compiled once for each shape of batch.

    Args:
      c: the run's config.
      arch: the model.
      mesh: devices; rows are cut over `data` and `fsdp`, weights over `fsdp` and
        `tensor`.

    Returns:
      (state, batch, teacher_rate) -> (state, metrics). The state is donated.
      `teacher_rate` is how far the teacher's average moves after this step, 0 for not
      at all. A non-finite loss or gradient leaves the weights as they were and is told
      by `metrics["finite"]`.

    Raises:
      ValueError: if the rows of a step do not divide over mesh and micro-batches.
    """
    check_rows(c, mesh)
    shardings = state_shardings(c, arch, mesh)
    everywhere = distributed.sharding(mesh)
    step = jax.jit(
        functools.partial(_train_step, c, arch, distributed.batch_shards(mesh)),
        donate_argnums=0,
        # Unpinned, the second call would compile again.
        in_shardings=(shardings, distributed.sharding(mesh, "batch"), everywhere),
        out_shardings=(shardings, everywhere),
    )
    return _on_mesh(step, mesh)


def make_scorer(
    c: ConfigDict, arch: Architecture, mesh: Mesh
) -> Callable[[Params, Attempts], jax.Array]:
    """(parameters, attempts) -> the trainer's log-probabilities [B, R], in nats.

    As everywhere, `config.rollout.attempts` neighbouring rows share a prompt.
    """
    score = functools.partial(_score, c, arch, distributed.batch_shards(mesh))
    rows = distributed.sharding(mesh, "batch")
    return _on_mesh(jax.jit(score, out_shardings=rows), mesh)


def check_rows(c: ConfigDict, mesh: Mesh) -> None:
    """Refuse a step whose rows do not divide over the mesh and micro-batches."""
    rows, shards = c.step.questions * c.rollout.attempts, distributed.batch_shards(mesh)
    unit = shards * (c.step.micro_batch or 1)
    if rows % unit:
        raise ValueError(
            f"step.questions={c.step.questions} x rollout.attempts={c.rollout.attempts}"
            f" = {rows} rows do not divide by mesh.data x mesh.fsdp = {shards} times "
            f"step.micro_batch={c.step.micro_batch or 1}; change one of them"
        )


def _on_mesh(jitted: Callable, mesh: Mesh) -> Callable:
    """`jitted` with the mesh that its sharding constraints name."""

    @functools.wraps(jitted)
    def call(*args):
        with jax.set_mesh(mesh):
            return jitted(*args)

    def lower(*args):
        with jax.set_mesh(mesh):
            return jitted.lower(*args)

    call.lower = lower
    call.cache_size = jitted._cache_size
    return call


@flax.struct.dataclass
class _Rows:
    """What the loss reads of each row, besides weights of the model."""

    prompt_BP: jax.Array
    reprompt_BQ: jax.Array
    response_BR: jax.Array
    mask_BR: jax.Array
    tokens: Tokens


def _train_step(
    c: ConfigDict,
    arch: Architecture,
    shards: int,
    state: TrainState,
    batch: Batch,
    teacher_rate: jax.Array,
) -> tuple[TrainState, Metrics]:
    rows = _rows(c, batch)
    gradient, metrics = _gradient(c, arch, shards, state, rows)
    norm = optax.tree.norm(gradient)
    # Optax mixes Python floats and counters into its arithmetic.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = make_optimizer(c).update(
            gradient, state.opt_state, state.student
        )
        rate = jnp.asarray(learning_rate(c)(state.step), jnp.float32)
    student = optax.apply_updates(state.student, updates)
    own = state.teacher
    if own is not None:
        own = teacher.follow(c.teacher.mode, own, student, teacher_rate)

    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
    new = state.replace(
        step=state.step + 1, student=student, opt_state=opt_state, teacher=own
    )
    new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    leaves_finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient)]
    metrics |= {
        "weight": jnp.sum(rows.tokens.weight_BC),
        "gradient_norm": norm,
        "learning_rate": rate,
        "finite": finite,
        "gradient_finite": jnp.stack(leaves_finite),
    }
    return new, metrics


def _rows(c: ConfigDict, batch: Batch) -> _Rows:
    """Per-token arrays, with the weights that one global denominator gives."""
    attempts = batch.attempts
    mask_BR = attempts.response_mask_BR & batch.has_target_B[:, None]
    weight_BR = weights.token_weights(mask_BR, batch.loss_weight_B, c.step.aggregation)
    advantage_BR = jnp.broadcast_to(batch.advantage_B[:, None], mask_BR.shape)
    tokens = Tokens(
        id_BC=attempts.response_BR,
        weight_BC=weight_BR,
        advantage_BC=advantage_BR,
        sampler_logp_BC=attempts.sampler_logp_BR,
        old_logp_BC=batch.old_logp_BR,
    )
    return _Rows(
        attempts.prompt_BP, batch.reprompt_BQ, attempts.response_BR, mask_BR, tokens
    )


def _gradient(
    c: ConfigDict, arch: Architecture, shards: int, state: TrainState, rows: _Rows
) -> tuple[Params, Metrics]:
    """Gradient and metrics of the whole batch, micro-batch by micro-batch."""
    dtype = compute_dtype(c)
    cast = lambda params: jax.tree.map(lambda x: x.astype(dtype), params)
    student, base = cast(state.student), cast(state.base)
    readers = ()
    if c.method in READS_TEACHER:
        readers = teacher.readers(c.teacher.mode, state.student, state.teacher)
        readers = tuple(_reader(arch, whole(base, cast(own))) for own in readers)
    # One copy of the unembedding per batch shard: each sums its own gradient over
    # chunks and micro-batches, and the sum over copies is the one reduction.
    unembed = lambda student: decoder.unembedding(arch, whole(base, student))
    unembed_DV, to_student = jax.vjp(unembed, student)
    copies = _spread(unembed_DV, shards)
    of_rows = functools.partial(_loss, c, arch, shards, base)
    value_and_gradient = jax.value_and_grad(of_rows, argnums=(0, 1), has_aux=True)

    def one(rows: _Rows):
        (loss, sums), gradients = value_and_gradient(student, copies, readers, rows)
        wide = lambda g: g.astype(np.promote_types(g.dtype, np.float32))
        return {"loss": loss, **sums}, jax.tree.map(wide, gradients)

    metrics, (gradient, of_copies) = _sum_over_micro_batches(
        one, rows, shards, c.step.micro_batch
    )
    of_unembed_DV = constrain(jnp.sum(of_copies, axis=0), None, "vocab")
    (of_unembedding,) = to_student(of_unembed_DV.astype(unembed_DV.dtype))
    add = lambda g, u: g + u.astype(g.dtype)
    return jax.tree.map(add, gradient, of_unembedding), metrics


def _reader(arch: Architecture, params: Params) -> tuple[Params, jax.Array]:
    """A teacher's weights, and its unembedding on every device."""
    unembed_DV = constrain(decoder.unembedding(arch, params), None, "vocab")
    return jax.lax.stop_gradient((params, unembed_DV))


def _spread(unembed_DV: jax.Array, shards: int) -> jax.Array:
    """[Z, D, V]: the unembedding, once per batch shard."""
    unembed_DV = constrain(unembed_DV, None, "vocab")
    copies = jnp.broadcast_to(unembed_DV[None], (shards, *unembed_DV.shape))
    return constrain(copies, "batch", None, "vocab")


def _loss(
    c: ConfigDict,
    arch: Architecture,
    shards: int,
    base: Params | None,
    student: Params,
    unembed_ZDV: jax.Array,
    readers: tuple[tuple[Params, jax.Array], ...],
    rows: _Rows,
) -> tuple[jax.Array, Metrics]:
    """The method's loss on some rows."""
    share = _attempts_per_prompt(c, rows.mask_BR.shape[0], shards)
    read = functools.partial(
        decoder.hidden_before,
        arch,
        response_BR=rows.response_BR,
        dtype=compute_dtype(c),
        remat=c.model.remat == "layer",
        implementation=attention(c, arch),
    )
    teachers = tuple(
        (jax.lax.stop_gradient(read(params, rows.reprompt_BQ)), unembed_DV)
        for params, unembed_DV in readers
    )
    mesh = jax.sharding.get_abstract_mesh()
    return chunked.sum_over_chunks(
        functools.partial(LOSSES[c.method], c),
        (read(whole(base, student), rows.prompt_BP[::share]), unembed_ZDV),
        teachers,
        rows.mask_BR,
        rows.tokens,
        chunk=min(c.step.chunk, rows.response_BR.shape[1]),
        batch_axes=() if mesh.empty else distributed.RULES["batch"],
    )


def _attempts_per_prompt(c: ConfigDict, rows: int, shards: int) -> int:
    """How many neighbouring rows of a micro-batch continue one prompt.

    A question's attempts are neighbours; they part where micro-batches or devices do.
    """
    return math.gcd(c.rollout.attempts, c.step.micro_batch or rows // shards)


def _sum_over_micro_batches(
    one: Callable[[Any], Any], rows: Any, shards: int, micro_batch: int
) -> Any:
    """`one` of all rows: at once, or summed over micro-batches of rows per device."""
    size = jax.tree.leaves(rows)[0].shape[0]
    if micro_batch in (0, size // shards):
        return one(rows)
    rows = _split(rows, shards, micro_batch)
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], rows))
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    body = lambda total, rows: (jax.tree.map(jnp.add, total, one(rows)), None)
    return jax.lax.scan(body, start, rows)[0]


def _split(tree: Any, shards: int, micro_batch: int) -> Any:
    """Rows [B, ...] -> [micro-batches, rows, ...], every row on its own device."""

    def split(x: jax.Array) -> jax.Array:
        x = x.reshape(shards, -1, micro_batch, *x.shape[1:])
        x = jnp.swapaxes(x, 0, 1).reshape(-1, shards * micro_batch, *x.shape[3:])
        return constrain(x, None, "batch", *(None,) * (x.ndim - 2))

    return jax.tree.map(split, tree)


def _join(x: jax.Array, shards: int) -> jax.Array:
    """Inverse of `_split`."""
    x = x.reshape(x.shape[0], shards, -1, *x.shape[2:])
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[3:])


def _score(
    c: ConfigDict, arch: Architecture, shards: int, params: Params, attempts: Attempts
) -> jax.Array:
    dtype = compute_dtype(c)
    params, unembed_DV = _reader(arch, jax.tree.map(lambda x: x.astype(dtype), params))

    def one(ids: tuple[jax.Array, jax.Array]) -> jax.Array:
        prompt_BP, response_BR = ids
        share = _attempts_per_prompt(c, response_BR.shape[0], shards)
        hidden_BRD = decoder.hidden_before(
            arch,
            params,
            prompt_BP[::share],
            response_BR,
            dtype=dtype,
            implementation=attention(c, arch),
        )
        return chunked.token_log_probs(
            hidden_BRD,
            unembed_DV,
            response_BR,
            temperature=c.rollout.temperature,
            chunk=min(c.step.chunk, response_BR.shape[1]),
        )

    ids = (attempts.prompt_BP, attempts.response_BR)
    if not c.step.micro_batch:
        return one(ids)
    return _join(jax.lax.map(one, _split(ids, shards, c.step.micro_batch)), shards)
