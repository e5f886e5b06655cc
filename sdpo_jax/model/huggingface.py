"""Hugging Face checkpoints: one table of names and layouts, read in both directions.

A row of the table is our parameter's path, the checkpoint's tensor name, and that
tensor's axes in the letters of our name: `query_DHE` is stored as "HE D", a matrix
whose rows run over heads and head width. Our layers are stacked over periods; `{}`
in a tensor name is the layer's number.
"""

import collections
import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from safetensors import SafetensorError, safe_open

from sdpo_jax import distributed
from sdpo_jax.model import decoder, families, lora
from sdpo_jax.model.families import Architecture


class Row(NamedTuple):
    """One parameter: our path, the checkpoint's name, the stored axes."""

    path: str
    tensor: str
    axes: str


_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_EMBED = "model.embed_tokens.weight"
_HEAD = "lm_head.weight"
_LAYER = "model.layers.{}."
_ATTENTION = _LAYER + "self_attn."

_ALL = (
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
        "qwen2": _ALL + _PRE_NORM + _QKV_BIAS,
        "qwen3": _ALL + _PRE_NORM + _HEAD_NORM,
        "olmo3": _ALL + _POST_NORM + _WIDTH_NORM,
    }.items()
}
_CLASSES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
}

_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_FILE_DTYPES = {"float32": "F32", "bfloat16": "BF16"}
_READABLE = ("F32", "BF16", "F16")


def architecture(path: str | os.PathLike) -> Architecture:
    """The architecture that a checkpoint's config.json describes.

    Args:
      path: a directory, or the name of a model on the Hugging Face hub.

    Raises:
      ValueError: if there is no such checkpoint, or it is not supported.
    """
    return families.from_huggingface(_config(_directory(path, "config.json")))


def load(
    path: str | os.PathLike, arch: Architecture, mesh: Mesh, dtype: Any = jnp.float32
) -> decoder.Params:
    """Read a checkpoint, each device only its own slices.

    Args:
      path: a directory, or the name of a model on the Hugging Face hub.
      arch: what `architecture(path)` returned.
      mesh: where the parameters shall live, by `distributed.RULES`.
      dtype: of the parameters, whatever the file's.

    Returns:
      The decoder's parameters, placed on the mesh.

    Raises:
      ValueError: if a parameter cannot be cut over the mesh (before anything is
        read), if a tensor is missing, unknown, of another shape or not finite, or if
        a file is missing or damaged; the message names the parameter or tensor.
    """
    shapes = jax.eval_shape(lambda: decoder.init(arch, jax.random.key(0)))
    shardings = _shardings(arch, shapes, mesh)
    stored = _open_all(_directory(path, "*.json", "*.safetensors"))
    _check(stored, arch, shapes)

    def place(key: Any, leaf: jax.ShapeDtypeStruct, where: NamedSharding) -> jax.Array:
        return _place(stored, arch, key, leaf.shape, np.dtype(dtype), where)

    return jax.tree_util.tree_map_with_path(place, shapes, shardings)


