import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from sdpo_jax import distributed
from sdpo_jax.model import change, decoder, families, huggingface_export
from tests.model.checkpoints import ALL, TIED, UNTIED, WEIGHTS, assert_same_bits, load


@pytest.mark.parametrize(
    "path, with_source",
    [*((path, False) for path in ALL), (TIED, True), (UNTIED, True)],
    ids=lambda value: getattr(value, "name", value),
)
def test_import_export_import_keeps_every_bit(tmp_path, path, with_source):
    arch, params = load(path)

    source = path if with_source else None
    huggingface_export.save(
        tmp_path / "out", arch, params, source=source, dtype="float32"
    )

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

    huggingface_export.save(tmp_path / "out", arch, params, source=UNTIED)

    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(x.dtype) for x in stored.values()} == {"bfloat16"}
    assert_same_bits(load(tmp_path / "out", dtype=jnp.bfloat16)[1], rounded)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), rounded)
    assert_same_bits(load(tmp_path / "out")[1], wide)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_comparison_with_the_source_changes_no_bit_of_the_files(tmp_path, dtype):
    arch, params = load(UNTIED)
    params = jax.tree.map(lambda x: x * jnp.float32(1.003), params)

    for name, compare in (("alone", False), ("compared", True)):
        told = huggingface_export.save(
            tmp_path / name, arch, params, source=UNTIED, dtype=dtype, compare=compare
        )
        assert (told is None) == (not compare)

    files = [(tmp_path / name / WEIGHTS).read_bytes() for name in ("alone", "compared")]
    assert files[0] == files[1]
    assert told.weights == sum(x.size for x in jax.tree.leaves(params))
    assert 0 < told.kept <= told.changed


def test_weights_are_counted_in_parts_as_at_once(tmp_path, monkeypatch):
    arch, params = load(UNTIED)
    params = jax.tree.map(lambda x: x + (x > 0).astype(x.dtype), params)
    count = lambda name: huggingface_export.save(
        tmp_path / name, arch, params, source=UNTIED, compare=True
    )
    whole = count("whole")

    monkeypatch.setattr(change, "_PART", 100)

    assert count("parts") == whole
    positive = sum((x > 0).sum() for x in load_file(UNTIED / WEIGHTS).values())
    assert whole.changed == whole.kept == positive


@pytest.mark.parametrize("path, field", [(TIED, "dtype"), (UNTIED, "torch_dtype")])
def test_export_copies_the_source_but_for_the_dtype(tmp_path, checkpoint, path, field):
    shutil.copyfile(path / "config.json", checkpoint / "config.json")
    (checkpoint / "tokenizer.json").write_text("{}")
    (checkpoint / "unrelated.bin").write_text("")
    arch, params = load(path)

    huggingface_export.save(tmp_path / "out", arch, params, source=checkpoint)

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
            huggingface_export.save(out, arch, params, source=None)
    assert not out.exists()
    huggingface_export.save(out, arch, params, source=None)

    assert [file.name for file in out.parent.iterdir()] == ["out"]


def random_architecture(family, r):
    """Any small model that a config.json of the family can describe."""
    kv_heads = int(r.integers(1, 4))
    heads, head_width = kv_heads * int(r.integers(1, 4)), 2 * int(r.integers(1, 5))
    layers = int(r.integers(1, 9))
    theta = float(r.choice([500.0, 1e4, 1e6]))
    yarn = llama3 = None
    if r.random() < 0.5:
        factor, original = float(r.choice([2.0, 4.0])), int(r.choice([16, 64]))
        if family == "llama":
            llama3 = families.Llama3(factor, original, 1.0, 4.0)
        else:
            yarn = families.Yarn(factor, original, 1.1, 32.0, 1.0, True)
    kinds = [families.LayerKind(theta, yarn, llama3=llama3)] * layers
    window = int(r.integers(1, 20))
    if family == "olmo3":
        slides = families.LayerKind(theta, window=window)
        kinds = [slides if r.random() < 0.7 else kind for kind in kinds]
    elif family in ("qwen2", "qwen3") and r.random() < 0.5:
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

        huggingface_export.save(path, arch, params, source=None, dtype="float32")

        arch_again, params_again = load(path)
        assert arch_again == arch
        assert_same_bits(params_again, params)
        seen.add((arch.tied, len(arch.period) > 1))
    assert len(seen) > 1


def test_export_in_shards_loads_as_one(tmp_path):
    arch, params = load(UNTIED)
    whole = load_file(UNTIED / "model.safetensors")
    most = 20_000  # Above the largest tensor, of 128 x 32 float32 numbers.

    huggingface_export.save(
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
        huggingface_export.save(tmp_path, arch, params, source=None)
    with pytest.raises(ValueError, match="dtype='int8': expected one of float32"):
        huggingface_export.save(
            tmp_path / "out", arch, params, source=None, dtype="int8"
        )
    with pytest.raises(ValueError, match="expected the config.json of .*tied=True"):
        huggingface_export.save(tmp_path / "out", arch, params, source=UNTIED)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.name)
def test_export_loads_in_transformers(tmp_path, path):
    torch = pytest.importorskip("torch")
    import transformers

    arch, params = load(path)
    huggingface_export.save(
        tmp_path / "out", arch, params, source=None, dtype="float32"
    )
    golden = np.load(path / "expected.npz")

    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")

    with torch.no_grad():
        ids_BT = torch.from_numpy(golden["ids_BT"].astype(np.int64))
        logits_BTV = model(ids_BT).logits.numpy()
    np.testing.assert_array_equal(logits_BTV, golden["logits_BTV"])
