"""Devices: multi-host start-up, the mesh, sharding rules, and transfers."""

import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
# TPUs whose two cores are one device, unless libtpu is told to show each.
_MEGACORE = ("TPU v4", "TPU v5")
# Part of a platform's name -> what finds its devices.
_INSTALLED_BY = {"tpu": '-U "jax[tpu]"', "cuda": '-U "jax[cuda12]"'}

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
      ValueError: if there is no such cluster, or if it is too late to join it.
    """
    if jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"--multi_host: found no hosts to join ({reason}); leave it out on one host"
        ) from error


def all_devices() -> list[Any]:
    """All devices of all hosts.

    Raises:
      ValueError: if JAX is asked for a platform that it does not find here.
    """
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:
        # JAX asserts that some platform is left where a plugin is not installed.
        reason = re.sub(r" \(set JAX_PLATFORMS.*", "", str(error).partition("\n")[0])
        platforms = jax.config.jax_platforms or ""
        kind = next((k for k in _INSTALLED_BY if k in platforms), None)
        install = kind and f", or where there is one: pip install {_INSTALLED_BY[kind]}"
        raise ValueError(
            f"JAX_PLATFORMS={platforms}: JAX found no such device "
            f"({reason or 'no plugin for it is installed'}); unset JAX_PLATFORMS"
            f"{install or ''}"
        ) from error


def make_mesh(shape: Mapping[str, int], devices: Any = None) -> Mesh:
    """A mesh of all devices; one axis may be -1, for the devices that the others leave.

    Neighbours along `tensor` are next to each other in the network. Slices of TPUs,
    which only a slower network joins, are split along `data`.

    Raises:
      ValueError: if the product of the axes is not the number of devices, or if the
        slices do not divide `data`.
    """
    devices = all_devices() if devices is None else devices
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
    return Mesh(_over_slices(sizes, devices), MESH_AXES, axis_types=axis_types)


def _over_slices(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices [data, fsdp, tensor]; every slice of TPUs holds a part of `data`."""
    on_tpu = devices[0].platform == "tpu"
    slice_of = lambda device: getattr(device, "slice_index", 0) if on_tpu else 0
    slices = sorted({slice_of(device) for device in devices})
    data, *others = sizes
    if data % len(slices):
        raise ValueError(
            f"mesh.data={data} does not divide by the {len(slices)} slices of TPUs; "
            "make it a multiple, as only rows are split over slices"
        )
    shape = (data // len(slices), *others)
    return np.concatenate(
        [_in_slice(shape, [d for d in devices if slice_of(d) == s]) for s in slices]
    )


def _in_slice(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices of one slice in this shape, neighbours along its last axis close."""
    # Without splitting, many shapes of v5p and v6e are refused. Where a shape needs no
    # splitting, the devices are in the same order.
    layout = functools.partial(
        mesh_utils.create_device_mesh, allow_split_physical_axes=True
    )
    first = [d for d in devices if getattr(d, "core_on_chip", 0) == 0]
    if devices[0].device_kind not in _MEGACORE or len(first) == len(devices):
        return layout(sizes, devices)
    # JAX lays out these chips only if each is one device, so a chip's cores are put
    # side by side along the last axis that they divide.
    second = {tuple(d.coords): d for d in devices if d.core_on_chip == 1}
    axis = max(axis for axis, size in enumerate(sizes) if size % 2 == 0)
    chips = layout([n // 2 if i == axis else n for i, n in enumerate(sizes)], first)
    partners = np.vectorize(lambda chip: second[tuple(chip.coords)], otypes=[object])(
        chips
    )
    return np.stack([chips, partners], axis=axis + 1).reshape(sizes)


def spec(*logical_axes: str | None) -> PartitionSpec:
    """The partition of an array with these logical axes; None is not sharded."""
    return PartitionSpec(*(a if a is None else RULES[a] for a in logical_axes))


def sharding(mesh: Mesh, *logical_axes: str | None) -> NamedSharding:
    """`spec` on a mesh."""
    return NamedSharding(mesh, spec(*logical_axes))


def even_sharding(
    mesh: Mesh, name: str, shape: Sequence[int], *logical_axes: str | None
) -> NamedSharding:
    """`sharding` of an array that is stored, whose axes must divide evenly.

    Raises:
      ValueError: if one does not.
    """
    placed = sharding(mesh, *logical_axes)
    for size, axes in zip(shape, placed.spec, strict=True):
        # A PartitionSpec gives one mesh axis, several, or None for each dimension.
        axes = (axes,) if isinstance(axes, str) else axes or ()
        axes = [axis for axis in axes if mesh.shape[axis] > 1]
        if size % math.prod(mesh.shape[axis] for axis in axes):
            fields = " x ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in axes)
            raise ValueError(
                f"{name} {tuple(shape)}: {fields} does not divide its axis of "
                f"{size}; lower {' or '.join(f'mesh.{axis}' for axis in axes)}"
            )
    return placed


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
    all_devices()  # Says what to do where there are none.
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