def save(
    path: str | os.PathLike,
    arch: Architecture,
    params: decoder.Params,
    *,
    source: str | os.PathLike | None,
    dtype: str = "bfloat16",
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a checkpoint that transformers and inference engines can load.

    Weights go to disk tensor by tensor, so the host holds one at a time. On several
    hosts every process must call this; the first one writes.

    Args:
      path: the directory to make; it appears only when it is complete.
      arch: the architecture of `params`.
      params: the decoder's parameters.
      source: checkpoint whose config.json, generation_config.json and tokenizer are
        copied; with None, only a config.json made from `arch` is written.
      dtype: of the files, "float32" or "bfloat16".
      max_shard_bytes: weights in one file; a tensor is never cut.

    Raises:
      ValueError: if `path` exists, `dtype` is neither, or `source` holds another
        architecture.
    """
    path = pathlib.Path(path)
    check_target(path, dtype)
    folder = None if source is None else _directory(source, "config.json", *_COPIED)
    config = _exported_config(arch, folder, dtype)
    whole = tensors(arch, params, np.dtype(dtype))
    if jax.process_index() != 0:
        collections.deque(whole, maxlen=0)  # Gathering needs every process.
        return

    shapes = stored_shapes(arch, params)
    with _appearing(path) as partial:
        _write_shards(partial, shapes, whole, dtype, max_shard_bytes)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for name in _COPIED:
            if folder is not None and (folder / name).exists():
                shutil.copyfile(folder / name, partial / name)


def save_adapters(
    path: str | os.PathLike,
    arch: Architecture,
    adapters: Sequence[decoder.Params],
    *,
    source: str | os.PathLike,
    dtype: str = "float32",
) -> None:
    """Write LoRA adapters alone, in the format that PEFT loads.

    On several hosts every process must call this; the first one writes.

    Args:
      path: the directory to make; it appears only when it is complete.
      arch: of the model that the adapters belong to.
      adapters: as `lora.init` gives them.
      source: the checkpoint they change, as PEFT shall look for it.
      dtype: of the file, "float32" or "bfloat16".

    Raises:
      ValueError: if `path` exists or `dtype` is neither.
    """
    path = pathlib.Path(path)
    check_target(path, dtype)
    shapes, arrays = {}, []
    for key, adapter in jax.tree_util.tree_leaves_with_path(
        {"layers": adapters}, is_leaf=lambda leaf: isinstance(leaf, lora.Adapter)
    ):
        row, names = _row(arch, key)
        periods, *_, rank = adapter.a.shape
        a_PRX = adapter.a.reshape(periods, -1, rank).swapaxes(1, 2)
        b_PXR = adapter.b.reshape(periods, rank, -1).swapaxes(1, 2)
        for part, stacked in (("lora_A", a_PRX), ("lora_B", b_PXR)):
            for period, name in enumerate(names):
                name = f"base_model.model.{name.replace('.weight', f'.{part}.weight')}"
                shapes[name] = stacked.shape[1:]
                arrays.append(stacked[period].astype(dtype))
    whole = (
        (name, distributed.to_host(x)) for name, x in zip(shapes, arrays, strict=True)
    )
    if jax.process_index() != 0:
        collections.deque(whole, maxlen=0)
        return

    targets = {name.split(".")[-3] for name in shapes}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(source),
        "r": rank,
        "lora_alpha": adapter.scale * rank,
        "target_modules": sorted(targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    with _appearing(path) as partial:
        with (partial / "adapter_model.safetensors").open("wb") as file:
            _write_file(file, shapes, whole, dtype)
        text = json.dumps(config, indent=2) + "\n"
        (partial / "adapter_config.json").write_text(text)


def check_target(path: pathlib.Path, dtype: str) -> None:
    """Refuse what `save` could not write, before anything takes long."""
    if dtype not in _FILE_DTYPES:
        raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(_FILE_DTYPES)}")
    if path.exists():
        raise ValueError(f"{path} exists; move it away or export somewhere else")


@contextlib.contextmanager
def _appearing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory to fill, which takes its name once that is done."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(path)


def _directory(path: str | os.PathLike, *patterns: str) -> pathlib.Path:
    """The checkpoint's directory; from the hub, with files of these patterns only."""
    if os.path.isdir(path):
        return pathlib.Path(path)
    import huggingface_hub  # Slow to import, and local checkpoints do without.

    try:
        found = huggingface_hub.snapshot_download(str(path), allow_patterns=patterns)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{str(path)!r} is neither a directory nor a model that the Hugging Face "
            f"hub let us download ({type(error).__name__}: {reason})"
        ) from error
    return pathlib.Path(found)


