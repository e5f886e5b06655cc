import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu import splash_attention

from sdpo_jax import distributed
from sdpo_jax.model import causal_attention, families

# Left padding, none, right padding, and a row of padding only.
PADDED = [(3, 0), (0, 0), (0, 5), (300, 0)]
KEYS, QUERIES, HEADS, KV_HEADS, WIDTH = 300, 140, 4, 2, 8
WINDOWS = [None, 7, 150]


def reference(q_BTHE, k_BSNE, v_BSNE, exists_BS, window):
    """One query at a time, in float64; padding gets zeros."""
    q, k, v = (np.asarray(x, np.float64) for x in (q_BTHE, k_BSNE, v_BSNE))
    batch, time, heads, width = q.shape
    offset, group = k.shape[1] - time, heads // k.shape[2]
    out = np.zeros(q.shape)
    for row, query, head in np.ndindex(batch, time, heads):
        at = offset + query
        if not exists_BS[row, at]:
            continue
        first = 0 if window is None else max(at - window + 1, 0)
        read = [s for s in range(first, at + 1) if exists_BS[row, s]]
        scores = k[row, read, head // group] @ q[row, query, head] * width**-0.5
        weight = np.exp(scores - scores.max())
        out[row, query, head] = weight @ v[row, read, head // group] / weight.sum()
    return out


def example(keys=KEYS, queries=QUERIES, padded=PADDED, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    at = np.arange(keys)[None]
    left, right = np.array(padded).T[:, :, None]
    exists_BS = (at >= left) & (at < keys - right)
    rows = len(padded)
    return (
        draw(rows, queries, HEADS, WIDTH),
        draw(rows, keys, KV_HEADS, WIDTH),
        draw(rows, keys, KV_HEADS, WIDTH),
        exists_BS,
    )


@pytest.fixture(params=["xla", "xla in blocks", "splash", "cudnn's layout"])
def implementation(request, monkeypatch):
    """How each implementation runs on this machine.

    Splash attention is interpreted, and XLA stands in for cuDNN.
    """
    if request.param == "xla in blocks":
        monkeypatch.setattr(causal_attention, "_MAX_UNBLOCKED_KEYS", 0)
        monkeypatch.setattr(causal_attention, "_QUERIES_AT_ONCE", 32)
    if request.param == "cudnn's layout":
        by_xla = functools.partial(causal_attention._cudnn, implementation="xla")
        monkeypatch.setattr(causal_attention, "_cudnn", by_xla)
    interpreted = functools.partial(splash_attention.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention, "make_splash_mha", interpreted)
    monkeypatch.setattr(causal_attention, "_TILE", 128)
    causal_attention._splash.clear_cache()
    yield request.param.split()[0].split("'")[0]
    causal_attention._splash.clear_cache()


@pytest.mark.parametrize("window", WINDOWS)
def test_implementations_equal_a_float64_reference(implementation, window):
    *qkv, exists_BS = example()

    out = causal_attention.attend(*qkv, exists_BS, window, implementation)

    assert np.all(np.isfinite(out))
    expected = reference(*qkv, exists_BS, window)
    real = exists_BS[:, -QUERIES:]
    np.testing.assert_allclose(out[real], expected[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 150])
def test_gradients_equal_those_of_plain_xla(implementation, window, monkeypatch):
    *qkv, exists_BS = example()
    cotangent = np.random.default_rng(1).normal(size=qkv[0].shape)
    cotangent = jnp.asarray(cotangent * exists_BS[:, -QUERIES:, None, None], np.float32)

    def gradients(implementation):
        def loss(qkv):
            args = *qkv, jnp.asarray(exists_BS), window, implementation
            out = causal_attention.attend(*args)
            return jnp.sum(out * cotangent)

        return jax.grad(loss)(qkv)

    gradient = gradients(implementation)
    monkeypatch.setattr(causal_attention, "_MAX_UNBLOCKED_KEYS", KEYS)
    expected = gradients("xla")

    for got, want in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 7])
def test_branches_equal_rows_of_their_own(implementation, window):
    prompt, branches, length = 20, 3, 12
    time = prompt + branches * length
    q, k, v, _ = example(time, time)
    rows = len(PADDED)
    exists_UT = np.ones((rows, time), bool)
    for row, (left, right) in enumerate([(3, 0), (0, 0), (0, 5), (19, 11)]):
        exists_UT[row, :left] = False
        exists_UT[row, prompt:].reshape(branches, length)[1, length - right :] = False

    out = causal_attention.attend_branches(
        q, k, v, exists_UT, prompt, branches, window, implementation
    )

    for branch in range(branches):
        own = slice(prompt + branch * length, prompt + (branch + 1) * length)
        row_of = lambda x, own=own: np.concatenate([x[:, :prompt], x[:, own]], axis=1)
        exists_US = row_of(exists_UT)
        expected = reference(*map(row_of, (q, k, v)), exists_US, window)
        got = row_of(out)[exists_US]
        np.testing.assert_allclose(got, expected[exists_US], rtol=1e-5, atol=1e-5)


def test_each_device_attends_for_its_own_rows_and_heads(implementation):
    *qkv, exists_BS = example()
    expected = causal_attention.attend(*qkv, exists_BS, None, implementation)
    mesh = distributed.make_mesh(
        {"data": 2, "fsdp": 2, "tensor": 2}, jax.devices()[: 2**3]
    )
    place = lambda x: distributed.sharding(
        mesh, "batch", None, *(["heads", None][: x.ndim - 2])
    )
    placed = [jax.device_put(x, place(x)) for x in (*qkv, jnp.asarray(exists_BS))]

    attend = functools.partial(
        causal_attention.attend, window=None, implementation=implementation
    )
    with jax.set_mesh(mesh):
        out = jax.jit(attend)(*placed)

    assert out.sharding.is_equivalent_to(place(out), out.ndim)
    real = exists_BS[:, -QUERIES:]
    np.testing.assert_allclose(out[real], expected[real], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("window", [None, 512])
def test_scores_of_a_long_sequence_are_never_held_at_once(window, compiles):
    keys = 8192
    shapes = jax.eval_shape(lambda: example(keys, keys, [(0, 0)])[:3])
    exists = jax.ShapeDtypeStruct((1, keys), bool)

    def loss(q, k, v, exists_BS):
        return jnp.sum(causal_attention.attend(q, k, v, exists_BS, window, "xla"))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    memory = gradient.lower(*shapes, exists).compile().memory_analysis()

    # A handful of arrays for one block of queries; all scores would be 32 of them.
    block = HEADS * causal_attention._QUERIES_AT_ONCE * keys * 4
    assert memory.temp_size_in_bytes < 6 * block


ARCH = dict(
    family="qwen3",
    vocab=64,
    width=32,
    mlp_width=64,
    layers=2,
    heads=8,
    kv_heads=2,
    head_width=16,
    norm_eps=1e-6,
    **families.SWITCHES["qwen3"],
    tied=True,
    max_positions=64,
    period=(families.LayerKind(1e4),),
)


def test_auto_is_xla_on_a_cpu():
    arch = families.Architecture(**ARCH)

    assert causal_attention.resolve("auto", arch, jnp.bfloat16, 1) == "xla"
    assert causal_attention.resolve("splash", arch, jnp.bfloat16, 1) == "splash"
    assert causal_attention.obstacle("xla", arch, jnp.float32, 4) is None


@pytest.mark.parametrize("implementation", ["splash", "cudnn"])
def test_fused_attention_is_refused_on_a_cpu(implementation):
    arch = families.Architecture(**ARCH)

    obstacle = causal_attention.obstacle(implementation, arch, jnp.bfloat16, 1)

    assert "only, not on cpu" in obstacle
