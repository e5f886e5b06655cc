"""The update: one pure jitted function of state and batch, over a device mesh.

hidden states of the student on prompt + response, of the teacher on reprompt +
response -> a loss, chunk by chunk -> gradient -> AdamW -> the teacher follows
"""

import functools
import math
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
from sdpo_jax import distributed, methods, teacher
from sdpo_jax.batch import Attempts, Batch
from sdpo_jax.distributed import constrain
from sdpo_jax.methods import aggregation
from sdpo_jax.methods.tokens import Tokens
from sdpo_jax.model import causal_attention, decoder, vocabulary
from sdpo_jax.model.families import Architecture
from sdpo_jax.optimizer import learning_rate, make_optimizer
from sdpo_jax.train_state import (
    Params,
    TrainState,
    compute_dtype,
    decoder_params,
    state_shardings,
)


@flax.struct.dataclass
class Metrics:
    """What one optimiser step measures.

    Args:
      per_token: sums over tokens of weight times value; divided by `weight` they are
        means over the tokens that count.
      per_step: one value per step.
      weight: the sum of the tokens' weights; 0 when no row has a target.
      finite: whether loss and gradient are; if not, the weights stay as they were.
      gradient_finite: the same of each leaf of the gradient [leaves].
    """

    per_token: dict[str, jax.Array]
    per_step: dict[str, jax.Array]
    weight: jax.Array
    finite: jax.Array
    gradient_finite: jax.Array


def attention(c: ConfigDict, arch: Architecture) -> str:
    """How the model attends on the mesh that is set, see `causal_attention`."""
    tensor = distributed.slices("heads")
    return causal_attention.resolve(c.model.attention, arch, compute_dtype(c), tensor)


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
      at all. A non-finite loss or gradient leaves the weights as they were, and
      `metrics.finite` is false.

    Raises:
      ValueError: if the rows of a step do not divide over mesh and micro-batches.
    """
    check_rows(c, mesh)
    shardings = state_shardings(c, arch, mesh)
    everywhere = distributed.sharding(mesh)
    step = jax.jit(
        functools.partial(_train_step, c, arch, distributed.batch_shards(mesh)),
        # The old state's buffers become the new one's: two states would not fit.
        donate_argnums=0,
        # Unpinned, the second call would compile again: its state comes placed as XLA
        # left it. One sharding stands for every leaf of the batch, all cut by rows.
        in_shardings=(shardings, distributed.sharding(mesh, "batch"), everywhere),
        out_shardings=(shardings, everywhere),
    )
    return _on_mesh(step, mesh)


def make_scorer(
    c: ConfigDict, arch: Architecture, mesh: Mesh
) -> Callable[[Params, Attempts], jax.Array]:
    """(parameters, attempts) -> the trainer's log-probabilities [B, R], in nats."""
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
    """`jitted` with the mesh that its sharding constraints name.

    Without a mesh `distributed.constrain` constrains nothing.
    """

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
    reprompt_BQ: jax.Array | None
    response_BR: jax.Array
    mask_BR: jax.Array
    tokens: Tokens
    rows_per_prompt: int = flax.struct.field(pytree_node=False)


def _train_step(
    c: ConfigDict,
    arch: Architecture,
    shards: int,
    state: TrainState,
    batch: Batch,
    teacher_rate: jax.Array,
) -> tuple[TrainState, Metrics]:
    rows = _rows(c, batch)
    gradient, loss, per_token = _gradient(c, arch, shards, state, rows)
    # Of all leaves together, before AdamW's chain clips them.
    norm = optax.tree.norm(gradient)
    # Optax mixes Python floats and counters into its arithmetic.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = make_optimizer(c).update(
            gradient, state.opt_state, state.student
        )
        # For the log: the update has used the rate of this very step.
        rate = jnp.asarray(learning_rate(c)(state.step), jnp.float32)
    student = optax.apply_updates(state.student, updates)
    followed = state.teacher
    if followed is not None:
        followed = teacher.follow(c.teacher.mode, followed, student, teacher_rate)

    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    new = state.replace(
        step=state.step + 1, student=student, opt_state=opt_state, teacher=followed
    )
    # The old state was donated: what is kept of it must come back as a result.
    new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    leaves_finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradient)]
    metrics = Metrics(
        per_token=per_token,
        per_step={"loss": loss, "gradient_norm": norm, "learning_rate": rate},
        weight=jnp.sum(rows.tokens.weight_BC),
        finite=finite,
        gradient_finite=jnp.stack(leaves_finite),
    )
    return new, metrics


