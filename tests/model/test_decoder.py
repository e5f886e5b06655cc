import dataclasses
import functools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdpo_jax import distributed
from sdpo_jax.batch import PAD
from sdpo_jax.model import cache as kv_cache
from sdpo_jax.model import decoder, huggingface, huggingface_export
from tests import compiling

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CHECKPOINTS = [
    "qwen3_tied",
    "qwen3_untied",
    "qwen2_tied",
    "qwen2_sliding",
    "olmo3_grouped",
    "olmo3_multihead",
    "llama_tied",
    "llama_untied",
    "olmo2_tied",
    "olmo2_grouped",
]
SECOND = ("qwen3_untied", "qwen2_tied", "olmo3_multihead", "llama_untied", "olmo2_tied")


def all_but_slow(slow):
    marked = lambda name: pytest.param(name, marks=pytest.mark.slow)
    return [marked(name) if name in slow else name for name in CHECKPOINTS]


# For what takes long to compile: one of each family in every test. The cache knows no
# family, only windows.
LONG = all_but_slow(SECOND)
CACHED = all_but_slow((*SECOND, "llama_tied", "olmo2_grouped"))
ROUNDED = all_but_slow(("llama_untied", "olmo2_tied"))
# Same float32 formulas, another order of summation.
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


@pytest.fixture(scope="module", params=["qwen2_sliding", "olmo3_grouped"])
def golden_model(request):
    return load(request.param)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_equal_those_of_transformers(name):
    arch, params, golden = load(name)

    hidden_BTD = hidden(arch, params, golden["ids_BT"])
    logits_BTV = hidden_BTD @ decoder.unembedding(arch, params)

    print(f"{name}: logits differ by {largest(logits_BTV - golden['logits_BTV']):.1e}")
    np.testing.assert_allclose(hidden_BTD, golden["hidden_BTD"], atol=TOLERANCE)
    np.testing.assert_allclose(logits_BTV, golden["logits_BTV"], atol=TOLERANCE)
    np.testing.assert_array_equal(
        np.argmax(logits_BTV, -1), np.argmax(golden["logits_BTV"], -1)
    )


@pytest.mark.parametrize("name", ROUNDED)
def test_bfloat16_moves_logits_as_far_as_in_transformers(name):
    # Both round every activation to 8 bits, in other places: neither is the reference,
    # so the yardstick is how far each is from float32.
    arch, params, golden = load(name)
    dtype = jnp.dtype(jnp.bfloat16)
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    read = functools.partial(decoder.hidden, arch, dtype=dtype)

    hidden_BTD = jax.jit(read)(params, jnp.asarray(golden["ids_BT"]))
    logits_BTV = hidden_BTD @ decoder.unembedding(arch, params)

    error = np.abs(logits_BTV.astype(np.float32) - golden["logits_BTV"]).mean()
    print(f"{name}: bfloat16 {error:.1e}, transformers {golden['bfloat16_error']:.1e}")
    assert 0 < error < 1.25 * golden["bfloat16_error"]


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_equal_a_live_run_of_transformers(name):
    torch = pytest.importorskip("torch")
    import transformers

    arch, params, _ = load(name)
    ids_BT = np.random.default_rng(0).integers(0, arch.vocab, (2, 128))
    model = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / name)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids_BT)).logits.numpy()

    found = logits(arch, params, ids_BT)

    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    np.testing.assert_array_equal(np.argmax(found, -1), np.argmax(expected, -1))


@pytest.mark.parametrize("name", LONG)
def test_gradient_of_the_cross_entropy_equals_that_of_transformers(name):
    arch, params, golden = load(name)
    ids_BT = jnp.asarray(golden["ids_BT"])

    def cross_entropy(params):
        logp_BTV = jax.nn.log_softmax(logits(arch, params, ids_BT[:, :-1]))
        return -jnp.mean(jnp.take_along_axis(logp_BTV, ids_BT[:, 1:, None], axis=-1))

    loss, gradient = jax.jit(jax.value_and_grad(cross_entropy))(params)

    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    expected = {k: v for k, v in golden.items() if k.startswith("gradient/")}
    tensors = huggingface_export.tensors(arch, gradient, np.dtype(np.float32))
    errors = {}
    for tensor, found in tensors:
        wanted = expected.pop(f"gradient/{tensor}")
        errors[tensor] = largest(found - wanted) / largest(wanted)
    print(
        f"{name}: gradients differ by {max(errors.values()):.1e} of the largest entry"
    )
    assert max(errors.values()) < 1e-3, max(errors, key=errors.get)
    assert not expected


def largest(x):
    return np.abs(x).max()


def ragged(arch, rows, width, left, seed):
    """Token ids of rows of different lengths, padded on one side."""
    r = np.random.default_rng(seed)
    ids = r.integers(0, arch.vocab, (rows, width))
    length = r.integers(1, width + 1, (rows, 1))
    length[0] = width
    place = np.arange(width)[::-1] if left else np.arange(width)
    return np.where(place < length, ids, PAD)


@pytest.mark.parametrize(
    "attempts, remat", [pytest.param(1, False, marks=pytest.mark.slow), (3, True)]
)
def test_attempts_that_share_a_prompt_are_read_as_if_each_had_its_own(
    golden_model, attempts, remat
):
    arch, params, _ = golden_model
    prompt_UP = ragged(arch, 3, 7, left=True, seed=0)
    response_BR = ragged(arch, 3 * attempts, 9, left=False, seed=1)
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


def test_no_attempt_reads_another_one(golden_model):
    arch, params, _ = golden_model
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


