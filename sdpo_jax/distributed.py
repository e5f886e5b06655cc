"""Devices: multi-host start-up, the mesh, sharding rules, and transfers."""

import json
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axes. Weights are sharded along their width over `fsdp` and along
# heads, MLP width or vocabulary over `tensor`; activations along the batch.
RULES = {
    "batch": ("data", "fsdp"),
    # Only during the lookup in the embedding, where `fsdp` shards the width.
    "batch_over_data": "data",
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    # The embedding is sharded along its width only, so that a lookup moves activations
    # and never the table: a lookup in a vocabulary-sharded table rematerialises it.
    "table": ("tensor", "fsdp"),
    # What is left of that width when `fsdp` shards rows again, or is gathered.
    "width_over_tensor": "tensor",
}


def start() -> None:
    """Join the other hosts of a pod; idempotent.

    Every host calls it before it uses a device. A cluster that JAX knows (Cloud TPU,
    Slurm, MPI) tells the hosts where they are; elsewhere, and in a notebook, call
    `jax.distributed.initialize` with addresses of your own instead.

    Raises:
      ValueError: if there is no such cluster.
    """
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:
        raise ValueError(
            f"--multi_host: found no hosts to join ({error}); leave it out on one host"
        ) from error


def make_mesh(shape: Mapping[str, int], devices: Any = None) -> Mesh:
    """A mesh of all devices; one axis may be -1, for the devices that the others leave.

    Raises:
      ValueError: if the product of the axes is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [shape[axis] for axis in MESH_AXES]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        named = " x ".join(f"mesh.{a}={shape[a]}" for a in MESH_AXES)
        raise ValueError(
            f"{named} does not cover the {len(devices)} devices present; "
            "set one axis to -1 to let it take what is left"
        )
    # Auto: XLA chooses shardings between the constraints that this package sets.
    axis_types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(sizes, MESH_AXES, axis_types, devices=devices)


def spec(*logical_axes: str | None) -> PartitionSpec:
    """The partition of an array with these logical axes; None is not sharded."""
    return PartitionSpec(*(a if a is None else RULES[a] for a in logical_axes))


def sharding(mesh: Mesh, *logical_axes: str | None) -> NamedSharding:
    """`spec` on a mesh."""
    return NamedSharding(mesh, spec(*logical_axes))


def constrain(x: jax.Array, *logical_axes: str | None) -> jax.Array:
    """`x` with its sharding pinned on the mesh of `jax.set_mesh`; `x` without a mesh.

    An axis without a rule is an error, where flax's `with_logical_constraint` silently
    constrains nothing if it finds no rules.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*logical_axes))


def slices(logical_axis: str) -> int:
    """Number of slices that an axis is sharded into; 1 without a mesh."""
    axes = RULES[logical_axis]
    axes = (axes,) if isinstance(axes, str) else axes
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(axis, 1) for axis in axes)


def batch_shards(mesh: Mesh) -> int:
    """Number of slices that batch rows are sharded into."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def to_devices(tree: Any, mesh: Mesh) -> Any:
    """Device arrays of host arrays that are equal on all hosts, sharded by rows."""

    def move(x):
        x = np.asarray(x)
        # Every host copies the slices of its own devices only. Scalars are replicated.
        rows = sharding(mesh, "batch") if x.ndim else sharding(mesh)
        return jax.make_array_from_callback(x.shape, rows, lambda index: x[index])

    return jax.tree.map(move, tree)


def is_first() -> bool:
    """Whether this is the host that reads, grades and writes for all hosts."""
    return jax.process_index() == 0


def on_any(flag: bool) -> bool:
    """Whether the flag is true on any host; every host must call it."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def from_first(value: Any) -> Any:
    """The first host's `value` on every host; it must be plain JSON."""
    if jax.process_count() == 1:
        return value
    # A broadcast needs equal shapes on all hosts, so the size is broadcast first.
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    padded = data if is_first() else np.zeros(size, np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(padded)))


def to_host(tree: Any) -> Any:
    """Complete NumPy arrays of device arrays, the same on every host."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    # Tiled: shards are joined along their axes, not stacked along a new one.
    return multihost_utils.process_allgather(tree, tiled=True)
