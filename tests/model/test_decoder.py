import functools
import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdpo_jax import distributed
from sdpo_jax.batch import PAD
from sdpo_jax.model import cache as kv_cache
from sdpo_jax.model import decoder, families, huggingface

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CHECKPOINTS = ["qwen3_tied", "qwen3_untied"]
# Same float32 formulas, another order of summation: 5e-6 seen on logits of size 4.
TOLERANCE = 2e-4


def one_device_mesh():
    shape = {"data": 1, "fsdp": 1, "tensor": 1}
    return distributed.make_mesh(shape, jax.devices()[:1])


def load(name, mesh=None):
    arch = huggingface.architecture(GOLDEN / name)
    params = huggingface.load(GOLDEN / name, arch, mesh or one_device_mesh())
    return arch, params, np.load(GOLDEN / name / "expected.npz")


@functools.partial(jax.jit, static_argnames=("arch", "remat"))
def hidden(arch, params, ids_BT, remat=False):
    return decoder.hidden(arch, params, ids_BT, dtype=jnp.float32, remat=remat)


def logits(arch, params, ids_BT):
    ids_BT = jnp.asarray(ids_BT, jnp.int32)
    return hidden(arch, params, ids_BT) @ decoder.unembedding(arch, params)


@pytest.fixture(scope="module")
def tied():
    return load("qwen3_tied")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_equal_those_of_transformers(name):
    arch, params, golden = load(name)

    hidden_BTD = hidden(arch, params, golden["ids_BT"])
    logits_BTV = hidden_BTD @ decoder.unembedding(arch, params)

    np.testing.assert_allclose(hidden_BTD, golden["hidden_BTD"], atol=TOLERANCE)
    np.testing.assert_allclose(logits_BTV, golden["logits_BTV"], atol=TOLERANCE)
    np.testing.assert_array_equal(
        np.argmax(logits_BTV, -1), np.argmax(golden["logits_BTV"], -1)
    )


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_equal_a_live_run_of_transformers(name):
    torch = pytest.importorskip("torch")
    import transformers

    arch, params, _ = load(name)
    ids_BT = np.random.default_rng(0).integers(0, arch.vocab, (2, 64))
    model = transformers.Qwen3ForCausalLM.from_pretrained(GOLDEN / name)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids_BT)).logits.numpy()

    found = logits(arch, params, ids_BT)

    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    np.testing.assert_array_equal(np.argmax(found, -1), np.argmax(expected, -1))


def ragged(arch, rows, width, left, seed):
    """Token ids of rows of different lengths, padded on one side."""
    r = np.random.default_rng(seed)
    ids = r.integers(0, arch.vocab, (rows, width))
    length = r.integers(1, width + 1, (rows, 1))
    length[0] = width
    place = np.arange(width)[::-1] if left else np.arange(width)
    return np.where(place < length, ids, PAD)


@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.parametrize("remat", [False, True])
def test_attempts_that_share_a_prompt_are_read_as_if_each_had_its_own(
    tied, attempts, remat
):
    arch, params, _ = tied
    prompt_UP = ragged(arch, 3, 7, left=True, seed=0)
    response_BR = ragged(arch, 3 * attempts, 5, left=False, seed=1)
    exists_BR = response_BR >= 0
    prompt_BP = np.repeat(prompt_UP, attempts, axis=0)
    ids_BT = np.concatenate([prompt_BP, response_BR], axis=1)
    # Weights that differ, so that no error cancels in the gradient.
    weight_BRD = np.random.default_rng(2).normal(size=(*exists_BR.shape, arch.width))
    weight_BRD = jnp.asarray(weight_BRD * exists_BR[..., None], jnp.float32)
    dtype = jnp.dtype(jnp.float32)

    def shared(params):
        found = decoder.hidden_before(
            arch, params, prompt_UP, response_BR, dtype=dtype, remat=remat
        )
        return jnp.sum(found * weight_BRD), found

    def apart(params):
        found = decoder.hidden(arch, params, ids_BT, dtype=dtype)[:, 6:-1]
        return jnp.sum(found * weight_BRD), found

    measure = lambda f: jax.jit(jax.grad(f, has_aux=True))(params)
    (gradient, found), (expected_gradient, expected) = map(measure, (shared, apart))

    # A hidden state at padding predicts nothing.
    np.testing.assert_allclose(found[exists_BR], expected[exists_BR], atol=1e-5)
    for a, b in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_no_attempt_reads_another_one(tied):
    arch, params, _ = tied
    prompt_UP = ragged(arch, 2, 4, left=True, seed=0)
    response_BR = ragged(arch, 6, 5, left=False, seed=1)
    other_BR = response_BR.copy()
    other_BR[1] = (other_BR[1] + 1) % arch.vocab
    read = functools.partial(
        decoder.hidden_before, arch, params, prompt_UP, dtype=jnp.dtype(jnp.float32)
    )

    before, after = read(response_BR), read(other_BR)

    same = np.arange(6) != 1
    np.testing.assert_array_equal(before[same], after[same])
    assert not np.array_equal(before[1], after[1])


