import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from sdpo_jax import distributed
from sdpo_jax.batch import PAD
from sdpo_jax.model import cache as kv_cache
from sdpo_jax.model import decoder, huggingface, huggingface_export, lora

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
BASES = ["qwen3_tied", "qwen2_sliding", "olmo3_grouped"]
RANK, ALPHA = 3, 6.0


def load(name):
    mesh = distributed.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    arch = huggingface.architecture(GOLDEN / name)
    params = huggingface.load(GOLDEN / name, arch, mesh)
    return arch, params, jnp.asarray(np.load(GOLDEN / name / "expected.npz")["ids_BT"])


def adapters_of(arch, targets=tuple(lora.TARGETS), seed=0, noise=0.1):
    """Adapters whose second factor is no longer zero."""
    adapters = lora.init(arch, RANK, ALPHA, targets, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(adapters)
    r = np.random.default_rng(seed)
    move = lambda x: x + jnp.asarray(noise * r.normal(size=x.shape), jnp.float32)
    return jax.tree.unflatten(tree, list(map(move, leaves)))


def hidden(arch, params, ids_BT):
    read = lambda p: decoder.hidden(arch, p, ids_BT, dtype=jnp.dtype(jnp.float32))
    return jax.jit(read)(params)


def test_new_adapters_change_nothing():
    arch, params, ids_BT = load("olmo3_grouped")
    adapters = lora.init(arch, RANK, ALPHA, tuple(lora.TARGETS), jax.random.key(0))

    found = hidden(arch, params | {"adapters": adapters}, ids_BT)

    np.testing.assert_array_equal(found, hidden(arch, params, ids_BT))
    assert all(np.any(x.a != 0) for x in leaves(adapters))


def leaves(adapters):
    return jax.tree.leaves(adapters, is_leaf=lambda x: isinstance(x, lora.Adapter))


@pytest.mark.parametrize("name", ["qwen2_sliding", "olmo3_grouped"])
def test_merged_weights_equal_weights_and_adapters(name):
    arch, params, ids_BT = load(name)
    adapters = adapters_of(arch)

    apart = hidden(arch, params | {"adapters": adapters}, ids_BT)

    together = hidden(arch, lora.merge(params, adapters), ids_BT)
    np.testing.assert_allclose(apart, together, atol=2e-5)
    assert np.abs(apart - hidden(arch, params, ids_BT)).max() > 0.1


def test_gradient_of_adapters_is_that_through_merged_weights():
    arch, params, ids_BT = load("qwen3_tied")
    adapters = adapters_of(arch)
    weight_BTD = jax.random.normal(jax.random.key(1), (*ids_BT.shape, arch.width))
    loss = lambda params: jnp.sum(weight_BTD * hidden(arch, params, ids_BT))

    apart = jax.grad(lambda a: loss(params | {"adapters": a}))(adapters)
    merged = jax.grad(lambda a: loss(lora.merge(params, a)))(adapters)

    for x, y in zip(jax.tree.leaves(apart), jax.tree.leaves(merged), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * np.abs(y).max())


def test_cached_states_with_adapters_equal_uncached_ones():
    arch, params, ids_BT = load("qwen2_sliding")
    adapted = params | {"adapters": adapters_of(arch)}
    unstacked = decoder.unstack(arch, adapted, jnp.dtype(jnp.float32))
    prompt, slots = 8, 12
    prefill = jax.jit(functools.partial(decoder.prefill, arch))
    last_BD, keys_values = prefill(unstacked, ids_BT[:, :prompt])
    windows = [kind.window for kind in arch.kinds]
    exists_BP = ids_BT[:, :prompt] != PAD
    cache = kv_cache.start(keys_values, windows, exists_BP, 1, slots)
    decode = jax.jit(
        lambda ids, cache, t: decoder.decode(arch, unstacked, ids, cache, t)
    )
    states = [last_BD]
    for token in range(slots):
        state, cache = decode(ids_BT[:, prompt + token], cache, jnp.asarray(token))
        states.append(state)

    expected = hidden(arch, adapted, ids_BT[:, : prompt + slots])
    np.testing.assert_allclose(
        np.stack(states, axis=1), expected[:, prompt - 1 :], atol=1e-5
    )


def test_axes_are_those_of_the_adapted_weights():
    arch = huggingface.architecture(GOLDEN / "qwen3_tied")
    targets = ("q_proj", "o_proj", "down_proj")

    (axes,) = lora.logical_axes(arch, RANK, ALPHA, targets)

    query, out = axes["attention"]["query_DHE"], axes["attention"]["out_HED"]
    assert query.a == (None, "embed", None)
    assert query.b == (None, None, "heads", None)
    assert out.a == (None, "heads", None, None)
    assert out.b == (None, None, "embed")
    assert axes["mlp"]["down_FD"].b == (None, None, "embed")
    shapes = lora.init(arch, RANK, ALPHA, targets, jax.random.key(0))
    is_axes = lambda leaf: isinstance(leaf, tuple)
    fits = lambda names, x: len(names) == x.ndim
    assert all(jax.tree.leaves(jax.tree.map(fits, [axes], shapes, is_leaf=is_axes)))


@pytest.mark.parametrize("name", BASES)
def test_peft_loads_the_adapters_and_gives_the_same_logits(name, tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    import transformers

    arch, params, ids_BT = load(name)
    adapters = adapters_of(arch)
    huggingface_export.save_adapters(
        tmp_path / "out", arch, adapters, source=GOLDEN / name, dtype="float32"
    )

    base = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / name)
    model = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    with torch.no_grad():
        ids = torch.from_numpy(np.array(ids_BT, np.int64))
        expected = model(ids).logits.numpy()

    adapted = params | {"adapters": adapters}
    found = hidden(arch, adapted, ids_BT) @ decoder.unembedding(arch, params)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_adapters_are_written_under_the_names_of_peft(tmp_path):
    arch, *_ = load("olmo3_grouped")
    adapters = adapters_of(arch, ("q_proj", "down_proj"))

    huggingface_export.save_adapters(
        tmp_path / "out", arch, adapters, source="allenai/Olmo-3-7B", dtype="float32"
    )

    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["r"] == RANK and settings["lora_alpha"] == ALPHA
    assert settings["target_modules"] == ["down_proj", "q_proj"]
    assert settings["base_model_name_or_path"] == "allenai/Olmo-3-7B"
    written = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(written) == 8 * 2 * 2
    # Layer 5 is the second one of its kind.
    down = adapters[5 % 4]["mlp"]["down_FD"]
    name = "base_model.model.model.layers.5.mlp.down_proj.{}.weight"
    np.testing.assert_array_equal(written[name.format("lora_A")], down.a[1].T)
    np.testing.assert_array_equal(written[name.format("lora_B")], down.b[1].T)
