import dataclasses
import json
import math
import pathlib
import shutil

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sdpo_jax import distributed
from sdpo_jax.model import decoder, families, huggingface

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TIED, UNTIED = GOLDEN / "qwen3_tied", GOLDEN / "qwen3_untied"
ALL = sorted(file.parent for file in GOLDEN.glob("*/config.json"))
WEIGHTS = "model.safetensors"
EMBED = "model.embed_tokens.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"


def make_mesh(data=1, fsdp=1, tensor=1):
    shape = {"data": data, "fsdp": fsdp, "tensor": tensor}
    return distributed.make_mesh(shape, jax.devices()[: data * fsdp * tensor])


def load(path, mesh=None, **options):
    arch = huggingface.architecture(path)
    return arch, huggingface.load(path, arch, mesh or make_mesh(), **options)


def assert_same_bits(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of the tied checkpoint whose tensors a test may edit."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(TIED, folder)
    return folder


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


@pytest.mark.parametrize(
    "path, with_source",
    [*((path, False) for path in ALL), (TIED, True), (UNTIED, True)],
    ids=lambda value: getattr(value, "name", value),
)
def test_import_export_import_keeps_every_bit(tmp_path, path, with_source):
    arch, params = load(path)

    source = path if with_source else None
    huggingface.save(tmp_path / "out", arch, params, source=source, dtype="float32")

    arch_again, params_again = load(tmp_path / "out")
    assert arch_again == arch
    assert_same_bits(params_again, params)
    before = load_file(path / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        np.testing.assert_array_equal(before[name], after[name])


def test_bfloat16_checkpoint_is_read_and_written(tmp_path):
    arch, params = load(UNTIED)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)

    huggingface.save(tmp_path / "out", arch, params, source=UNTIED)

    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(x.dtype) for x in stored.values()} == {"bfloat16"}
    assert_same_bits(load(tmp_path / "out", dtype=jnp.bfloat16)[1], rounded)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), rounded)
    assert_same_bits(load(tmp_path / "out")[1], wide)


@pytest.mark.parametrize("path, field", [(TIED, "dtype"), (UNTIED, "torch_dtype")])
def test_export_copies_the_source_but_for_the_dtype(tmp_path, checkpoint, path, field):
    shutil.copyfile(path / "config.json", checkpoint / "config.json")
    (checkpoint / "tokenizer.json").write_text("{}")
    (checkpoint / "unrelated.bin").write_text("")
    arch, params = load(path)

    huggingface.save(tmp_path / "out", arch, params, source=checkpoint)

    raw = json.loads((path / "config.json").read_text())
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found == {**raw, field: "bfloat16"}
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_export_appears_only_when_complete(tmp_path, monkeypatch):
    arch, params = load(TIED)
    out = tmp_path / "new" / "out"

    def fail(_):
        raise RuntimeError("device lost")

    with monkeypatch.context() as patch:
        patch.setattr(distributed, "to_host", fail)
        with pytest.raises(RuntimeError, match="device lost"):
            huggingface.save(out, arch, params, source=None)
    assert not out.exists()
    huggingface.save(out, arch, params, source=None)

    assert [file.name for file in out.parent.iterdir()] == ["out"]


