import json
import math
import shutil

import huggingface_hub
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sdpo_jax import hub
from sdpo_jax.model import huggingface
from tests.model.checkpoints import (
    TIED,
    UNTIED,
    WEIGHTS,
    assert_same_bits,
    load,
    make_mesh,
)

EMBED = "model.embed_tokens.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"


def edit(folder, change):
    """Rewrite the weights of a checkpoint after `change(tensors)`."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def split(folder):
    """Cut a checkpoint's weights into two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in halves.items() for name in part}
    index = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)


class CountingFile:
    """A safetensors file that notes the bytes of every read, by tensor."""

    reads = {}

    def __init__(self, *args, **kwargs):
        self._file = safe_open(*args, **kwargs)
        self.keys = self._file.keys

    def get_slice(self, name):
        return CountingSlice(name, self._file.get_slice(name))


class CountingSlice:
    def __init__(self, name, stored):
        self._name, self._stored = name, stored
        self.get_shape, self.get_dtype = stored.get_shape, stored.get_dtype

    def __getitem__(self, index):
        part = self._stored[index]
        CountingFile.reads.setdefault(self._name, []).append(part.nbytes)
        return part


@pytest.mark.parametrize(
    "data, fsdp, tensor",
    [(8, 1, 1), (1, 8, 1), (1, 1, 2), (1, 2, 2), (2, 2, 2), (1, 4, 2)],
)
def test_each_device_reads_its_own_slices_only(monkeypatch, data, fsdp, tensor):
    whole = load(UNTIED)[1]
    CountingFile.reads = {}
    monkeypatch.setattr(huggingface, "safe_open", CountingFile)

    _, params = load(UNTIED, make_mesh(data, fsdp, tensor))

    assert_same_bits(params, whole)
    # Every byte is read exactly once, in as many reads as there are distinct slices.
    for name, tensor_NN in load_file(UNTIED / "model.safetensors").items():
        parts = 1 if tensor_NN.ndim == 1 else fsdp * tensor
        assert CountingFile.reads[name] == [tensor_NN.nbytes // parts] * parts


def test_checkpoint_in_several_files_equals_one_in_a_single_file(checkpoint):
    _, whole = load(checkpoint)
    split(checkpoint)

    assert_same_bits(load(checkpoint, make_mesh(fsdp=2))[1], whole)


def test_tied_head_stored_twice_is_dropped(checkpoint):
    _, whole = load(checkpoint)
    edit(checkpoint, lambda t: t.update({"lm_head.weight": t[EMBED]}))

    _, params = load(checkpoint)

    assert_same_bits(params, whole)
    assert "head" not in params


def test_tied_head_that_differs_is_rejected(checkpoint):
    edit(checkpoint, lambda t: t.update({"lm_head.weight": t[EMBED] + 1}))

    with pytest.raises(ValueError, match=f"lm_head.weight differs from {EMBED}"):
        load(checkpoint)


def spoil(tensors, value):
    tensors[QUERY][3, 5] = value


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(QUERY), f"{QUERY} is missing"),
        (lambda t: t.update({"lm_head.weight": t.pop(EMBED)}), f"{EMBED} is missing"),
        (lambda t: t.clear(), r"model\S+ \(and 34 more\) is missing"),
        (lambda t: t.update(extra=np.zeros(2)), "extra has no place in qwen3"),
        (
            lambda t: t.update({QUERY: t[QUERY].T.copy()}),
            rf"{QUERY}: config.json implies \(64, 32\), the file has \(32, 64\)",
        ),
        (
            lambda t: t.update({QUERY: t[QUERY].astype(np.int8)}),
            f"{QUERY}: I8 is not supported, only F32, BF16, F16",
        ),
        (lambda t: spoil(t, np.nan), f"{QUERY} holds NaN or infinite"),
        (lambda t: spoil(t, np.inf), f"{QUERY} holds NaN or infinite"),
    ],
)
def test_wrong_tensor_is_rejected_by_name(checkpoint, change, message):
    edit(checkpoint, change)

    with pytest.raises(ValueError, match=message):
        load(checkpoint)


def test_stored_rotary_frequencies_are_ignored(checkpoint):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(checkpoint, lambda t: t.update({name: np.ones(8, np.float32)}))

    load(checkpoint)


