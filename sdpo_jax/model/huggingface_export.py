"""Writing of Hugging Face checkpoints, by the table in `tensor_table`."""

import collections
import contextlib
import dataclasses
import itertools
import json
import logging
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np

from sdpo_jax import distributed
from sdpo_jax.model import decoder, families, huggingface, lora
from sdpo_jax.model.change import Change
from sdpo_jax.model.families import Architecture

_CLASSES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
}
_log = logging.getLogger(__name__)
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


def save(
    path: str | os.PathLike,
    arch: Architecture,
    params: decoder.Params,
    *,
    source: str | os.PathLike | None,
    dtype: str = "bfloat16",
    max_shard_bytes: int = 5 * 10**9,
    compare: bool = False,
) -> Change | None:
    """Write a checkpoint that transformers and inference engines can load.

    Weights go to disk tensor by tensor, so the host holds one at a time. On several
    hosts every process must call this; the first writes.

    Args:
      path: the directory to make; it appears only when it is complete.
      arch: the architecture of `params`.
      params: the decoder's parameters.
      source: checkpoint whose config.json, generation_config.json and tokenizer are
        copied; with None, only a config.json made from `arch` is written.
      dtype: of the files, "float32" or "bfloat16".
      max_shard_bytes: of weights in one file; a tensor is never split.
      compare: whether to count how many weights differ from those of `source`.

    Returns:
      The counts on the first process if asked for, and if the weights of `source` are
      on this machine; None otherwise.

    Raises:
      ValueError: if `path` exists, `dtype` is not supported, or `source` has another
        architecture.
    """
    path = pathlib.Path(path)
    check_target(path, dtype)
    folder = (
        None
        if source is None
        else huggingface.directory_of(source, "config.json", *_COPIED)
    )
    config = _exported_config(arch, folder, dtype)
    gathered = tensors(arch, params, np.dtype("float32" if compare else dtype))
    if jax.process_index() != 0:
        # Gathering a tensor is a collective: every process must iterate over them all.
        collections.deque(gathered, maxlen=0)
        return None

    shapes = huggingface.stored_shapes(arch, params)
    change, base = Change(np.dtype(dtype)), None
    if compare:
        base = _base(folder, arch, params)
        gathered = change.rounded(gathered, base)
    with _appearing(path) as partial:
        _write_shards(partial, shapes, gathered, dtype, max_shard_bytes)
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for name in _COPIED:
            if folder is not None and (folder / name).exists():
                shutil.copyfile(folder / name, partial / name)
    return None if base is None else change


def _base(
    folder: pathlib.Path, arch: Architecture, params: decoder.Params
) -> dict[str, Any] | None:
    """The tensors of the base model, if they are there; they are not downloaded."""
    try:
        return huggingface.open_all(folder, arch, params)
    except ValueError as error:
        _log.warning(
            "how much of the change survives rounding was not counted, for want of the "
            "base model's weights: %s",
            error,
        )
        return None


def save_adapters(
    path: str | os.PathLike,
    arch: Architecture,
    adapters: Sequence[decoder.Params],
    *,
    source: str | os.PathLike,
    dtype: str = "float32",
) -> None:
    """Write LoRA adapters alone, in the format that PEFT loads.

    On several hosts every process must call this; the first writes.

    Args:
      path: the directory to make; it appears only when it is complete.
      arch: of the model that the adapters belong to.
      adapters: as `lora.init` returns them.
      source: the checkpoint that they change, as PEFT should look it up.
      dtype: of the file, "float32" or "bfloat16".

    Raises:
      ValueError: if `path` exists or `dtype` is not supported.
    """
    path = pathlib.Path(path)
    check_target(path, dtype)
    shapes, arrays = {}, []
    for key, adapter in jax.tree_util.tree_leaves_with_path(
        {"layers": adapters}, is_leaf=lambda leaf: isinstance(leaf, lora.Adapter)
    ):
        row, names = huggingface.row_of(arch, key)
        periods, *_, rank = adapter.a.shape
        # PEFT stores matrices with outputs before inputs: A as [rank, inputs] and B as
        # [outputs, rank]. Here P is the axis of periods, R the rank.
        a_PRX = adapter.a.reshape(periods, -1, rank).swapaxes(1, 2)
        b_PXR = adapter.b.reshape(periods, rank, -1).swapaxes(1, 2)
        for factor, stacked in (("lora_A", a_PRX), ("lora_B", b_PXR)):
            for period, name in enumerate(names):
                name = name.replace(".weight", f".{factor}.weight")
                name = f"base_model.model.{name}"
                shapes[name] = stacked.shape[1:]
                arrays.append(stacked[period].astype(dtype))
    gathered = (
        (name, distributed.to_host(x)) for name, x in zip(shapes, arrays, strict=True)
    )
    if jax.process_index() != 0:
        collections.deque(gathered, maxlen=0)
        return

    # "...self_attn.q_proj.lora_A.weight" adapts "q_proj".
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
            _write_file(file, shapes, gathered, dtype)
        text = json.dumps(config, indent=2) + "\n"
        (partial / "adapter_config.json").write_text(text)


def check_target(path: pathlib.Path, dtype: str) -> None:
    """Refuse what `save` could not write, before any slow work."""
    if dtype not in _FILE_DTYPES:
        raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(_FILE_DTYPES)}")
    if path.exists():
        raise ValueError(f"{path} exists; move it away or export somewhere else")


