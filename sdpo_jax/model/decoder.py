"""The decoder: flax modules for one layer, pure functions for the whole.

Parameters are a plain pytree:

  {"embed": {"table_VD"}, "layers": [one tree per layer kind of the period, every leaf
   stacked over the periods], "norm": {"scale_D"}, "head": {"kernel_DV"} unless tied}
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdpo_jax.distributed import constrain
from sdpo_jax.model import attention
from sdpo_jax.model import cache as kv_cache
from sdpo_jax.model.families import Architecture, LayerKind

Params = Any
# What a layer attends to: (q_BTHE, k_BTNE, v_BTNE) -> (mixed values, what to keep).
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]


_normal = nn.initializers.normal(stddev=0.02)


def _weight(*axes: str | None, init=_normal):
    return nn.with_logical_partitioning(init, axes)


def _matmul(x_BTD: jax.Array, kernel_DF: jax.Array) -> jax.Array:
    """x_BTD @ kernel_DF in the dtype of x.

    Tokens stand on one axis, for the gradient of the kernel: contracted over two, it
    would be transposed first on a CPU.
    """
    rows, time, width = x_BTD.shape
    out = x_BTD.reshape(rows * time, width) @ kernel_DF.astype(x_BTD.dtype)
    return out.reshape(rows, time, -1)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation; the cast comes before the scale (Qwen)."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise the last axis."""
        ones = _weight(None, init=nn.initializers.ones)
        scale = self.param("scale_D", ones, (x.shape[-1],))
        wide = x.astype(np.promote_types(x.dtype, np.float32))
        power = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = (wide * jax.lax.rsqrt(power + self.eps)).astype(x.dtype)
        return normed * jnp.broadcast_to(scale.astype(x.dtype), x.shape)


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    arch: Architecture
    kind: LayerKind

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, position_BT: jax.Array, attend: Attend
    ) -> tuple[jax.Array, Any]:
        """The layer's attention branch, and what `attend` keeps."""
        a = self.arch
        q = self._project("query_DHE", a.heads, x_BTD)
        k = self._project("key_DNE", a.kv_heads, x_BTD)
        v = self._project("value_DNE", a.kv_heads, x_BTD)
        q = RMSNorm(a.norm_eps, name="query_norm")(q)
        k = RMSNorm(a.norm_eps, name="key_norm")(k)
        q = attention.rope(q, position_BT, self.kind.rope_theta)
        k = attention.rope(k, position_BT, self.kind.rope_theta)
        mixed_BTHE, kept = attend(q, k, v)
        out_axes = _weight("heads", None, "embed")
        out_HED = self.param("out_HED", out_axes, (a.heads, a.head_width, a.width))
        mixed_BTX = mixed_BTHE.reshape(*x_BTD.shape[:2], -1)
        return _matmul(mixed_BTX, out_HED.reshape(-1, a.width)), kept

    def _project(self, name: str, heads: int, x_BTD: jax.Array) -> jax.Array:
        shape = (self.arch.width, heads, self.arch.head_width)
        kernel_DHE = self.param(name, _weight("embed", "heads", None), shape)
        x_BTX = _matmul(x_BTD, kernel_DHE.reshape(self.arch.width, -1))
        x_BTHE = x_BTX.reshape(*x_BTD.shape[:2], heads, -1)
        return constrain(x_BTHE, "batch", None, "heads", None)


class MLP(nn.Module):
    """Gated SiLU."""

    arch: Architecture

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """The layer's MLP branch."""
        up_shape = (self.arch.width, self.arch.mlp_width)
        gate = self.param("gate_DF", _weight("embed", "mlp"), up_shape)
        up = self.param("up_DF", _weight("embed", "mlp"), up_shape)
        down = self.param("down_FD", _weight("mlp", "embed"), up_shape[::-1])
        inner_BTF = nn.silu(_matmul(x_BTD, gate)) * _matmul(x_BTD, up)
        return _matmul(constrain(inner_BTF, "batch", None, "mlp"), down)


class Layer(nn.Module):
    """One pre-norm transformer layer."""

    arch: Architecture
    kind: LayerKind

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, position_BT: jax.Array, attend: Attend
    ) -> tuple[jax.Array, Any]:
        """The residual stream after the layer, and what `attend` keeps."""
        normed = RMSNorm(self.arch.norm_eps, name="attention_norm")(x_BTD)
        branch, kept = Attention(self.arch, self.kind, name="attention")(
            normed, position_BT, attend
        )
        x_BTD = constrain(x_BTD + branch, "batch", None, None)
        normed = RMSNorm(self.arch.norm_eps, name="mlp_norm")(x_BTD)
        x_BTD = x_BTD + MLP(self.arch, name="mlp")(normed)
        return constrain(x_BTD, "batch", None, None), kept