def test_missing_files_are_rejected_by_name(checkpoint):
    split(checkpoint)
    (checkpoint / "b.safetensors").unlink()
    with pytest.raises(ValueError, match="b.safetensors is missing; it holds model"):
        load(checkpoint)

    (checkpoint / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="model.safetensors is missing"):
        load(checkpoint)

    (checkpoint / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is not valid JSON"):
        load(checkpoint)

    (checkpoint / "config.json").unlink()
    with pytest.raises(ValueError, match="has no config.json"):
        load(checkpoint)


@pytest.mark.parametrize(
    "name, remedy",
    [
        (
            "pytorch_model.bin",
            "load it with transformers and torch, and save_pretrained",
        ),
        ("pytorch_model-00001-of-00002.bin", "load it with transformers and torch"),
        ("adapter_model.safetensors", "merge the adapters into their base model first"),
        ("model-Q4_K_M.gguf", "take the original model that it was made from"),
        ("consolidated.00.pth", "take the model in the layout of transformers"),
    ],
)
def test_weights_of_another_format_are_named_with_the_remedy(checkpoint, name, remedy):
    (checkpoint / WEIGHTS).rename(checkpoint / name)
    with pytest.raises(ValueError, match=f"holds {name}, but only .*; {remedy}"):
        load(checkpoint)

    # There, what is missing first is the config.
    (checkpoint / "config.json").unlink()
    with pytest.raises(ValueError, match=f"holds {name}, but only .*; {remedy}"):
        huggingface.architecture(checkpoint)

    with pytest.raises(
        ValueError, match=f"{name} is a file, no directory .*; {remedy}"
    ):
        huggingface.architecture(checkpoint / name)


def test_file_of_weights_is_no_checkpoint_by_itself():
    with pytest.raises(ValueError, match="is a file.*; give the directory that holds"):
        huggingface.architecture(TIED / WEIGHTS)


def test_fields_that_nobody_reads_are_named_once_in_the_log(checkpoint, caplog):
    huggingface.architecture(checkpoint)
    assert not caplog.records
    raw = json.loads((checkpoint / "config.json").read_text())
    raw |= {"my_note": "x", "auto_map": {"AutoConfig": "c.C"}, "unused": None}
    (checkpoint / "config.json").write_text(json.dumps(raw))

    huggingface.architecture(checkpoint)

    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().endswith("ignored here too: auto_map, my_note")


def test_tensor_in_two_files_is_rejected_by_name(checkpoint):
    split(checkpoint)
    parts = [load_file(checkpoint / f"{name}.safetensors") for name in "ab"]
    twice = min(parts[0])
    save_file(parts[1] | {twice: parts[0][twice]}, checkpoint / "b.safetensors")

    with pytest.raises(ValueError, match=f"safetensors holds {twice}, as another"):
        load(checkpoint)


@pytest.mark.parametrize(
    "index, message",
    [
        ("{}", "has no weight_map"),
        ('{"weight_map": []}', "has no weight_map"),
        ("[]", "must hold a JSON object, got list"),
        ("{", "is not valid JSON"),
    ],
)
def test_wrong_index_is_rejected_by_name(checkpoint, index, message):
    split(checkpoint)
    (checkpoint / f"{WEIGHTS}.index.json").write_text(index)

    with pytest.raises(ValueError, match=rf"index\.json {message}"):
        load(checkpoint)


def test_any_wrong_byte_of_a_header_is_rejected_or_harmless(checkpoint):
    file = checkpoint / WEIGHTS
    content = file.read_bytes()
    _, whole = load(checkpoint)
    header = 8 + int.from_bytes(content[:8], "little")
    rng = np.random.default_rng(0)
    rejected = 0
    for place in rng.integers(header, size=30):
        wrong = bytearray(content)
        wrong[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(wrong)
        try:
            assert_same_bits(load(checkpoint)[1], whole)
        except ValueError as error:
            assert WEIGHTS in str(error) or "model." in str(error)
            rejected += 1

    assert rejected > 20


@pytest.mark.parametrize("kept", [0.99, 0.01, 0.0])
def test_truncated_file_is_rejected_by_name(checkpoint, kept):
    file = checkpoint / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: math.floor(kept * len(content))])

    with pytest.raises(ValueError, match="model.safetensors is damaged or cut short"):
        load(checkpoint)


@pytest.mark.parametrize(
    "mesh, message",
    [
        ({"tensor": 4}, r"key_DNE \(3, 32, 2, 16\): mesh.tensor=4 .* of 2; lower"),
        ({"fsdp": 3}, r"table_VD \(128, 32\): mesh.fsdp=3 .* of 32; lower"),
    ],
)
def test_mesh_that_does_not_divide_is_rejected_before_reading(tmp_path, mesh, message):
    shutil.copyfile(TIED / "config.json", tmp_path / "config.json")

    with pytest.raises(ValueError, match=message):
        load(tmp_path, make_mesh(**mesh))


def test_hub_model_is_downloaded_or_named_in_the_error(monkeypatch):
    asked = []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(TIED)

    monkeypatch.setattr(hub, "is_absent", lambda: False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    huggingface.architecture("Qwen/Qwen3-8B")
    assert asked == [("Qwen/Qwen3-8B", ("config.json",))]

    def offline(name, allow_patterns):
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match="'Qwen/Qwen3-8B' is neither .* offline mode"):
        huggingface.architecture("Qwen/Qwen3-8B")