def _rows(c: ConfigDict, batch: Batch) -> _Rows:
    """Per-token arrays, with the weights that one global denominator gives."""
    attempts = batch.attempts
    # A row without a target has weight 0 from here on, so no loss needs to know of it;
    # and it is not in the denominators.
    mask_BR = attempts.response_mask_BR & batch.has_target_B[:, None]
    weight_BR = aggregation.token_weights(
        mask_BR, batch.loss_weight_B, c.step.aggregation
    )
    advantage_BR = batch.advantage_B
    if advantage_BR is not None:
        # A loss sees chunks of positions, so what is known per row is spread over them.
        advantage_BR = jnp.broadcast_to(advantage_BR[:, None], mask_BR.shape)
    tokens = Tokens(
        id_BC=attempts.response_BR,
        weight_BC=weight_BR,
        advantage_BC=advantage_BR,
        sampler_logp_BC=attempts.sampler_logp_BR,
        old_logp_BC=batch.old_logp_BR,
    )
    return _Rows(
        attempts.prompt_BP,
        batch.reprompt_BQ,
        attempts.response_BR,
        mask_BR,
        tokens,
        attempts.rows_per_prompt,
    )


def _gradient(
    c: ConfigDict, arch: Architecture, shards: int, state: TrainState, rows: _Rows
) -> tuple[Params, jax.Array, dict[str, jax.Array]]:
    """Gradient, loss and per-token sums of all rows, micro-batch by micro-batch."""
    # Weights rest in float32 and are read in the dtype of computation. The cast stands
    # outside the loop over micro-batches, and the gradient is taken behind it.
    dtype = compute_dtype(c)
    cast = lambda params: jax.tree.map(lambda x: x.astype(dtype), params)
    student, base = cast(state.student), cast(state.base)
    teachers = ()
    if methods.of(c).reads_teacher:
        read = teacher.teacher_weights(c.teacher.mode, state.student, state.teacher)
        teachers = tuple(
            _without_gradient(arch, decoder_params(base, cast(params)))
            for params in read
        )
    # One copy of the unembedding per batch shard: each sums its own gradient over
    # chunks and micro-batches, and the sum over copies is the one reduction.
    unembed = lambda student: vocabulary.unembedding(
        arch, decoder_params(base, student)
    )
    unembed_DV, to_student = jax.vjp(unembed, student)
    copies = _spread(unembed_DV, shards)
    of_rows = functools.partial(_loss, c, arch, shards, base)
    value_and_gradient = jax.value_and_grad(of_rows, argnums=(0, 1), has_aux=True)

    def one(rows: _Rows):
        results, gradients = value_and_gradient(student, copies, teachers, rows)
        # Micro-batches are summed in float32 at least: bfloat16 would lose small ones.
        wide = lambda g: g.astype(np.promote_types(g.dtype, np.float32))
        return results, jax.tree.map(wide, gradients)

    (loss, per_token), (gradient, of_copies) = _sum_over_micro_batches(
        one, rows, shards, c.step.micro_batch
    )
    # The head may be the embedding's transpose, or a base with adapters: what the loss
    # says of the unembedding goes back to whatever weights it is made of.
    of_unembed_DV = constrain(jnp.sum(of_copies, axis=0), None, "vocab")
    (of_unembedding,) = to_student(of_unembed_DV.astype(unembed_DV.dtype))
    add = lambda g, u: g + u.astype(g.dtype)
    return jax.tree.map(add, gradient, of_unembedding), loss, per_token