@contextlib.contextmanager
def _appearing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory to fill, which is renamed to `path` when it is complete."""
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    partial.rename(path)


def _exported_config(
    arch: Architecture, source: pathlib.Path | None, dtype: str
) -> dict[str, Any]:
    if source is None:
        return {**_made_config(arch), "dtype": dtype}
    raw = huggingface.config_of(source)
    described = families.from_huggingface(raw)
    if described != arch:
        raise ValueError(
            f"{source}: expected the config.json of {arch}, got {described}"
        )
    # transformers 4 calls the field torch_dtype.
    return {**raw, ("torch_dtype" if "torch_dtype" in raw else "dtype"): dtype}


def _made_config(arch: Architecture) -> dict[str, Any]:
    """A config.json that describes `arch`, in the fields of transformers 5.

    Raises:
      ValueError: if the family's fields cannot express it.
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
    if arch.family == "qwen3" or arch.head_width * arch.heads != arch.width:
        raw["head_dim"] = arch.head_width
    # Read back, because not every combination of kinds and switches has its fields.
    if families.from_huggingface(raw) != arch:
        raise ValueError(f"config.json of {arch.family} cannot describe {arch}")
    return raw


def _spelled_layers(arch: Architecture) -> dict[str, Any]:
    """The fields about kinds of layers."""
    names = {kind: families.layer_type(kind) for kind in arch.period}
    rope = {name: _spelled_rope(kind) for kind, name in names.items()}
    windows = {kind.window for kind in arch.period} - {None}
    fields: dict[str, Any] = {
        "layer_types": [names[kind] for kind in arch.kinds],
        "sliding_window": max(windows, default=None),
    }
    # Olmo3 has rotary fields per kind of layer, the other families one set for all.
    if arch.family == "olmo3":
        return fields | {"rope_parameters": rope}
    flat = next(iter(rope.values()))
    # transformers 4 looks for these names instead of rope_parameters.
    older = {"rope_theta": flat["rope_theta"]}
    if flat["rope_type"] != "default":
        older["rope_scaling"] = flat
    older["rope_parameters"] = flat
    if not arch.family.startswith("qwen"):
        return older
    return fields | older | {"use_sliding_window": bool(windows)}


def _spelled_rope(kind: families.LayerKind) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": kind.rope_theta}
    scaling = kind.yarn or kind.llama3
    if scaling is None:
        return rope
    fields = dataclasses.asdict(scaling)
    fields["original_max_position_embeddings"] = fields.pop("original_positions")
    # True is the default of transformers.
    if fields.get("truncate"):
        del fields["truncate"]
    return rope | fields | {"rope_type": "yarn" if kind.yarn else "llama3"}


def tensors(
    arch: Architecture, params: decoder.Params, dtype: np.dtype
) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of a checkpoint by its name, gathered to the host one at a time.

    Args:
      arch: the architecture of `params`.
      params: the decoder's parameters, or their gradient; on several hosts every
        process must iterate over all tensors.
      dtype: of the tensors.

    Yields:
      Name, and the complete tensor in its stored layout, in the order of the header.
    """
    for key, leaf in jax.tree_util.tree_leaves_with_path(params):
        row, names = huggingface.row_of(arch, key)
        ours, letters = huggingface.axes_of(row)
        order = [ours.index(a) for a in letters]
        shape = huggingface.stored_shape(row, leaf.shape)
        # Lazily, so that devices too hold the slice of one period at a time.
        periods = (leaf[index] for index in range(len(names)))
        stacked = leaf.ndim > len(ours)
        for name, tensor in zip(names, periods if stacked else [leaf], strict=True):
            # Cast on the devices, so that fewer bytes are moved for a narrower dtype.
            gathered = distributed.to_host(tensor.astype(dtype))
            yield name, gathered.transpose(order).reshape(shape)


def _write_shards(
    folder: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    gathered: Iterator[tuple[str, np.ndarray]],
    dtype: str,
    max_shard_bytes: int,
) -> None:
    """Write every tensor of `gathered`, which yields them in the order of `shapes`."""
    shards = _shards(shapes, np.dtype(dtype).itemsize, max_shard_bytes)
    files = [huggingface.WEIGHTS]
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
        (folder / huggingface.INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for name, shard in zip(files, shards, strict=True):
        with (folder / name).open("wb") as file:
            _write_file(
                file, {tensor: shapes[tensor] for tensor in shard}, gathered, dtype
            )


def _write_file(
    file: BinaryIO,
    shapes: Mapping[str, tuple[int, ...]],
    gathered: Iterator[tuple[str, np.ndarray]],
    dtype: str,
) -> None:
    """Write one safetensors file of the next tensors of `gathered`.

    safetensors' own writer takes a dictionary of all tensors; here the header follows
    from shapes alone, so that tensors can be written one by one.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _FILE_DTYPES[dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    # The format: the header's length in 8 bytes, the header, then tensors end to end;
    # spaces align them to 8 bytes.
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, tensor in itertools.islice(gathered, len(shapes)):
        # As bytes, because NumPy's buffers have no bfloat16.
        file.write(np.ascontiguousarray(tensor).view(np.uint8).data)


def _shards(
    shapes: Mapping[str, tuple[int, ...]], itemsize: int, most: int
) -> list[dict[str, int]]:
    """The tensors of each file, with their sizes in bytes."""
    shards = [{}]
    for name, shape in shapes.items():
        size = math.prod(shape) * itemsize
        if shards[-1] and sum(shards[-1].values()) + size > most:
            shards.append({})
        shards[-1][name] = size
    return shards