def random_architecture(family, r):
    """Any small model that a config.json of the family can describe."""
    kv_heads = int(r.integers(1, 4))
    heads, head_width = kv_heads * int(r.integers(1, 4)), 2 * int(r.integers(1, 5))
    layers = int(r.integers(1, 9))
    theta = float(r.choice([500.0, 1e4, 1e6]))
    yarn = None
    if r.random() < 0.5:
        factor, original = float(r.choice([2.0, 4.0])), int(r.choice([16, 64]))
        yarn = families.Yarn(factor, original, 1.1, 32.0, 1.0, True)
    kinds = [families.LayerKind(theta, yarn)] * layers
    window = int(r.integers(1, 20))
    if family == "olmo3":
        slides = families.LayerKind(theta, window=window)
        kinds = [slides if r.random() < 0.7 else kind for kind in kinds]
    elif r.random() < 0.5:
        first = int(r.integers(0, layers))
        slides = dataclasses.replace(kinds[0], window=window)
        kinds = kinds[:first] + [slides] * (layers - first)
    periods = [n for n in range(1, layers + 1) if layers % n == 0]
    period = next(n for n in periods if kinds == kinds[:n] * (layers // n))
    return families.Architecture(
        family=family,
        vocab=int(r.integers(2, 40)),
        width=int(r.integers(1, 20)) if family == "qwen3" else heads * head_width,
        mlp_width=int(r.integers(1, 20)),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_width=head_width,
        norm_eps=1e-6,
        **families.SWITCHES[family],
        tied=bool(r.random() < 0.5),
        max_positions=256,
        period=tuple(kinds[:period]),
    )


@pytest.mark.parametrize("family", families.SWITCHES)
def test_any_small_model_comes_back_as_it_was(family, tmp_path):
    r = np.random.default_rng(0)
    seen = set()
    for number in range(4):
        arch = random_architecture(family, r)
        shapes = jax.eval_shape(lambda a=arch: decoder.init(a, jax.random.key(0)))
        draw = lambda s: jnp.asarray(r.normal(size=s.shape), jnp.float32)
        params = jax.tree.map(draw, shapes)
        path = tmp_path / str(number)

        huggingface.save(path, arch, params, source=None, dtype="float32")

        arch_again, params_again = load(path)
        assert arch_again == arch
        assert_same_bits(params_again, params)
        seen.add((arch.tied, len(arch.period) > 1))
    assert len(seen) > 1


def test_export_in_shards_loads_as_one(tmp_path):
    arch, params = load(UNTIED)
    whole = load_file(UNTIED / "model.safetensors")
    most = 20_000  # Above the largest tensor, of 128 x 32 float32 numbers.

    huggingface.save(
        tmp_path / "out",
        arch,
        params,
        source=UNTIED,
        dtype="float32",
        max_shard_bytes=most,
    )

    index = json.loads((tmp_path / "out" / f"{WEIGHTS}.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == sorted(f.name for f in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3 and files[1] == f"model-00002-of-{len(files):05d}.safetensors"
    for file in files:
        shard = load_file(tmp_path / "out" / file)
        assert sum(x.nbytes for x in shard.values()) <= most
        for name, tensor in shard.items():
            assert index["weight_map"][name] == file
            np.testing.assert_array_equal(tensor, whole[name])
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in whole.values())
    assert_same_bits(load(tmp_path / "out")[1], params)


def test_export_rejects_what_it_cannot_write(tmp_path):
    arch, params = load(TIED)
    with pytest.raises(ValueError, match="exists; move it away"):
        huggingface.save(tmp_path, arch, params, source=None)
    with pytest.raises(ValueError, match="dtype='int8': expected one of float32"):
        huggingface.save(tmp_path / "out", arch, params, source=None, dtype="int8")
    with pytest.raises(ValueError, match="expected the config.json of .*tied=True"):
        huggingface.save(tmp_path / "out", arch, params, source=UNTIED)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_export_loads_in_transformers(tmp_path, path):
    torch = pytest.importorskip("torch")
    import transformers

    arch, params = load(path)
    huggingface.save(tmp_path / "out", arch, params, source=None, dtype="float32")
    golden = np.load(path / "expected.npz")

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")

    with torch.no_grad():
        ids_BT = torch.from_numpy(golden["ids_BT"].astype(np.int64))
        logits_BTV = model(ids_BT).logits.numpy()
    np.testing.assert_array_equal(logits_BTV, golden["logits_BTV"])


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
        ("[]", "holds no JSON object, but list"),
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

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    huggingface.architecture("Qwen/Qwen3-8B")
    assert asked == [("Qwen/Qwen3-8B", ("config.json",))]

    def offline(name, allow_patterns):
        raise huggingface_hub.errors.OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match="'Qwen/Qwen3-8B' is neither .* offline mode"):
        huggingface.architecture("Qwen/Qwen3-8B")