def boxed(arch: Architecture, key: jax.Array) -> Params:
    """Random float32 parameters, each boxed with its logical axes."""
    embed_key, head_key, norm_key, *layer_keys = jax.random.split(
        key, 3 + len(arch.period)
    )
    table = _weight(None, "table")(embed_key, (arch.vocab, arch.width))
    stream_11D = jnp.zeros((1, 1, arch.width))
    params = {
        "embed": {"table_VD": table},
        "layers": [
            _stacked(Layer(arch, kind), layer_key, arch)
            for kind, layer_key in zip(arch.period, layer_keys, strict=True)
        ],
        "norm": RMSNorm(arch.norm_eps).init(norm_key, stream_11D)["params"],
    }
    if not arch.tied:
        kernel = _weight("embed", "vocab")(head_key, (arch.width, arch.vocab))
        params["head"] = {"kernel_DV": kernel}
    return params


def _stacked(layer: Layer, key: jax.Array, arch: Architecture) -> Params:
    """One layer kind's parameters, stacked over the periods."""

    def init(one_key: jax.Array) -> Params:
        stream_11D = jnp.zeros((1, 1, arch.width))
        position_11 = jnp.zeros((1, 1), jnp.int32)
        attend = lambda q, k, v: (q, ())
        return layer.init(one_key, stream_11D, position_11, attend)["params"]

    stacked = jax.vmap(init)(jax.random.split(key, arch.num_periods))
    is_box = lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
    add_depth = lambda leaf: leaf.add_axis(0, {nn.PARTITION_NAME: None})
    return jax.tree.map(add_depth, stacked, is_leaf=is_box)


def init(arch: Architecture, key: jax.Array) -> Params:
    """Random float32 parameters."""
    return nn.meta.unbox(boxed(arch, key))


def logical_axes(arch: Architecture) -> Params:
    """For every parameter, the logical axis of each of its dimensions."""
    tree = jax.eval_shape(lambda: boxed(arch, jax.random.key(0)))
    is_box = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    return jax.tree.map(lambda box: tuple(box.names), tree, is_leaf=is_box)


def unstacked_axes(arch: Architecture) -> Params:
    """`logical_axes` of what `unstack` returns."""
    axes = logical_axes(arch)
    is_axes = lambda leaf: isinstance(leaf, tuple)
    layers = [
        jax.tree.map(lambda names: names[1:], axes["layers"][index], is_leaf=is_axes)
        for _ in range(arch.num_periods)
        for index in range(len(arch.period))
    ]
    return {**axes, "layers": layers}


