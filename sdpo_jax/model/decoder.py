"""The decoder: pure functions of its parameters, built from the modules in `layer`.

Parameters are a plain pytree:

  {"embed": {"table_VD"}, "layers": [one tree per layer kind of the period, every leaf
   stacked over the periods], "norm": {"scale_D"}, "head": {"kernel_DV"} unless tied}

With LoRA there is also {"adapters"}, see `lora`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from sdpo_jax import distributed
from sdpo_jax.distributed import constrain
from sdpo_jax.model import cache as kv_cache
from sdpo_jax.model import causal_attention
from sdpo_jax.model.families import Architecture, LayerKind
from sdpo_jax.model.layer import Attend, Layer, RMSNorm, weight

Params = Any
# How each kind of layer attends.
AttendBy = Callable[[LayerKind], Attend]

# Subtrees of the parameters with a leading axis of periods.
_STACKED = {"layers", "adapters"}


def boxed(arch: Architecture, key: jax.Array) -> Params:
    """Random float32 parameters, each in a flax box that holds its logical axes."""
    embed_key, head_key, norm_key, *layer_keys = jax.random.split(
        key, 3 + len(arch.period)
    )
    table = weight(None, "table")(embed_key, (arch.vocab, arch.width))
    stream_11D = jnp.zeros((1, 1, arch.width))
    params = {
        "embed": {"table_VD": table},
        "layers": [
            _stacked(Layer(arch, kind), layer_key, arch)
            for kind, layer_key in zip(arch.period, layer_keys, strict=True)
        ],
        "norm": RMSNorm(arch).init(norm_key, stream_11D)["params"],
    }
    if not arch.tied:
        kernel = weight("embed", "vocab")(head_key, (arch.width, arch.vocab))
        params["head"] = {"kernel_DV": kernel}
    return params


def _stacked(layer: Layer, key: jax.Array, arch: Architecture) -> Params:
    """One layer kind's parameters, stacked over the periods."""

    def init(one_key: jax.Array) -> Params:
        stream_11D = jnp.zeros((1, 1, arch.width))
        position_11 = jnp.zeros((1, 1), jnp.int32)
        # Flax makes parameters by running the module; values do not matter here.
        attend = lambda q, k, v: (q, ())
        return layer.init(one_key, stream_11D, position_11, attend)["params"]

    stacked = jax.vmap(init)(jax.random.split(key, arch.num_periods))
    # `vmap` added an axis of periods to every array but not to its box. Periods are
    # never sharded, so the name of that axis is None.
    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
    add_depth = lambda leaf: leaf.add_axis(0, {nn.PARTITION_NAME: None})
    return jax.tree.map(add_depth, stacked, is_leaf=is_box)


def init(arch: Architecture, key: jax.Array) -> Params:
    """Random float32 parameters."""
    return nn.meta.unbox(boxed(arch, key))


def logical_axes(arch: Architecture, vocab_slices: int = 1) -> Params:
    """For every parameter, the logical axis of each of its dimensions.

    Args:
      arch: the model.
      vocab_slices: that the vocabulary is sharded into. A head whose vocabulary does
        not divide is sharded along its width instead, as the embedding is.
    """
    # Abstract evaluation: only the boxes are of interest, and no weight is allocated.
    tree = jax.eval_shape(lambda: boxed(arch, jax.random.key(0)))
    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    axes = jax.tree.map(lambda box: tuple(box.names), tree, is_leaf=is_box)
    if "head" in axes and arch.vocab % vocab_slices:
        axes["head"]["kernel_DV"] = ("table", None)
    return axes


def shardings(arch: Architecture, mesh: Mesh) -> Params:
    """The sharding of every parameter.

    Raises:
      ValueError: if a parameter does not divide over the mesh.
    """

    def place(key: Any, leaf: jax.ShapeDtypeStruct, axes: tuple) -> NamedSharding:
        name = jax.tree_util.keystr(key, simple=True, separator="/")
        return distributed.even_sharding(mesh, name, leaf.shape, *axes)

    shapes = jax.eval_shape(lambda: init(arch, jax.random.key(0)))
    axes = logical_axes(arch, mesh.shape[distributed.RULES["vocab"]])
    return jax.tree_util.tree_map_with_path(place, shapes, axes)