def _json(file: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object, but {type(found).__name__}")
    return found


def _config(directory: pathlib.Path) -> dict[str, Any]:
    if not (directory / "config.json").exists():
        raise ValueError(f"{directory} has no config.json, so it is no checkpoint")
    return _json(directory / "config.json")


def _exported_config(
    arch: Architecture, source: pathlib.Path | None, dtype: str
) -> dict[str, Any]:
    if source is None:
        return {**_made_config(arch), "dtype": dtype}
    raw = _config(source)
    found = families.from_huggingface(raw)
    if found != arch:
        raise ValueError(f"{source}: expected the config.json of {arch}, got {found}")
    # transformers 4 calls the field torch_dtype.
    return {**raw, ("torch_dtype" if "torch_dtype" in raw else "dtype"): dtype}


def _made_config(arch: Architecture) -> dict[str, Any]:
    """A config.json that describes `arch`, in the spelling of transformers 5.

    Raises:
      ValueError: if the family has no way to spell it.
    """
    raw = {
        "architectures": [_CLASSES[arch.family]],
        "model_type": arch.family,
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": arch.width,
        "intermediate_size": arch.mlp_width,
        "max_position_embeddings": arch.max_positions,
        "num_attention_heads": arch.heads,
        "num_hidden_layers": arch.layers,
        "num_key_value_heads": arch.kv_heads,
        "rms_norm_eps": arch.norm_eps,
        "tie_word_embeddings": arch.tied,
        "vocab_size": arch.vocab,
        **_spelled_layers(arch),
    }
    if arch.family == "qwen3":
        raw["head_dim"] = arch.head_width
    if families.from_huggingface(raw) != arch:
        raise ValueError(f"config.json of {arch.family} cannot describe {arch}")
    return raw


def _spelled_layers(arch: Architecture) -> dict[str, Any]:
    """The fields on kinds of layers."""
    names = {kind: families.layer_type(kind) for kind in arch.period}
    rope = {name: _spelled_rope(kind) for kind, name in names.items()}
    windows = {kind.window for kind in arch.period} - {None}
    fields: dict[str, Any] = {"layer_types": [names[kind] for kind in arch.kinds]}
    if arch.family == "olmo3":
        return fields | {
            "rope_parameters": rope,
            "sliding_window": max(windows, default=None),
        }
    flat = next(iter(rope.values()))
    # The older spelling of what transformers 4 would otherwise not find.
    older = {"rope_theta": flat["rope_theta"]}
    if flat["rope_type"] != "default":
        older["rope_scaling"] = flat
    return (
        fields
        | older
        | {
            "rope_parameters": flat,
            "sliding_window": max(windows, default=None),
            "use_sliding_window": bool(windows),
        }
    )


def _spelled_rope(kind: families.LayerKind) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": kind.rope_theta}
    if kind.yarn is None:
        return rope
    yarn = dataclasses.asdict(kind.yarn)
    yarn["original_max_position_embeddings"] = yarn.pop("original_positions")
    if yarn["truncate"]:
        del yarn["truncate"]
    return rope | yarn | {"rope_type": "yarn"}


def _name(key: Any) -> str:
    return jax.tree_util.keystr(key, simple=True, separator="/")


def _row(arch: Architecture, key: Any) -> tuple[Row, list[str]]:
    """A parameter's row, and the names of the tensors that it holds, in order."""
    parts = _name(key).split("/")
    table = TABLES[arch.family]
    if parts[0] != "layers":
        row = table["/".join(parts)]
        return row, [row.tensor]
    row = table["/".join(["layers", *parts[2:]])]
    numbers = range(int(parts[1]), arch.layers, len(arch.period))
    return row, [row.tensor.format(number) for number in numbers]


def _axes(row: Row) -> tuple[str, str]:
    """The axis letters of one tensor, in our order and in the stored order."""
    return row.path.rpartition("_")[2], row.axes.replace(" ", "")


def _stored_shape(row: Row, shape: tuple[int, ...]) -> tuple[int, ...]:
    ours, _ = _axes(row)
    # A parameter of the layers has a leading axis, the periods.
    size = dict(zip(ours, shape[-len(ours) :], strict=True))
    return tuple(math.prod(size[a] for a in group) for group in row.axes.split())


def stored_shapes(arch: Architecture, tree: Any) -> dict[str, tuple[int, ...]]:
    """Every tensor of the checkpoint, in the order in which we write them."""
    shapes = {}
    for key, leaf in jax.tree_util.tree_leaves_with_path(tree):
        row, names = _row(arch, key)
        shapes |= dict.fromkeys(names, _stored_shape(row, leaf.shape))
    return shapes


def _shardings(arch: Architecture, shapes: Any, mesh: Mesh) -> Any:
    """Where every parameter lives; an error if one cannot be cut evenly."""

    def where(key: Any, leaf: jax.ShapeDtypeStruct, axes: tuple) -> NamedSharding:
        sharding = distributed.sharding(mesh, *axes)
        for size, cut in zip(leaf.shape, sharding.spec, strict=True):
            cut = (cut,) if isinstance(cut, str) else cut or ()
            cut = [axis for axis in cut if mesh.shape[axis] > 1]
            if size % math.prod(mesh.shape[axis] for axis in cut):
                fields = " x ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in cut)
                raise ValueError(
                    f"{_name(key)} {leaf.shape}: {fields} does not divide its axis of "
                    f"{size}; lower {' or '.join(f'mesh.{axis}' for axis in cut)}"
                )
        return sharding

    axes = decoder.logical_axes(arch)
    return jax.tree_util.tree_map_with_path(where, shapes, axes)


def _open_all(directory: pathlib.Path) -> dict[str, Any]:
    """Every tensor of a checkpoint, as something that reads the slices asked for."""
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
        found = {name: opened.get_slice(name) for name in opened.keys()}
        if twice := stored.keys() & found.keys():
            raise ValueError(f"{file} holds {min(twice)}, as another file does")
        stored |= found
    return stored


def _files(directory: pathlib.Path) -> dict[pathlib.Path, str]:
    """The weight files, each with the name of one of its tensors."""
    single, index = directory / _WEIGHTS, directory / _INDEX
    if single.exists() or not index.exists():
        return {single: _EMBED}
    by_tensor = _json(index).get("weight_map")
    if not isinstance(by_tensor, dict) or not by_tensor:
        raise ValueError(f"{index} has no weight_map, which names the weight files")
    return {directory / file: tensor for tensor, file in by_tensor.items()}


def _check(stored: dict[str, Any], arch: Architecture, shapes: Any) -> None:
    """Raise unless `stored` holds exactly the tensors that `arch` needs."""
    expected = stored_shapes(arch, shapes)
    if arch.tied and {_HEAD, _EMBED} <= stored.keys():
        if not np.array_equal(stored.pop(_HEAD)[:], stored[_EMBED][:]):
            raise ValueError(
                f"{_HEAD} differs from {_EMBED}, though config.json says "
                "tie_word_embeddings=true"
            )
    for what, names in [
        ("is missing from the checkpoint", expected.keys() - stored.keys()),
        (f"has no place in {arch.family}", stored.keys() - expected.keys()),
    ]:
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ValueError(f"{min(names)}{more} {what}")
    for name, shape in expected.items():
        found = tuple(stored[name].get_shape())
        if found != shape:
            raise ValueError(
                f"{name}: config.json implies {shape}, the file has {found}"
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
    devices_of = collections.defaultdict(list)
    for device, index in where.addressable_devices_indices_map(shape).items():
        bounds = tuple(range(*s.indices(n)) for s, n in zip(index, shape, strict=True))
        devices_of[bounds].append(device)
    arrays = {}
    for bounds, devices in devices_of.items():
        block = _read_block(stored, arch, key, shape, bounds, dtype)
        placed = [jax.device_put(block, device) for device in devices]
        # Copies go on in the background, and keep what they copy.
        jax.block_until_ready(placed)
        arrays |= zip(devices, placed, strict=True)
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
    row, names = _row(arch, key)
    block = np.empty([len(b) for b in bounds], dtype)
    if len(bounds) == len(_axes(row)[0]):
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
    ours, letters = _axes(row)
    size = dict(zip(ours, shape, strict=True))
    bound = dict(zip(ours, bounds, strict=True))

    def cut(group: str) -> slice:
        # Only the first letter of a group is ever cut, so its entries are contiguous.
        inner = math.prod(size[a] for a in group[1:])
        return slice(bound[group[0]].start * inner, bound[group[0]].stop * inner)

    part = stored[name][tuple(cut(group) for group in row.axes.split())]
    if not np.isfinite(part).all():
        raise ValueError(f"{name} holds NaN or infinite weights")
    part = part.reshape([len(bound[a]) for a in letters])
    return part.transpose([letters.index(a) for a in ours])


def tensors(
    arch: Architecture, params: decoder.Params, dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a checkpoint by its name, one after the other on the host.

    Args:
      arch: the architecture of `params`.
      params: the decoder's parameters, or their gradient; on several hosts every
        process must take all tensors.
      dtype: of the tensors.

    Yields:
      Name, and the whole tensor in its stored layout, in the order of the header.
    """
    for key, leaf in jax.tree_util.tree_leaves_with_path(params):
        row, names = _row(arch, key)
        ours, letters = _axes(row)
        order = [ours.index(a) for a in letters]
        periods = (leaf[index] for index in range(len(names)))
        stacked = leaf.ndim > len(ours)
        for name, tensor in zip(names, periods if stacked else [leaf], strict=True):
            whole = distributed.to_host(tensor.astype(dtype))
            yield name, whole.transpose(order).reshape(_stored_shape(row, leaf.shape))


def _write_shards(
    folder: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    whole: Iterator[tuple[str, np.ndarray]],
    dtype: str,
    max_shard_bytes: int,
) -> None:
    """Write every tensor of `whole`, which come in the order of `shapes`."""
    shards = _shards(shapes, np.dtype(dtype).itemsize, max_shard_bytes)
    files = [_WEIGHTS]
    if len(shards) > 1:
        count = len(shards)
        files = [
            f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)
        ]
        index = {
            "metadata": {"total_size": sum(s for x in shards for s in x.values())},
            "weight_map": {
                name: file
                for file, shard in zip(files, shards, strict=True)
                for name in shard
            },
        }
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for name, shard in zip(files, shards, strict=True):
        with (folder / name).open("wb") as file:
            _write_file(
                file, {tensor: shapes[tensor] for tensor in shard}, whole, dtype
            )


def _write_file(
    file: BinaryIO,
    shapes: Mapping[str, tuple[int, ...]],
    whole: Iterator[tuple[str, np.ndarray]],
    dtype: str,
) -> None:
    """One safetensors file of the next tensors of `whole`."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _FILE_DTYPES[dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in itertools.islice(whole, len(shapes)):
        file.write(np.ascontiguousarray(tensor).view(np.uint8).data)


def _shards(
    shapes: Mapping[str, tuple[int, ...]], itemsize: int, most: int
) -> list[dict[str, int]]:
    """The bytes of every tensor, file by file."""
    shards = [{}]
    for name, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if shards[-1] and sum(shards[-1].values()) + size > most:
            shards.append({})
        shards[-1][name] = size
    return shards