def test_logits_on_a_mesh_equal_those_of_transformers():
    mesh = distributed.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    arch, params, golden = load("qwen3_tied", mesh)
    ids_BT = np.repeat(golden["ids_BT"], 4, axis=0)

    with jax.set_mesh(mesh):
        ids_BT = distributed.to_devices(ids_BT, mesh)
        found = jax.jit(lambda p, ids: logits(arch, p, ids))(params, ids_BT)

    expected = np.repeat(golden["logits_BTV"], 4, axis=0)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_greedy_sampling_with_the_cache_equals_transformers(name):
    arch, params, golden = load(name)
    prompt, slots = 8, 64
    expected = golden["greedy_BT"]
    params = decoder.unstack(arch, params, jnp.float32)
    head_DV = decoder.unembedding(arch, params)

    @jax.jit
    def sample(ids_BP):
        last_BD, keys_values = decoder.prefill(arch, params, ids_BP)
        cache = kv_cache.start(keys_values, ids_BP >= 0, 1, slots)

        def step(carry, slot):
            last_BD, cache = carry
            ids_B = jnp.argmax(last_BD @ head_DV, axis=-1)
            return decoder.decode(arch, params, ids_B, cache, slot), ids_B

        return jax.lax.scan(step, (last_BD, cache), jnp.arange(slots))[1].T

    # Two tokens are never closer than 2e-3, so rounding cannot change the text.
    assert golden["smallest_margin"] > 5 * TOLERANCE
    np.testing.assert_array_equal(
        sample(jnp.asarray(expected[:, :prompt])), expected[:, prompt:]
    )


def test_cached_states_equal_uncached_states_for_groups_of_padded_prompts(tied):
    arch, params, golden = tied
    group, slots = 2, 6
    prompts = [golden["ids_BT"][0, :7], golden["ids_BT"][1, :4]]
    answers_BR = golden["ids_BT"][[0, 1, 2, 0], -slots:]
    prompt_UP = np.stack(
        [np.pad(p, (8 - len(p), 0), constant_values=PAD) for p in prompts]
    )
    unstacked = decoder.unstack(arch, params, jnp.float32)

    prefill = jax.jit(functools.partial(decoder.prefill, arch))
    last_UD, keys_values = prefill(unstacked, jnp.asarray(prompt_UP))
    # The cache starts too small and grows, as the sampler's does.
    cache = kv_cache.start(keys_values, jnp.asarray(prompt_UP >= 0), group, 2)
    cache = kv_cache.grow(cache, slots)
    decode = jax.jit(functools.partial(decoder.decode, arch, unstacked))
    states = []
    for slot in range(slots):
        state, cache = decode(answers_BR[:, slot], cache, jnp.asarray(slot))
        states.append(state)

    ids_BT = np.concatenate([np.repeat(prompt_UP, group, axis=0), answers_BR], axis=1)
    expected = hidden(arch, params, ids_BT)
    np.testing.assert_allclose(last_UD, expected[::group, 7], atol=1e-5)
    np.testing.assert_allclose(np.stack(states, 1), expected[:, 8:], atol=1e-5)


@pytest.mark.parametrize("left, right", [(6, 0), (0, 6), (2, 4)])
def test_padding_and_other_rows_change_nothing(tied, left, right):
    arch, params, golden = tied
    ids_BT = golden["ids_BT"]
    alone = hidden(arch, params, ids_BT[:1])
    padding = ((0, 0), (left, right))
    padded = np.pad(ids_BT, padding, constant_values=PAD)
    nothing = np.full_like(padded[:1], PAD)

    together = hidden(arch, params, np.concatenate([nothing, padded[::-1]]))

    time = slice(left, left + ids_BT.shape[1])
    np.testing.assert_allclose(together[-1, time], alone[0], atol=1e-5)
    assert np.isfinite(together).all()


def test_gradient_is_finite_under_padding_and_unchanged_by_remat(tied):
    arch, params, golden = tied
    ids_BT = np.maximum(golden["ids_BT"], 1)  # Row 0 is what padding reads.
    ids_BT = np.pad(ids_BT, ((1, 0), (4, 2)), constant_values=PAD)

    def loss(params, remat):
        states = hidden(arch, params, ids_BT, remat=remat)
        return jnp.sum(jnp.square(states), where=ids_BT[..., None] >= 0)

    gradient_of = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    value, gradient = gradient_of(params, False)
    value_remat, gradient_remat = gradient_of(params, True)

    assert value == value_remat
    chex.assert_tree_all_finite(gradient)
    # Recomputed in another order: rounding of sums over entries of size 100.
    chex.assert_trees_all_close(gradient, gradient_remat, rtol=1e-4, atol=1e-4)
    used = np.any(gradient["embed"]["table_VD"] != 0, axis=1)
    np.testing.assert_array_equal(np.flatnonzero(used), np.unique(ids_BT[ids_BT > 0]))


def test_random_parameters_have_the_shapes_of_a_checkpoint(tied):
    arch, params, _ = tied

    random = jax.eval_shape(lambda: decoder.init(arch, jax.random.key(0)))

    chex.assert_trees_all_equal_shapes_and_dtypes(random, params)


def raw_config(**changes):
    raw = json.loads((GOLDEN / "qwen3_tied" / "config.json").read_text())
    return {k: v for k, v in {**raw, **changes}.items() if v != "absent"}


def test_both_spellings_of_rope_are_read():
    older = raw_config(rope_parameters="absent", rope_theta=50_000)

    assert families.from_huggingface(older) == families.from_huggingface(raw_config())
    assert families.from_huggingface(older).period[0].rope_theta == 50_000.0


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"model_type": "gpt2"},
            "model_type='gpt2' is not supported; supported: qwen3",
        ),
        ({"model_type": "absent"}, "model_type=None"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"use_sliding_window": True}, "use_sliding_window=True"),
        ({"head_dim": "absent"}, "the field 'head_dim' is missing"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn'"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_theta"),
        ({"rope_parameters": "absent"}, "neither rope_parameters nor rope_theta"),
        (
            {"rope_parameters": "absent", "rope_scaling": {"type": "linear"}},
            "rope_type='linear'",
        ),
    ],
)
def test_unsupported_config_is_rejected_by_its_field(changes, message):
    with pytest.raises(ValueError, match=message):
        families.from_huggingface(raw_config(**changes))
