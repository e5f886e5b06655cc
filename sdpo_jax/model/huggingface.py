"""Hugging Face checkpoints, read by the table in `tensor_table`, slice by slice.

`huggingface_export` writes them.
"""

import collections
import json
import logging
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from safetensors import SafetensorError, safe_open

from sdpo_jax import hub
from sdpo_jax.model import decoder, families, other_formats
from sdpo_jax.model.families import Architecture
from sdpo_jax.model.tensor_table import EMBED, HEAD, TABLES, Row

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_log = logging.getLogger(__name__)
# As safetensors names dtypes.
_READABLE = ("F32", "BF16", "F16")
# What old versions of transformers stored and every version computes from config.json.
_COMPUTED = ".rotary_emb.inv_freq"


def architecture(path: str | os.PathLike) -> Architecture:
    """The architecture that a checkpoint's config.json describes.

    Logs a warning that names the fields which neither this project nor transformers
    reads.

    Args:
      path: a directory, or the name of a model on the Hugging Face hub.

    Raises:
      ValueError: if there is no such checkpoint, or it is not supported.
    """
    raw = config_of(directory_of(path, "config.json"))
    arch = families.from_huggingface(raw)
    if unknown := families.unknown_fields(raw):
        _log.warning(
            "%s: config.json has fields that transformers does not read for %s, and "
            "they are ignored here too: %s",
            path,
            arch.family,
            ", ".join(unknown),
        )
    return arch


def load(
    path: str | os.PathLike, arch: Architecture, mesh: Mesh, dtype: Any = jnp.float32
) -> decoder.Params:
    """Read a checkpoint, each device only its own slices.

    Args:
      path: a directory, or the name of a model on the Hugging Face hub.
      arch: what `architecture(path)` returned.
      mesh: devices; parameters are placed on them by `distributed.RULES`.
      dtype: of the parameters, whatever the file's.

    Returns:
      The decoder's parameters, placed on the mesh.

    Raises:
      ValueError: if a parameter cannot be sharded over the mesh (before anything is
        read), if a tensor is missing, unknown, of another shape or not finite, or if
        a file is missing or damaged; the message names the parameter or tensor.
    """
    shapes = jax.eval_shape(lambda: decoder.init(arch, jax.random.key(0)))
    shardings = decoder.shardings(arch, mesh)
    stored = open_all(directory_of(path, "*.json", "*.safetensors"), arch, shapes)

    def place(key: Any, leaf: jax.ShapeDtypeStruct, where: NamedSharding) -> jax.Array:
        return _place(stored, arch, key, leaf.shape, np.dtype(dtype), where)

    return jax.tree_util.tree_map_with_path(place, shapes, shardings)


def directory_of(path: str | os.PathLike, *patterns: str) -> pathlib.Path:
    """The checkpoint's directory; from the hub, with files of these patterns only."""
    hub.check_path(str(path))
    if os.path.isdir(path):
        return pathlib.Path(path)
    if os.path.isfile(path):
        remedy = (
            other_formats.remedy(pathlib.Path(path).name)
            or "give the directory that holds it"
        )
        raise ValueError(f"{path} is a file, no directory of a checkpoint; {remedy}")
    return hub.model(str(path), *patterns)


def _json(file: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} must hold a JSON object, got {type(content).__name__}"
        )
    return content


def config_of(directory: pathlib.Path) -> dict[str, Any]:
    """The content of the checkpoint's config.json."""
    if not (directory / "config.json").exists():
        other_formats.refuse(directory)
        raise ValueError(f"{directory} has no config.json, so it is no checkpoint")
    return _json(directory / "config.json")


def _name(key: Any) -> str:
    return jax.tree_util.keystr(key, simple=True, separator="/")


def row_of(arch: Architecture, key: Any) -> tuple[Row, list[str]]:
    """A parameter's row, and the names of the tensors that it holds, in order."""
    steps = _name(key).split("/")
    table = TABLES[arch.family]
    if steps[0] != "layers":
        row = table["/".join(steps)]
        return row, [row.tensor]
    # "layers/2/mlp/up_DF" is the third kind of layer in the period: its leading axis
    # holds layers 2, 2 + period, and so on.
    row = table["/".join(["layers", *steps[2:]])]
    numbers = range(int(steps[1]), arch.layers, len(arch.period))
    return row, [row.tensor.format(number) for number in numbers]


def axes_of(row: Row) -> tuple[str, str]:
    """The axis letters of one tensor, in our order and in the stored order."""
    return row.path.rpartition("_")[2], row.axes.replace(" ", "")


