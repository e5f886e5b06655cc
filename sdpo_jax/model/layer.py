"""One transformer layer as flax modules: norms, attention and MLP.

A parameter declares its logical axes where it is made. With LoRA, the collection
"adapters" holds what `lora` makes for a layer.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sdpo_jax.distributed import constrain
from sdpo_jax.model import attention
from sdpo_jax.model.families import Architecture, LayerKind

# How a layer attends: (q_BTHE, k_BTNE, v_BTNE) -> (mixed values, what to keep).
Attend = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]]
# The `initializer_range` that transformers defaults to for these families.
_normal = nn.initializers.normal(stddev=0.02)


def weight(*axes: str | None, init=_normal):
    """An initialiser that returns a parameter in a box with its logical axes."""
    return nn.with_logical_partitioning(init, axes)


def _matmul(x_BTD: jax.Array, kernel: jax.Array, adapter: Any = None) -> jax.Array:
    """[B, T, F]: x W in the dtype of x, plus the change that an adapter makes.

    Args:
      x_BTD: inputs.
      kernel: its first axes multiply to D, the others to F.
      adapter: of this kernel, or None.
    """
    # Tokens are flattened to one axis for the gradient of the kernel, a contraction
    # over tokens: over two axes, a CPU would transpose the inputs first.
    rows, time, width = x_BTD.shape
    x_XD = x_BTD.reshape(rows * time, width)
    # The cast changes nothing where the caller's weights are in the dtype of x already.
    flat = lambda w, first: w.astype(x_XD.dtype).reshape(first, -1)
    out_XF = x_XD @ flat(kernel, width)
    if adapter is not None:
        # (x A) B through the small rank; A B would be as large as the kernel.
        low_XR = x_XD @ flat(adapter.a, width)
        out_XF += (low_XR @ flat(adapter.b, low_XR.shape[1])) * adapter.scale
    return out_XF.reshape(rows, time, -1)


def _adapter(module: nn.Module, name: str) -> Any:
    """The adapter of one of a module's kernels, if it has one."""
    return module.get_variable("adapters", name)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of the last axis, or of the last two together.

    Args:
      arch: decides whether the result is cast to the dtype of x before it is multiplied
        by the scale (Qwen, Llama) or after (Olmo).
      axes: letters of the normalised axes, which name the scale: "D", "HE" or "NE".
    """

    arch: Architecture
    axes: str = "D"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The normalised array, in its dtype."""
        count = len(self.axes)
        # A scale over heads is sharded as they are, any other is replicated.
        logical_axes = (None,) if count == 1 else ("heads", None)
        ones = weight(*logical_axes, init=nn.initializers.ones)
        scale = self.param(f"scale_{self.axes}", ones, x.shape[-count:])
        # Squares are summed in float32 at least, as in transformers.
        wide = x.astype(np.promote_types(x.dtype, np.float32))
        axis = tuple(range(-count, 0))
        power = jnp.mean(jnp.square(wide), axis=axis, keepdims=True)
        normed = wide * jax.lax.rsqrt(power + self.arch.norm_eps)
        if not self.arch.scale_before_cast:
            normed = normed.astype(x.dtype)
        # Explicit, because the tests refuse implicit promotion of ranks.
        scale = jnp.broadcast_to(scale.astype(normed.dtype), x.shape)
        return (normed * scale).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention."""

    arch: Architecture
    kind: LayerKind

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, position_BT: jax.Array, attend: Attend
    ) -> tuple[jax.Array, Any]:
        """The layer's attention branch, and what `attend` keeps."""
        a = self.arch
        q = self._project("query", "HE", a.heads, x_BTD)
        k = self._project("key", "NE", a.kv_heads, x_BTD)
        v = self._project("value", "NE", a.kv_heads, x_BTD)
        if a.qk_norm != "none":
            # Olmo normalises all heads of a token together, Qwen3 each head by itself.
            over_heads = a.qk_norm == "width"
            q = RMSNorm(a, "HE" if over_heads else "D", name="query_norm")(q)
            k = RMSNorm(a, "NE" if over_heads else "D", name="key_norm")(k)
        # After the norm, as both families do.
        q = attention.rope(q, position_BT, self.kind)
        k = attention.rope(k, position_BT, self.kind)
        mixed_BTHE, kept = attend(q, k, v)
        out_axes = weight("heads", None, "embed")
        out_HED = self.param("out_HED", out_axes, (a.heads, a.head_width, a.width))
        # Heads and their width are contracted together. Heads are sharded over
        # `tensor`, so the product is a sum over devices.
        mixed_BTX = mixed_BTHE.reshape(*x_BTD.shape[:2], -1)
        return _matmul(mixed_BTX, out_HED, _adapter(self, "out_HED")), kept

    def _project(self, name: str, axes: str, heads: int, x_BTD: jax.Array) -> jax.Array:
        # Heads have an axis of their own, so that `tensor` cuts between heads and never
        # within one.
        shape = (heads, self.arch.head_width)
        kernel_name, init = f"{name}_D{axes}", weight("embed", "heads", None)
        kernel = self.param(kernel_name, init, (self.arch.width, *shape))
        x_BTX = _matmul(x_BTD, kernel, _adapter(self, kernel_name))
        x_BTHE = x_BTX.reshape(*x_BTD.shape[:2], *shape)
        if self.arch.qkv_bias:
            zeros = weight("heads", None, init=nn.initializers.zeros)
            bias_HE = self.param(f"{name}_bias_{axes}", zeros, shape)
            x_BTHE = x_BTHE + bias_HE.astype(x_BTHE.dtype)[None, None]
        return constrain(x_BTHE, "batch", None, "heads", None)


