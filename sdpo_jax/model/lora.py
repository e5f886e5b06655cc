"""Low-rank adapters (LoRA, arXiv:2106.09685), trained while the weights are frozen.

An adapted projection computes x W + (alpha / rank) x A B. The adapters of all layers
are one pytree, as `decoder` takes it: a tree per layer kind of the period, with an
Adapter under the path of each adapted weight, stacked over the periods.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from sdpo_jax.model import decoder
from sdpo_jax.model.families import Architecture

Params = Any

# Name in checkpoints -> our module, our weight, and the number of its input axes.
TARGETS = {
    "q_proj": ("attention", "query_DHE", 1),
    "k_proj": ("attention", "key_DNE", 1),
    "v_proj": ("attention", "value_DNE", 1),
    "o_proj": ("attention", "out_HED", 2),
    "gate_proj": ("mlp", "gate_DF", 1),
    "up_proj": ("mlp", "up_DF", 1),
    "down_proj": ("mlp", "down_FD", 1),
}


@flax.struct.dataclass
class Adapter:
    """A low-rank change of one weight.

    Args:
      a: its input axes and then the rank.
      b: the rank and then its output axes; zero at first.
      scale: alpha / rank.
    """

    a: jax.Array
    b: jax.Array
    scale: float = flax.struct.field(pytree_node=False)


def init(
    arch: Architecture, rank: int, alpha: float, targets: Sequence[str], key: jax.Array
) -> list[Params]:
    """Adapters that change nothing yet, in float32.

    Args:
      arch: the model.
      rank: of every change.
      alpha: the change is scaled by alpha / rank.
      targets: names in TARGETS.
      key: of the first factors, which are uniform within 1 / sqrt(inputs), as PEFT
        draws them.
    """
    # Abstract evaluation: shapes of the weights, without allocating them.
    shapes = jax.eval_shape(lambda: decoder.init(arch, jax.random.key(0)))["layers"]

    def adapter(number: int, weight: jax.ShapeDtypeStruct, inputs: int) -> Adapter:
        periods, *axes = weight.shape
        # PEFT calls kaiming_uniform_(a=sqrt(5)), which is this bound.
        bound = math.prod(axes[:inputs]) ** -0.5
        a_shape = (periods, *axes[:inputs], rank)
        adapter_key = jax.random.fold_in(key, number)
        a = jax.random.uniform(adapter_key, a_shape, minval=-bound, maxval=bound)
        # B is zero, so a new adapter changes nothing.
        return Adapter(a, jnp.zeros((periods, rank, *axes[inputs:])), alpha / rank)

    return _for_targets(shapes, targets, adapter)


def logical_axes(
    arch: Architecture, rank: int, alpha: float, targets: Sequence[str]
) -> list[Params]:
    """For every array of `init`, the logical axis of each of its dimensions."""

    def adapter(number: int, weight: tuple, inputs: int) -> Adapter:
        periods, *axes = weight
        # Both factors are sharded as the weight is, except along the rank.
        a, b = (periods, *axes[:inputs], None), (periods, None, *axes[inputs:])
        return Adapter(a, b, alpha / rank)

    return _for_targets(decoder.logical_axes(arch)["layers"], targets, adapter)


def _for_targets(
    layers: Sequence[Params], targets: Sequence[str], make: Callable
) -> list[Params]:
    """Trees of `make(number, weight, inputs)` under the path of each targeted weight.

    `number` counts over kinds of layers and targets, for a random key of its own.
    """
    trees, number = [], 0
    for layer in layers:
        tree: dict[str, dict] = {}
        for module, name, inputs in (TARGETS[target] for target in targets):
            tree.setdefault(module, {})[name] = make(
                number, layer[module][name], inputs
            )
            number += 1
        trees.append(tree)
    return trees


def merge(params: Params, adapters: list[Params]) -> Params:
    """The weights plus the change of every adapter, in float32."""

    def merged(weight: jax.Array, adapter: Adapter) -> jax.Array:
        # Contracts the rank, period by period. In float32 whatever the weight's dtype,
        # which could round a small change away.
        delta = jax.vmap(functools.partial(jnp.tensordot, axes=1))(adapter.a, adapter.b)
        return weight.astype(jnp.float32) + adapter.scale * delta

    layers = []
    for layer, tree in zip(params["layers"], adapters, strict=True):
        layer = {**layer}
        for module, module_adapters in tree.items():
            weights = layer[module]
            changed = {n: merged(weights[n], a) for n, a in module_adapters.items()}
            layer[module] = {**layer[module], **changed}
        layers.append(layer)
    return {**params, "layers": layers}