def _without_gradient(arch: Architecture, params: Params) -> tuple[Params, jax.Array]:
    """Weights that nothing differentiates, and their unembedding on every device."""
    unembed_DV = constrain(vocabulary.unembedding(arch, params), None, "vocab")
    return jax.lax.stop_gradient((params, unembed_DV))


def _spread(unembed_DV: jax.Array, shards: int) -> jax.Array:
    """[Z, D, V]: the unembedding, once per batch shard."""
    # Cut along the vocabulary only, so that a shard's logits need no weights of others.
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
    teachers: tuple[tuple[Params, jax.Array], ...],
    rows: _Rows,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The method's loss on some rows."""
    share = _rows_per_prompt(c, rows.rows_per_prompt, len(rows.mask_BR), shards)
    # Hidden states that predict each response token, not logits: those are made chunk
    # by chunk, [tokens, vocabulary] would be gigabytes.
    read = functools.partial(
        decoder.hidden_before,
        arch,
        response_BR=rows.response_BR,
        dtype=compute_dtype(c),
        remat=c.model.remat == "layer",
        implementation=attention(c, arch),
    )
    # Prompts are read once for all rows that share them; a reprompt is one row's own.
    prompt_UP = rows.prompt_BP[::share]
    context = prompt_UP if rows.reprompt_BQ is None else rows.reprompt_BQ
    readings = tuple(
        (jax.lax.stop_gradient(read(params, context)), unembed_DV)
        for params, unembed_DV in teachers
    )
    mesh = jax.sharding.get_abstract_mesh()
    return chunked.sum_over_chunks(
        vocabulary.loss_within(arch, functools.partial(methods.of(c).loss, c)),
        (read(decoder_params(base, student), prompt_UP), unembed_ZDV),
        readings,
        rows.mask_BR,
        rows.tokens,
        chunk=min(c.step.chunk, rows.response_BR.shape[1]),
        batch_axes=() if mesh.empty else distributed.RULES["batch"],
    )


def _rows_per_prompt(c: ConfigDict, in_batch: int, rows: int, shards: int) -> int:
    """How many neighbouring rows of a micro-batch hold one prompt.

    In the batch `in_batch` neighbours do; they part where micro-batches or devices do.
    """
    return math.gcd(in_batch, c.step.micro_batch or rows // shards)


def _sum_over_micro_batches(
    one: Callable[[Any], Any], rows: Any, shards: int, micro_batch: int
) -> Any:
    """`one` of all rows: at once, or summed over micro-batches of rows per device."""
    size = jax.tree.leaves(rows)[0].shape[0]
    if micro_batch in (0, size // shards):
        return one(rows)
    rows = _split(rows, shards, micro_batch)
    # A scan and not a Python loop: one copy of the program, whatever their number.
    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], rows))
    start = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    body = lambda total, rows: (jax.tree.map(jnp.add, total, one(rows)), None)
    return jax.lax.scan(body, start, rows)[0]


def _split(tree: Any, shards: int, micro_batch: int) -> Any:
    """Rows [B, ...] -> [micro-batches, rows, ...], every row on its own device."""

    def split(x: jax.Array) -> jax.Array:
        # Device by device, [shards, micro-batches, rows of a device]: cut along rows
        # alone, a micro-batch would hold one device's rows and the others would idle.
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
    params, unembed_DV = _without_gradient(
        arch, jax.tree.map(lambda x: x.astype(dtype), params)
    )

    def one(ids: tuple[jax.Array, jax.Array]) -> jax.Array:
        prompt_BP, response_BR = ids
        share = _rows_per_prompt(c, attempts.rows_per_prompt, len(prompt_BP), shards)
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
            within=functools.partial(vocabulary.within, arch),
        )

    # A map over micro-batches, as in the update: its memory is what fits.
    ids = (attempts.prompt_BP, attempts.response_BR)
    if not c.step.micro_batch:
        return one(ids)
    return _join(jax.lax.map(one, _split(ids, shards, c.step.micro_batch)), shards)
