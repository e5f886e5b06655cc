"""The arrays of a state by name: listed, compared with what was saved, and copied."""

from typing import Any

import jax
import numpy as np

PyTree = Any
# Dtype and shape, as a manifest holds them.
Described = list[Any]


def named(tree: PyTree, part: str = "") -> dict[str, Any]:
    """Leaves by path, like "student/layers/0/kernel"; `part` goes in front."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        inner = jax.tree_util.keystr(path, simple=True, separator="/")
        name = "/".join(filter(None, [part, inner]))
        if not isinstance(getattr(leaf, "sharding", None), jax.sharding.Sharding):
            raise ValueError(
                f"expected a jax.Array (or a jax.ShapeDtypeStruct with a sharding) "
                f"at {name}, got {leaf!r}; wrap numbers with jnp.asarray"
            )
        if name in leaves:
            raise ValueError(f"two leaves are called {name}; rename one of their keys")
        leaves[name] = leaf
    return leaves


def described(leaves: dict[str, Any]) -> dict[str, Described]:
    """The dtype and shape of every leaf, as plain JSON."""
    return {name: [leaf.dtype.name, list(leaf.shape)] for name, leaf in leaves.items()}


def below(saved: dict[str, Described], part: str) -> dict[str, Described]:
    """What was saved of a subtree; of all, if `part` is empty."""
    return {
        name: leaf
        for name, leaf in saved.items()
        if not part or name == part or name.startswith(f"{part}/")
    }


def check(saved: dict[str, Described], leaves: dict[str, Any], source: str) -> None:
    """Refuse a state that differs from what was saved.

    Raises:
      ValueError: names the first leaf that differs, and `source`.
    """
    expected = described(leaves)
    for name in sorted(saved.keys() | expected.keys()):
        if saved.get(name) != expected.get(name):
            raise ValueError(
                f"checkpoint and state differ first at {name or 'the root'}: the "
                f"checkpoint (of {source}) has {_text(saved.get(name))}, this "
                f"state has {_text(expected.get(name))}. Restore with the "
                "config the run was started with"
            )


def copy(value: jax.Array | None, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    """The restored value in new buffers with the sharding of `leaf`; None if empty."""
    if value is None:
        empty = np.zeros(leaf.shape, leaf.dtype)
        places = leaf.sharding.addressable_devices_indices_map(leaf.shape)
        blocks = [(empty[index], device) for device, index in places.items()]
    else:
        blocks = [(shard.data, shard.device) for shard in value.addressable_shards]
    # On CPU orbax's replicas share one host buffer, which cannot be donated. Copied by
    # shard, because device_put refuses arrays that other processes hold a part of.
    shards = [jax.device_put(*block, may_alias=False) for block in blocks]
    return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)


def _text(leaf: Described | None) -> str:
    return f"{leaf[0]} of shape {tuple(leaf[1])}" if leaf else "nothing"