class MLP(nn.Module):
    """Gated SiLU."""

    arch: Architecture

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """The layer's MLP branch."""
        up_shape = (self.arch.width, self.arch.mlp_width)
        gate = self.param("gate_DF", weight("embed", "mlp"), up_shape)
        up = self.param("up_DF", weight("embed", "mlp"), up_shape)
        down = self.param("down_FD", weight("mlp", "embed"), up_shape[::-1])
        gate_BTF = nn.silu(_matmul(x_BTD, gate, _adapter(self, "gate_DF")))
        inner_BTF = gate_BTF * _matmul(x_BTD, up, _adapter(self, "up_DF"))
        # Sharded as the kernels are: `gate` and `up` need no communication, and `down`
        # is a sum over devices, as in attention.
        inner_BTF = constrain(inner_BTF, "batch", None, "mlp")
        return _matmul(inner_BTF, down, _adapter(self, "down_FD"))


class Layer(nn.Module):
    """One transformer layer, with norms on its branches' inputs or on their outputs.

    Either way `attention_norm` and `mlp_norm` are named after their branch.
    """

    arch: Architecture
    kind: LayerKind

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, position_BT: jax.Array, attend: Attend
    ) -> tuple[jax.Array, Any]:
        """The residual stream after the layer, and what `attend` keeps."""
        same = lambda x: x
        norms = [RMSNorm(self.arch, name=f"{n}_norm") for n in ("attention", "mlp")]
        before = [same, same] if self.arch.post_norm else norms
        after = norms if self.arch.post_norm else [same, same]
        branch_BTD, kept = Attention(self.arch, self.kind, name="attention")(
            before[0](x_BTD), position_BT, attend
        )
        # Between branches the stream is sharded by rows and replicated over `tensor`,
        # so a branch's sum over devices is complete here.
        x_BTD = constrain(x_BTD + after[0](branch_BTD), "batch", None, None)
        branch_BTD = MLP(self.arch, name="mlp")(before[1](x_BTD))
        x_BTD = x_BTD + after[1](branch_BTD)
        return constrain(x_BTD, "batch", None, None), kept