def unstacked_axes(arch: Architecture) -> Params:
    """`logical_axes` on the mesh that is set, with the layers of one period only."""
    axes = logical_axes(arch, distributed.slices("vocab"))
    is_axes = lambda leaf: isinstance(leaf, tuple)
    # Without the axis of periods.
    within = lambda names: names[1:]
    return {**axes, "layers": jax.tree.map(within, axes["layers"], is_leaf=is_axes)}


def embed(params: Params, ids_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows of the embedding; padding gets row 0, and nothing attends to padding."""
    # The table is sharded along its width, over `fsdp` and `tensor`. Each device looks
    # up its slice of the width for the rows of all its `fsdp` neighbours, so ids are
    # replicated over `fsdp`; activations move then, never the table.
    ids_BT = constrain(jnp.maximum(ids_BT, 0), "batch_over_data", None)
    x_BTD = jnp.take(params["embed"]["table_VD"].astype(dtype), ids_BT, axis=0)
    x_BTD = constrain(x_BTD, "batch_over_data", None, "table")
    # First `fsdp` moves from widths to rows, then `tensor` is gathered: each constraint
    # changes one mesh axis.
    x_BTD = constrain(x_BTD, "batch", None, "width_over_tensor")
    return constrain(x_BTD, "batch", None, None)


def unembedding(arch: Architecture, params: Params) -> jax.Array:
    """The matrix [D, V] that maps hidden states to logits."""
    # Gathered over `fsdp` first: resharded from widths to vocabulary in one step, the
    # matrix would be rematerialised on every device.
    if arch.tied:
        table_VD = constrain(params["embed"]["table_VD"], None, "width_over_tensor")
        return table_VD.T
    kernel_DV = params["head"]["kernel_DV"]
    if shards_vocab(arch):
        return kernel_DV
    return constrain(kernel_DV, "width_over_tensor", None)


def shards_vocab(arch: Architecture) -> bool:
    """Whether `unembedding` is sharded along the vocabulary, not along the width."""
    return not arch.tied and arch.vocab % distributed.slices("vocab") == 0


def positions(exists_BT: jax.Array) -> jax.Array:
    """Position of each token in its text, whatever the padding; 0 on left padding."""
    return jnp.maximum(jnp.cumsum(exists_BT, axis=1, dtype=jnp.int32) - 1, 0)


def _branch_positions(exists_UT: jax.Array, prompt: int, branches: int) -> jax.Array:
    """`positions` in rows of a prompt and branches that each continue it."""
    rows, time = exists_UT.shape
    prompt_UP = positions(exists_UT[:, :prompt])
    exists_UGR = exists_UT[:, prompt:].reshape(rows, branches, -1)
    before_UGR = jnp.cumsum(exists_UGR, axis=2, dtype=jnp.int32) - 1
    length_U11 = jnp.sum(exists_UT[:, :prompt], axis=1, dtype=jnp.int32)[:, None, None]
    after_UGR = jnp.maximum(length_U11 + before_UGR, 0)
    return jnp.concatenate([prompt_UP, after_UGR.reshape(rows, -1)], axis=1)


def hidden(
    arch: Architecture,
    params: Params,
    ids_BT: jax.Array,
    *,
    dtype: jnp.dtype,
    remat: bool = False,
    implementation: str = "xla",
) -> jax.Array:
    """Last hidden states after the final norm, [B, T, D]; ids of -1 are padding.

    Args:
      arch: the model.
      params: its parameters.
      ids_BT: token ids.
      dtype: of the computation and of the result.
      remat: whether the backward pass recomputes layers.
      implementation: of attention, see `causal_attention`.
    """
    exists_BT = ids_BT >= 0
    attend_by = _attend_causally(exists_BT, implementation, keep=lambda k, v: ())
    through = functools.partial(_through_layers, arch, params, dtype, remat)
    return through(ids_BT, positions(exists_BT), attend_by)


def _attend_causally(exists_BT: jax.Array, implementation: str, keep) -> AttendBy:
    """Attention to earlier positions; what `keep` makes of keys and values is kept."""

    def attend(kind: LayerKind, q, k, v):
        mixed = causal_attention.attend(q, k, v, exists_BT, kind.window, implementation)
        return mixed, keep(k, v)

    return lambda kind: functools.partial(attend, kind)


def hidden_before(
    arch: Architecture,
    params: Params,
    prompt_UP: jax.Array,
    response_BR: jax.Array,
    *,
    dtype: jnp.dtype,
    remat: bool = False,
    implementation: str = "xla",
) -> jax.Array:
    """Normed last hidden states that predict each response token, [B, R, D].

    Each prompt is continued by B / U neighbouring responses and read once for them all.

    Args:
      arch: the model.
      params: its parameters.
      prompt_UP: token ids, padded left.
      response_BR: token ids, padded right.
      dtype: of the computation.
      remat: whether the backward pass recomputes layers.
      implementation: of attention, see `causal_attention`.
    """
    (prompts, prompt), (rows, length) = prompt_UP.shape, response_BR.shape
    branches = rows // prompts
    # One row per prompt: the prompt and then its responses, one after the other. They
    # share all matrix products; only attention keeps the responses apart.
    ids_UT = jnp.concatenate([prompt_UP, response_BR.reshape(prompts, -1)], axis=1)
    exists_UT = ids_UT >= 0
    position_UT = _branch_positions(exists_UT, prompt, branches)

    def attend(kind, q, k, v):
        mixed = causal_attention.attend_branches(
            q, k, v, exists_UT, prompt, branches, kind.window, implementation
        )
        return mixed, ()

    attend_by = lambda kind: functools.partial(attend, kind)
    through = functools.partial(_through_layers, arch, params, dtype, remat)
    hidden_UTD = through(ids_UT, position_UT, attend_by)
    # The state at a token predicts the next one: the first token of every response is
    # predicted at the prompt's last position, which is no padding, and the state at a
    # response's last position predicts nothing.
    last_UG1D = jnp.repeat(hidden_UTD[:, None, prompt - 1 : prompt], branches, axis=1)
    read_UGRD = hidden_UTD[:, prompt:].reshape(prompts, branches, length, -1)
    before_UGRD = jnp.concatenate([last_UG1D, read_UGRD[:, :, :-1]], axis=2)
    return before_UGRD.reshape(rows, length, -1)


def _through_layers(
    arch: Architecture,
    params: Params,
    dtype: jnp.dtype,
    remat: bool,
    ids_BT: jax.Array,
    position_BT: jax.Array,
    attend_by: AttendBy,
) -> jax.Array:
    """Normed last hidden states.

    Layers are scanned period by period, so compile time does not grow with depth.
    """

    def apply_layer(kind: LayerKind, layer: Params, x_BTD: jax.Array) -> jax.Array:
        return Layer(arch, kind).apply(layer, x_BTD, position_BT, attend_by(kind))[0]

    def period(x_BTD: jax.Array, layers: list[Params]) -> tuple[jax.Array, None]:
        for kind, layer in zip(arch.period, layers, strict=True):
            through = functools.partial(apply_layer, kind)
            if remat:
                # Each layer by itself, so that the backward pass holds the activations
                # of one layer and not of a period. The loop keeps the recomputation of
                # its only layer apart; with several in one body, XLA would merge them.
                several = len(arch.period) > 1
                through = jax.checkpoint(through, prevent_cse=several)
            x_BTD = through(layer, x_BTD)
        return x_BTD, None

    x_BTD, _ = jax.lax.scan(period, embed(params, ids_BT, dtype), _variables(params))
    return final_norm(arch, params, x_BTD)


def _variables(params: Params) -> list[Params]:
    """Variables of each layer: its weights, and its adapters if there are any."""
    layers = params["layers"]
    adapters = params.get("adapters", [{}] * len(layers))
    pairs = zip(layers, adapters, strict=True)
    return [{"params": layer, "adapters": adapter} for layer, adapter in pairs]


def final_norm(arch: Architecture, params: Params, x_BTD: jax.Array) -> jax.Array:
    """The normalisation before the unembedding."""
    return RMSNorm(arch).apply({"params": params["norm"]}, x_BTD)


def unstack(
    arch: Architecture,
    params: Params,
    dtype: jnp.dtype,
    place: Callable[[Params], Params] = lambda weights: weights,
) -> Params:
    """Parameters for sampling: in `dtype`, one tree per layer instead of a stack.

    Decoding loops over layers in Python, because a scan would copy the stacked cache at
    every token.

    Args:
      arch: the model.
      params: its parameters.
      dtype: of the result.
      place: applied to the parts one by one: embedding, norm, head, and the layers of
        each period; `unstacked_axes` are their axes.
    """
    stacks = {name: params[name] for name in _STACKED & params.keys()}
    weights = {}
    for name in sorted(params.keys() - stacks.keys()):
        weights |= place({name: jax.tree.map(lambda x: x.astype(dtype), params[name])})
    # In the order of depth: all kinds of the first period, then of the second.
    for index in range(arch.num_periods):
        take = lambda x, index=index: x[index].astype(dtype)
        for name, layers in place(jax.tree.map(take, stacks)).items():
            weights.setdefault(name, []).extend(layers)
    return weights


def prefill(
    arch: Architecture, params: Params, ids_UP: jax.Array, implementation: str = "xla"
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Read left-padded prompts with `unstack`ed parameters.

    Args:
      arch: the model.
      params: as `unstack` returns them.
      ids_UP: token ids.
      implementation: of attention, see `causal_attention`.

    Returns:
      Hidden states [U, D] at the last prompt token, and each layer's keys and values.
    """
    exists_UP = ids_UP >= 0
    position_UP = positions(exists_UP)
    attend_by = _attend_causally(exists_UP, implementation, keep=lambda k, v: (k, v))
    # `unstack` has cast all weights, so any of them has the dtype of the computation.
    x = embed(params, ids_UP, params["norm"]["scale_D"].dtype)
    keys_values = []
    for kind, layer in zip(arch.kinds, _variables(params), strict=True):
        x, kept = Layer(arch, kind).apply(layer, x, position_UP, attend_by(kind))
        keys_values.append(kept)
    # Prompts are padded left, so each ends at the last position.
    return final_norm(arch, params, x[:, -1]), keys_values


def decode(
    arch: Architecture,
    params: Params,
    ids_B: jax.Array,
    cache: kv_cache.Cache,
    token: jax.Array,
) -> tuple[jax.Array, kv_cache.Cache]:
    """Read response token number `token` of every row.

    Returns:
      Hidden states [B, D] at that token, and the cache with its keys and values.
    """
    x = embed(params, ids_B[:, None], params["norm"]["scale_D"].dtype)
    # Responses have no padding before their end: every row is at the same token, at a
    # position that depends on the length of its prompt.
    position_B1 = (cache.prompt_length_B + token)[:, None]
    layers = []
    for index, layer in enumerate(_variables(params)):
        block = Layer(arch, arch.kinds[index])

        # The default binds this layer's index now. A token attends to itself, so its
        # key is written first.
        def attend(q, k, v, index=index):
            layer = kv_cache.write(cache.layers[index], k, v, token)
            exists_UP, window = cache.prompt_exists_UP, cache.windows[index]
            return kv_cache.read(q, layer, exists_UP, token, window), layer

        x, kept = block.apply(layer, x, position_B1, attend)
        layers.append(kept)
    return final_norm(arch, params, x[:, 0]), cache.replace(layers=tuple(layers))
