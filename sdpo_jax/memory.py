"""How many attempts fit a device's memory, by arithmetic, before anything compiles."""

import dataclasses
import logging
import math
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sdpo_jax import distributed, train_state
from sdpo_jax.model import decoder
from sdpo_jax.model.families import Architecture

_log = logging.getLogger(__name__)

# GiB of each JAX device, where the device itself does not say.
_GIB = {
    "TPU v4": 32,
    "TPU v5 lite": 16,
    "TPU v5": 95,
    "TPU v6 lite": 32,
    "TPU7x": 96,
}
# The share that is left to programs, their temporary arrays and fragmentation.
_RESERVED = 0.1
# Float32 arrays over the vocabulary that drawing a token holds at once.
_LOGITS = 4


@dataclasses.dataclass(frozen=True)
class Needs:
    """Bytes on each device while attempts are sampled.

    Args:
      resident: name -> what stays, whatever is sampled.
      gradient: beside the state of training, in an update.
      prompt: keys and values of one prompt.
      attempt: keys, values and logits of one attempt, without its prompt.
      attempts: that share a prompt, at least.
    """

    resident: dict[str, int]
    gradient: int
    prompt: int
    attempt: int
    attempts: int

    def of_rows(self, rows: int) -> int:
        """Bytes that `rows` attempts on a device take beside what is resident."""
        return rows * self.attempt + -(-rows // self.attempts) * self.prompt


def device_bytes(mesh: Mesh) -> int | None:
    """Bytes of one device, the same on all hosts; None where they are not known."""
    device = mesh.local_devices[0] if mesh.local_devices else mesh.devices.flat[0]
    try:
        stats = device.memory_stats() or {}
    except jax.errors.JaxRuntimeError:
        stats = {}  # The device is described, not present.
    known = _GIB.get(device.device_kind)
    return distributed.from_first(stats.get("bytes_limit", known and known * 2**30))


def needs(c: ConfigDict, arch: Architecture, mesh: Mesh, trains: bool) -> Needs:
    """What a config needs on each device.

    Args:
      c: the run's config.
      arch: the model.
      mesh: devices.
      trains: whether the state of training is in memory, or else weights only.
    """
    state = train_state.abstract_state(c, arch, mesh)
    if trains:
        resident = {
            "weights": _bytes(state.student),
            "optimizer": _bytes(state.opt_state),
            "teacher": _bytes(state.teacher),
            "frozen base": _bytes(state.base),
        }
    else:
        # A checkpoint as it was loaded, which is what adapters would change.
        resident = {"weights": _bytes(state.base or state.student)}
    resident["weights for sampling"] = _sampling_bytes(c, arch, mesh)
    itemsize = train_state.compute_dtype(c).itemsize
    heads = max(arch.kv_heads // mesh.shape[distributed.RULES["heads"]], 1)
    token = 2 * heads * arch.head_width * itemsize
    windows = [kind.window or math.inf for kind in arch.kinds]
    slots = lambda length: sum(min(length, window) for window in windows)
    return Needs(
        resident={name: size for name, size in resident.items() if size},
        gradient=_bytes(state.student) * itemsize // 4 if trains else 0,
        prompt=token * slots(c.rollout.max_prompt),
        attempt=token * slots(c.rollout.max_response) + 4 * _LOGITS * arch.vocab,
        attempts=min(c.eval.attempts, c.rollout.attempts if trains else math.inf),
    )


def rows_that_fit(
    c: ConfigDict, arch: Architecture, mesh: Mesh, limit: int | None, trains: bool
) -> int:
    """`rollout.rows_at_once`, or as many attempts as there is memory for.

    Args:
      c: the run's config.
      arch: the model.
      mesh: devices.
      limit: bytes of a device; None checks nothing.
      trains: see `needs`.

    Raises:
      ValueError: if not even one attempt on each batch shard fits, or no update.
    """
    asked, shards = c.rollout.rows_at_once, distributed.batch_shards(mesh)
    if limit is None:
        return asked
    found = needs(c, arch, mesh, trains)
    resident = sum(found.resident.values())
    free = limit * (1 - _RESERVED) - resident
    most = max(asked // shards, 1)
    rows = next((n for n in range(most, 0, -1) if found.of_rows(n) <= free), 0)
    parts = [f"{name} {_gb(size)}" for name, size in found.resident.items()]
    needed = (
        f"of {_gb(limit)} on each device, {', '.join(parts)} and {_RESERVED:.0%} for "
        f"programs leave {_gb(max(free, 0))}; an attempt of rollout.max_prompt="
        f"{c.rollout.max_prompt} and rollout.max_response={c.rollout.max_response} "
        f"tokens takes {_gb(found.of_rows(1))}"
    )
    in_update = resident - found.resident["weights for sampling"] + found.gradient
    if trains:
        needed += f", an update's gradient {_gb(found.gradient)}"
    if not rows or in_update > limit:
        raise ValueError(
            f"too little memory: {needed}; use more devices or raise mesh.fsdp or "
            "mesh.tensor, lower these lengths, or train adapters (lora.rank)"
        )
    if rows < most:
        _log.warning(
            "rollout.rows_at_once=%d lowered to %d: %s", asked, rows * shards, needed
        )
        return rows * shards
    return asked


def _bytes(tree: Any) -> int:
    """Bytes of abstract arrays on one device."""
    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape))
        for x in jax.tree.leaves(tree)
    )


def _sampling_bytes(c: ConfigDict, arch: Architecture, mesh: Mesh) -> int:
    """Bytes of the weights that are sampled with, sharded over `tensor` only."""
    shapes = jax.eval_shape(lambda: decoder.init(arch, jax.random.key(0)))
    tensor = mesh.shape["tensor"]

    def size(leaf: jax.ShapeDtypeStruct, where: jax.sharding.NamedSharding) -> int:
        # An entry of a PartitionSpec is a name, several, or None.
        is_sharded = any("tensor" in (axes or ()) for axes in where.spec)
        return leaf.size // (tensor if is_sharded else 1)

    sizes = jax.tree.map(size, shapes, decoder.shardings(arch, mesh))
    return sum(jax.tree.leaves(sizes)) * train_state.compute_dtype(c).itemsize


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
