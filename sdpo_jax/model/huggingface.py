"""Hugging Face checkpoints: one table of names and layouts, read in both directions.

A row of the table holds our parameter's path, the name of the checkpoint's tensor, and
that tensor's axes in the letters of our name: `query_DHE` is stored as "HE D", a matrix
whose rows run over heads and head width. Our layers are stacked over periods; `{}`
in a tensor name is the layer's number. This file reads; `huggingface_export` writes.
"""

import collections
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from safetensors import SafetensorError, safe_open

from sdpo_jax import distributed, hub
from sdpo_jax.model import decoder, families
from sdpo_jax.model.families import Architecture


class Row(NamedTuple):
    """One parameter: our path, the checkpoint's name, the stored axes."""

    path: str
    tensor: str
    axes: str


WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_EMBED = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_LAYER = "model.layers.{}."
_ATTENTION = _LAYER + "self_attn."

_SHARED = (
    Row("embed/table_VD", _EMBED, "V D"),
    Row("layers/attention/query_DHE", _ATTENTION + "q_proj.weight", "HE D"),
    Row("layers/attention/key_DNE", _ATTENTION + "k_proj.weight", "NE D"),
    Row("layers/attention/value_DNE", _ATTENTION + "v_proj.weight", "NE D"),
    Row("layers/attention/out_HED", _ATTENTION + "o_proj.weight", "D HE"),
    Row("layers/mlp/gate_DF", _LAYER + "mlp.gate_proj.weight", "F D"),
    Row("layers/mlp/up_DF", _LAYER + "mlp.up_proj.weight", "F D"),
    Row("layers/mlp/down_FD", _LAYER + "mlp.down_proj.weight", "D F"),
    Row("norm/scale_D", "model.norm.weight", "D"),
    Row("head/kernel_DV", _HEAD, "V D"),
)
_PRE_NORM = (
    Row("layers/attention_norm/scale_D", _LAYER + "input_layernorm.weight", "D"),
    Row("layers/mlp_norm/scale_D", _LAYER + "post_attention_layernorm.weight", "D"),
)
# Two names are the same in both families and mean other norms: Olmo3's
# post_attention_layernorm is on attention's output, Qwen's on the MLP's input.
_POST_NORM = (
    Row(
        "layers/attention_norm/scale_D", _LAYER + "post_attention_layernorm.weight", "D"
    ),
    Row("layers/mlp_norm/scale_D", _LAYER + "post_feedforward_layernorm.weight", "D"),
)
_QKV_BIAS = (
    Row("layers/attention/query_bias_HE", _ATTENTION + "q_proj.bias", "HE"),
    Row("layers/attention/key_bias_NE", _ATTENTION + "k_proj.bias", "NE"),
    Row("layers/attention/value_bias_NE", _ATTENTION + "v_proj.bias", "NE"),
)
_HEAD_NORM = (
    Row("layers/attention/query_norm/scale_D", _ATTENTION + "q_norm.weight", "D"),
    Row("layers/attention/key_norm/scale_D", _ATTENTION + "k_norm.weight", "D"),
)
_WIDTH_NORM = (
    Row("layers/attention/query_norm/scale_HE", _ATTENTION + "q_norm.weight", "HE"),
    Row("layers/attention/key_norm/scale_NE", _ATTENTION + "k_norm.weight", "NE"),
)

TABLES = {
    family: {row.path: row for row in rows}
    for family, rows in {
        "qwen2": _SHARED + _PRE_NORM + _QKV_BIAS,
        "qwen3": _SHARED + _PRE_NORM + _HEAD_NORM,
        "olmo3": _SHARED + _POST_NORM + _WIDTH_NORM,
    }.items()
}

# As safetensors names dtypes.
_READABLE = ("F32", "BF16", "F16")