@pytest.mark.parametrize("name", CACHED)
def test_greedy_sampling_with_the_cache_equals_transformers(name):
    arch, params, golden = load(name)
    prompt, slots = 8, 64
    expected = golden["greedy_BT"]
    params = decoder.unstack(arch, params, jnp.float32)
    head_DV = decoder.unembedding(arch, params)

    @jax.jit
    def sample(ids_BP):
        last_BD, keys_values = decoder.prefill(arch, params, ids_BP)
        windows = [kind.window for kind in arch.kinds]
        cache = kv_cache.start(keys_values, windows, ids_BP >= 0, 1, slots)

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


def test_cached_states_equal_uncached_states_for_groups_of_padded_prompts(golden_model):
    arch, params, golden = golden_model
    group, slots = 2, 14  # More than twice a sliding window.
    prompts = [golden["ids_BT"][0, :7], golden["ids_BT"][1, :4]]
    answers_BR = golden["ids_BT"][[0, 1, 2, 0], -slots:]
    prompt_UP = np.stack(
        [np.pad(p, (8 - len(p), 0), constant_values=PAD) for p in prompts]
    )
    unstacked = decoder.unstack(arch, params, jnp.float32)

    prefill = jax.jit(functools.partial(decoder.prefill, arch))
    last_UD, keys_values = prefill(unstacked, jnp.asarray(prompt_UP))
    # The cache starts too small and grows, as the sampler's does.
    windows = [kind.window for kind in arch.kinds]
    exists_UP = jnp.asarray(prompt_UP >= 0)
    cache = kv_cache.start(keys_values, windows, exists_UP, group, 2)
    cache = kv_cache.grow(cache, slots)
    decode = jax.jit(functools.partial(decoder.decode, arch, unstacked))
    states = []
    for token in range(slots):
        state, cache = decode(answers_BR[:, token], cache, jnp.asarray(token))
        states.append(state)

    ids_BT = np.concatenate([np.repeat(prompt_UP, group, axis=0), answers_BR], axis=1)
    expected = hidden(arch, params, ids_BT)
    np.testing.assert_allclose(last_UD, expected[::group, 7], atol=1e-5)
    np.testing.assert_allclose(np.stack(states, 1), expected[:, 8:], atol=1e-5)


@pytest.mark.parametrize("left, right", [(6, 0), (0, 6), (2, 4)])
def test_padding_and_other_rows_change_nothing(golden_model, left, right):
    arch, params, golden = golden_model
    ids_BT = golden["ids_BT"]
    alone = hidden(arch, params, ids_BT[:1])
    padding = ((0, 0), (left, right))
    padded = np.pad(ids_BT, padding, constant_values=PAD)
    nothing = np.full_like(padded[:1], PAD)

    together = hidden(arch, params, np.concatenate([nothing, padded[::-1]]))

    time = slice(left, left + ids_BT.shape[1])
    np.testing.assert_allclose(together[-1, time], alone[0], atol=1e-5)
    assert np.isfinite(together).all()


def test_gradient_is_finite_under_padding_and_unchanged_by_remat(golden_model):
    arch, params, golden = golden_model
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


@pytest.mark.slow
def test_32768_tokens_work_in_training_and_in_the_cache():
    # A window longer than a block of queries, then full attention with YaRN.
    arch = huggingface.architecture(GOLDEN / "olmo3_grouped")
    slide = lambda kind: dataclasses.replace(kind, window=kind.window and 1000)
    period = tuple(map(slide, arch.period))
    arch = dataclasses.replace(
        arch, layers=2, heads=2, kv_heads=1, max_positions=2**15, period=period[-2:]
    )
    params = decoder.init(arch, jax.random.key(1))
    time, last = 2**15, 4
    ids_1T = np.random.default_rng(0).integers(arch.vocab, size=(1, time))
    ids_1T = jnp.asarray(ids_1T, jnp.int32)

    def loss(params):
        states_1TD = decoder.hidden(arch, params, ids_1T, dtype=jnp.float32, remat=True)
        return jnp.mean(jnp.square(states_1TD[:, -8:])), states_1TD

    jit = functools.partial(jax.jit, compiler_options=compiling.WELL)
    gradient, states_1TD = jit(jax.grad(loss, has_aux=True))(params)

    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))
    # The embedding of the first token that full attention carries to the end.
    moved_D = gradient["embed"]["table_VD"][ids_1T[0, 0]]
    assert np.any(moved_D != 0)
    weights = decoder.unstack(arch, params, jnp.float32)
    prompt_1P = ids_1T[:, : time - last]
    state_1D, kept = jit(functools.partial(decoder.prefill, arch))(weights, prompt_1P)
    windows = [kind.window for kind in arch.kinds]
    cache = kv_cache.start(kept, windows, prompt_1P >= 0, 1, last)
    decode = jax.jit(functools.partial(decoder.decode, arch))
    found = [state_1D]
    for token in range(last):
        token_1 = ids_1T[:, time - last + token]
        state_1D, cache = decode(weights, token_1, cache, jnp.int32(token))
        found.append(state_1D)
    np.testing.assert_allclose(
        jnp.stack(found, axis=1), states_1TD[:, -last - 1 :], rtol=0, atol=1e-5
    )


def test_random_parameters_have_the_shapes_of_a_checkpoint(golden_model):
    arch, params, _ = golden_model

    random = jax.eval_shape(lambda: decoder.init(arch, jax.random.key(0)))

    chex.assert_trees_all_equal_shapes_and_dtypes(random, params)