def stored_shape(row: Row, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of each tensor that a parameter of `shape` is stored in."""
    ours, _ = axes_of(row)
    # A parameter of the layers has a leading axis, the periods.
    size = dict(zip(ours, shape[-len(ours) :], strict=True))
    return tuple(math.prod(size[a] for a in group) for group in row.axes.split())


def stored_shapes(arch: Architecture, tree: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the checkpoint, in the order they are written."""
    shapes = {}
    for key, leaf in jax.tree_util.tree_leaves_with_path(tree):
        row, names = row_of(arch, key)
        shapes |= dict.fromkeys(names, stored_shape(row, leaf.shape))
    return shapes


def open_all(
    directory: pathlib.Path, arch: Architecture, shapes: Any
) -> dict[str, Any]:
    """Every tensor of a checkpoint, as an object that reads slices from the file.

    Args:
      directory: of the checkpoint.
      arch: its architecture.
      shapes: arrays of these shapes, as `decoder.init` returns them.

    Raises:
      ValueError: as `load`, but for the entries of tensors.
    """
    stored = {}
    for file, tensor in _files(directory).items():
        try:
            opened = safe_open(file, framework="np")
        except FileNotFoundError as error:
            raise ValueError(
                f"{file} is missing; it holds {tensor} (only safetensors are read)"
            ) from error
        except SafetensorError as error:
            raise ValueError(
                f"{file} is damaged or cut short ({error}); it holds {tensor}. "
                "Download or copy it again"
            ) from error
        slices = {
            name: opened.get_slice(name)
            for name in opened.keys()
            if not name.endswith(_COMPUTED)
        }
        if twice := stored.keys() & slices.keys():
            raise ValueError(f"{file} holds {min(twice)}, as another file does")
        stored |= slices
    _check(stored, arch, shapes)
    return stored


def _files(directory: pathlib.Path) -> dict[pathlib.Path, str]:
    """The weight files, each with the name of one of its tensors."""
    single, index = directory / WEIGHTS, directory / INDEX
    # A single file wins, as in transformers; it is also the one to name as missing.
    if single.exists() or not index.exists():
        if not single.exists():
            other_formats.refuse(directory)
        return {single: EMBED}
    by_tensor = _json(index).get("weight_map")
    if not isinstance(by_tensor, dict) or not by_tensor:
        raise ValueError(f"{index} has no weight_map, which names the weight files")
    return {directory / file: tensor for tensor, file in by_tensor.items()}


def _check(stored: dict[str, Any], arch: Architecture, shapes: Any) -> None:
    """Raise unless `stored` holds exactly the tensors that `arch` needs."""
    expected = stored_shapes(arch, shapes)
    # Some checkpoints with a tied head store it too; it is no parameter of ours.
    if arch.tied and {HEAD, EMBED} <= stored.keys():
        if not np.array_equal(stored.pop(HEAD)[:], stored[EMBED][:]):
            raise ValueError(
                f"{HEAD} differs from {EMBED}, though config.json says "
                "tie_word_embeddings=true"
            )
    for fault, names in [
        ("is missing from the checkpoint", expected.keys() - stored.keys()),
        (f"has no place in {arch.family}", stored.keys() - expected.keys()),
    ]:
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ValueError(f"{min(names)}{more} {fault}")
    for name, shape in expected.items():
        file_shape = tuple(stored[name].get_shape())
        if file_shape != shape:
            raise ValueError(
                f"{name}: config.json implies {shape}, the file has {file_shape}"
            )
        dtype = stored[name].get_dtype()
        if dtype not in _READABLE:
            raise ValueError(
                f"{name}: {dtype} is not supported, only {', '.join(_READABLE)}"
            )


def _place(
    stored: dict[str, Any],
    arch: Architecture,
    key: Any,
    shape: tuple[int, ...],
    dtype: np.dtype,
    where: NamedSharding,
) -> jax.Array:
    """One parameter on its devices; the host holds one device's block at a time."""
    # Devices that hold the same block are replicas: the block is read once for them.
    devices_of = collections.defaultdict(list)
    for device, index in where.addressable_devices_indices_map(shape).items():
        bounds = tuple(range(*s.indices(n)) for s, n in zip(index, shape, strict=True))
        devices_of[bounds].append(device)
    arrays = {}
    for bounds, devices in devices_of.items():
        block = _read_block(stored, arch, key, shape, bounds, dtype)
        placed = [jax.device_put(block, device) for device in devices]
        # Copies are asynchronous and keep their source alive: without this wait, blocks
        # of several devices would be in the host's memory at once.
        jax.block_until_ready(placed)
        arrays |= zip(devices, placed, strict=True)
    # JAX expects the arrays in the order of the sharding's devices.
    ordered = [arrays[d] for d in where.addressable_devices_indices_map(shape)]
    return jax.make_array_from_single_device_arrays(shape, where, ordered)


def _read_block(
    stored: dict[str, Any],
    arch: Architecture,
    key: Any,
    shape: tuple[int, ...],
    bounds: Sequence[range],
    dtype: np.dtype,
) -> np.ndarray:
    """The entries of one parameter within `bounds`, read tensor by tensor."""
    row, names = row_of(arch, key)
    block = np.empty([len(b) for b in bounds], dtype)
    # One tensor where there is no axis of periods, else one per period.
    if len(bounds) == len(axes_of(row)[0]):
        block[...] = _read(stored, names[0], row, shape, bounds)
        return block
    periods, *bounds = bounds
    for place, period in enumerate(periods):
        block[place] = _read(stored, names[period], row, shape[1:], bounds)
    return block


def _read(
    stored: dict[str, Any],
    name: str,
    row: Row,
    shape: tuple[int, ...],
    bounds: Sequence[range],
) -> np.ndarray:
    """The entries of one tensor within `bounds` of our axes, in our layout."""
    ours, letters = axes_of(row)
    size = dict(zip(ours, shape, strict=True))
    bound = dict(zip(ours, bounds, strict=True))

    def stored_slice(group: str) -> slice:
        # Axes are stored in groups, like "HE"; only the first of a group is ever
        # sharded, so a block's entries in it are contiguous.
        inner = math.prod(size[a] for a in group[1:])
        return slice(bound[group[0]].start * inner, bound[group[0]].stop * inner)

    block = stored[name][tuple(map(stored_slice, row.axes.split()))]
    if not np.isfinite(block).all():
        raise ValueError(f"{name} holds NaN or infinite weights")
    # From the stored matrix to one axis per letter, and those into our order.
    block = block.reshape([len(bound[a]) for a in letters])
    return block.transpose([letters.index(a) for a in ours])