def architecture(path: str | os.PathLike) -> Architecture:
    """The architecture that a checkpoint's config.json describes.

    Args:
      path: a directory, or the name of a model on the Hugging Face hub.

    Raises:
      ValueError: if there is no such checkpoint, or it is not supported.
    """
    return families.from_huggingface(config_of(directory_of(path, "config.json")))


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
    shardings = _shardings(arch, shapes, mesh)
    stored = _open_all(directory_of(path, "*.json", "*.safetensors"))
    _check(stored, arch, shapes)

    def place(key: Any, leaf: jax.ShapeDtypeStruct, where: NamedSharding) -> jax.Array:
        return _place(stored, arch, key, leaf.shape, np.dtype(dtype), where)

    return jax.tree_util.tree_map_with_path(place, shapes, shardings)


def directory_of(path: str | os.PathLike, *patterns: str) -> pathlib.Path:
    """The checkpoint's directory; from the hub, with files of these patterns only."""
    hub.check_path(str(path))
    if os.path.isdir(path):
        return pathlib.Path(path)
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


def _shardings(arch: Architecture, shapes: Any, mesh: Mesh) -> Any:
    """The sharding of every parameter; an error if one does not divide evenly."""

    def where(key: Any, leaf: jax.ShapeDtypeStruct, logical: tuple) -> NamedSharding:
        sharding = distributed.sharding(mesh, *logical)
        for size, axes in zip(leaf.shape, sharding.spec, strict=True):
            # A PartitionSpec gives one mesh axis, several, or None for each dimension.
            axes = (axes,) if isinstance(axes, str) else axes or ()
            axes = [axis for axis in axes if mesh.shape[axis] > 1]
            if size % math.prod(mesh.shape[axis] for axis in axes):
                fields = " x ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in axes)
                raise ValueError(
                    f"{_name(key)} {leaf.shape}: {fields} does not divide its axis of "
                    f"{size}; lower {' or '.join(f'mesh.{axis}' for axis in axes)}"
                )
        return sharding

    axes = decoder.logical_axes(arch)
    return jax.tree_util.tree_map_with_path(where, shapes, axes)


def _open_all(directory: pathlib.Path) -> dict[str, Any]:
    """Every tensor of a checkpoint, as an object that reads slices from the file."""
    stored = {}
    for file, tensor in _files(directory).items():
        try:
            opened = safe_open(file, framework="np")
        except FileNotFoundError as error:
            raise ValueError(f"{file} is missing; it holds {tensor}") from error
        except SafetensorError as error:
            raise ValueError(
                f"{file} is damaged or cut short ({error}); it holds {tensor}. "
                "Download or copy it again"
            ) from error
        slices = {name: opened.get_slice(name) for name in opened.keys()}
        if twice := stored.keys() & slices.keys():
            raise ValueError(f"{file} holds {min(twice)}, as another file does")
        stored |= slices
    return stored


def _files(directory: pathlib.Path) -> dict[pathlib.Path, str]:
    """The weight files, each with the name of one of its tensors."""
    single, index = directory / WEIGHTS, directory / INDEX
    # A single file wins, as in transformers; it is also the one to name as missing.
    if single.exists() or not index.exists():
        return {single: _EMBED}
    by_tensor = _json(index).get("weight_map")
    if not isinstance(by_tensor, dict) or not by_tensor:
        raise ValueError(f"{index} has no weight_map, which names the weight files")
    return {directory / file: tensor for tensor, file in by_tensor.items()}


def _check(stored: dict[str, Any], arch: Architecture, shapes: Any) -> None:
    """Raise unless `stored` holds exactly the tensors that `arch` needs."""
    expected = stored_shapes(arch, shapes)
    # Some checkpoints with a tied head store it too; it is no parameter of ours.
    if arch.tied and {_HEAD, _EMBED} <= stored.keys():
        if not np.array_equal(stored.pop(_HEAD)[:], stored[_EMBED][:]):
            raise ValueError(
                f"{_HEAD} differs from {_EMBED}, though config.json says "
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