def embed(params: Params, ids_BT: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows of the embedding; padding reads row 0, and nothing reads padding."""
    # Each device looks its slice of the width up, for the rows of all its `fsdp`
    # neighbours; the activations then move to where their rows live.
    ids_BT = constrain(jnp.maximum(ids_BT, 0), "batch_over_data", None)
    x_BTD = jnp.take(params["embed"]["table_VD"].astype(dtype), ids_BT, axis=0)
    x_BTD = constrain(x_BTD, "batch_over_data", None, "table")
    x_BTD = constrain(x_BTD, "batch", None, "width_over_tensor")
    return constrain(x_BTD, "batch", None, None)


def unembedding(arch: Architecture, params: Params) -> jax.Array:
    """The matrix [D, V] that turns hidden states into logits."""
    if arch.tied:
        # Gathered over `fsdp` first: cut differently in one go, it would be
        # rematerialised on every device.
        table_VD = constrain(params["embed"]["table_VD"], None, "width_over_tensor")
        return table_VD.T
    return params["head"]["kernel_DV"]


def positions(exists_BT: jax.Array) -> jax.Array:
    """How many existing tokens stand before each one."""
    return jnp.maximum(jnp.cumsum(exists_BT, axis=1, dtype=jnp.int32) - 1, 0)


def _branch_positions(exists_UT: jax.Array, prompt: int, branches: int) -> jax.Array:
    """`positions` where every branch goes on from the end of the prompt."""
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
) -> jax.Array:
    """Normed last hidden states, [B, T, D] in `dtype`; ids of -1 are padding."""
    exists_BT = ids_BT >= 0
    mask_BTS = attention.causal_mask(exists_BT)
    attend = lambda q, k, v: (attention.attend(q, k, v, mask_BTS), ())
    through = functools.partial(_through_layers, arch, params, dtype, remat)
    return through(ids_BT, positions(exists_BT), attend)


def hidden_before(
    arch: Architecture,
    params: Params,
    prompt_UP: jax.Array,
    response_BR: jax.Array,
    *,
    dtype: jnp.dtype,
    remat: bool = False,
) -> jax.Array:
    """Normed last hidden states that predict each response token, [B, R, D].

    The B / U responses that follow each other continue one prompt, which is read once
    for all of them.

    Args:
      arch: the model.
      params: its parameters.
      prompt_UP: token ids, padded left.
      response_BR: token ids, padded right.
      dtype: of the computation.
      remat: whether the backward pass computes layers again.
    """
    (prompts, prompt), (rows, length) = prompt_UP.shape, response_BR.shape
    branches = rows // prompts
    ids_UT = jnp.concatenate([prompt_UP, response_BR.reshape(prompts, -1)], axis=1)
    exists_UT = ids_UT >= 0
    position_UT = _branch_positions(exists_UT, prompt, branches)

    def attend(q, k, v):
        return attention.attend_branches(q, k, v, exists_UT, prompt, branches), ()

    through = functools.partial(_through_layers, arch, params, dtype, remat)
    hidden_UTD = through(ids_UT, position_UT, attend)
    last_UG1D = jnp.repeat(hidden_UTD[:, None, prompt - 1 : prompt], branches, axis=1)
    read_UGRD = hidden_UTD[:, prompt:].reshape(prompts, branches, length, -1)
    before_UGRD = jnp.concatenate([last_UG1D, read_UGRD[:, :, :-1]], axis=2)
    return before_UGRD.reshape(rows, length, -1)


def _through_layers(
    arch: Architecture, params: Params, dtype, remat: bool, ids_BT, position_BT, attend
) -> jax.Array:
    """Normed last hidden states.

    Layers are scanned period by period, so compile time does not grow with depth.
    """

    def period(x_BTD: jax.Array, layers: list[Params]) -> tuple[jax.Array, None]:
        for kind, layer in zip(arch.period, layers, strict=True):
            block = Layer(arch, kind)
            x_BTD, _ = block.apply({"params": layer}, x_BTD, position_BT, attend)
        return x_BTD, None

    if remat:
        period = jax.checkpoint(period, prevent_cse=False)
    x_BTD, _ = jax.lax.scan(period, embed(params, ids_BT, dtype), params["layers"])
    return final_norm(arch, params, x_BTD)


def final_norm(arch: Architecture, params: Params, x_BTD: jax.Array) -> jax.Array:
    """The normalisation before the unembedding."""
    return RMSNorm(arch.norm_eps).apply({"params": params["norm"]}, x_BTD)


def unstack(arch: Architecture, params: Params, dtype: jnp.dtype) -> Params:
    """Parameters for sampling: in `dtype`, one tree per layer instead of a stack."""
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    layers = [
        jax.tree.map(lambda x, index=index: x[index], stack)
        for index in range(arch.num_periods)
        for stack in params["layers"]
    ]
    return {**params, "layers": layers}


def prefill(
    arch: Architecture, params: Params, ids_UP: jax.Array
) -> tuple[jax.Array, list[tuple[jax.Array, jax.Array]]]:
    """Read left-padded prompts with `unstack`ed parameters.

    Returns:
      Hidden states [U, D] at the last prompt token, and each layer's keys and values.
    """
    exists_UP = ids_UP >= 0
    position_UP = positions(exists_UP)
    mask_UPP = attention.causal_mask(exists_UP)
    attend = lambda q, k, v: (attention.attend(q, k, v, mask_UPP), (k, v))
    x = embed(params, ids_UP, params["norm"]["scale_D"].dtype)
    keys_values = []
    for index, layer in enumerate(params["layers"]):
        block = Layer(arch, arch.period[index % len(arch.period)])
        x, kept = block.apply({"params": layer}, x, position_UP, attend)
        keys_values.append(kept)
    return final_norm(arch, params, x[:, -1]), keys_values


def decode(
    arch: Architecture,
    params: Params,
    ids_B: jax.Array,
    cache: kv_cache.Cache,
    slot: jax.Array,
) -> tuple[jax.Array, kv_cache.Cache]:
    """Read response token number `slot` of every row.

    Returns:
      Hidden states [B, D] after it, and the cache that holds it.
    """
    x = embed(params, ids_B[:, None], params["norm"]["scale_D"].dtype)
    position_B1 = (cache.prompt_length_B + slot)[:, None]
    layers = []
    for index, layer in enumerate(params["layers"]):

        def attend(q, k, v, index=index):
            layer_cache = kv_cache.write(cache.layers[index], k, v, slot)
            mixed = kv_cache.read(q, layer_cache, cache.prompt_exists_UP, slot)
            return mixed, layer_cache

        block = Layer(arch, arch.period[index % len(arch.period)])
        x, kept = block.apply({"params": layer}, x, position_B1, attend)
        layers.append(kept)
    return final_norm(arch, params, x[:, 0]), cache.replace(layers=tuple(layers))
