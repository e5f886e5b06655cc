import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.topk_tail_kl import chunked, reference

ROWS, TIME, WIDTH, VOCAB = 2, 7, 5, 13
CHUNKS = (1, 3, TIME)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def loss(student_BCV, teachers, tokens):
    """Uses everything that a method may use: teacher, token, weight."""
    student = jax.nn.log_softmax(student_BCV)
    (teacher,) = (jax.nn.log_softmax(logits) for logits in teachers)
    kl = reference.divergence(
        *reference.top_k_buckets(student, teacher, 4, True), "jensen_shannon", 0.5
    )
    logp = chunked.log_probs_of(student_BCV, tokens["id"], 0.7)
    value = jnp.exp(jnp.minimum(logp - tokens["old"], 1.0)) * kl - 0.3 * logp
    sums = {"logp": jnp.sum(tokens["weight"] * jax.lax.stop_gradient(logp))}
    return jnp.sum(tokens["weight"] * value), sums


def inputs(dtype=np.float64):
    r = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(r.normal(size=shape).astype(dtype))
    mask = jnp.asarray(np.arange(TIME) < np.array([[TIME], [4]]))
    tokens = {
        "id": jnp.asarray(r.integers(0, VOCAB, (ROWS, TIME)).astype(np.int32)),
        "old": -3 + normal(ROWS, TIME),
        "weight": jnp.where(mask, normal(ROWS, TIME), 0),
    }
    student = normal(ROWS, TIME, WIDTH), normal(1, WIDTH, VOCAB)
    teacher = normal(ROWS, TIME, WIDTH), normal(WIDTH, VOCAB)
    return student, teacher, mask, tokens


def by_chunks(student, teacher, mask, tokens, chunk):
    return chunked.sum_over_chunks(loss, student, (teacher,), mask, tokens, chunk=chunk)


def on_whole_logits(student, teacher, mask, tokens):
    (hidden, unembed), (teacher_hidden, teacher_unembed) = student, teacher
    return loss(hidden @ unembed[0], (teacher_hidden @ teacher_unembed,), tokens)


@functools.partial(jax.jit, static_argnums=(0,), static_argnames=("chunk",))
def with_gradient(function, *arrays, **options):
    of_student = lambda student: function(student, *arrays[1:], **options)
    return jax.value_and_grad(of_student, has_aux=True)(arrays[0])


def assert_close(found, expected, rtol):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        # Of the largest entry: entries near zero are differences of larger ones.
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * np.abs(b).max())


@pytest.mark.parametrize("chunk", CHUNKS)
def test_value_and_gradients_equal_autodiff_in_float64(float64, chunk):
    arrays = inputs()

    found = with_gradient(by_chunks, *arrays, chunk=chunk)

    assert_close(found, with_gradient(on_whole_logits, *arrays), rtol=1e-12)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_value_and_gradients_equal_autodiff_in_float32(chunk):
    arrays = inputs(np.float32)

    found = with_gradient(by_chunks, *arrays, chunk=chunk)

    assert_close(found, with_gradient(on_whole_logits, *arrays), rtol=1e-6)


def test_value_alone_equals_the_value_with_its_gradient(float64):
    arrays = inputs()

    alone = jax.jit(functools.partial(by_chunks, chunk=3))(*arrays)

    assert_close(alone, with_gradient(by_chunks, *arrays, chunk=3)[0], rtol=1e-14)


def test_gradient_scales_with_the_cotangent(float64):
    student, *rest = inputs()

    def scaled(student, factor):
        value, sums = by_chunks(student, *rest, 3)
        # The named sums are for the log: they must carry no gradient.
        return factor * value**2 + 100 * sums["logp"]

    (value, _), gradient = with_gradient(by_chunks, student, *rest, chunk=3)
    found = jax.jit(jax.grad(scaled))(student, -1.5)

    expected = jax.tree.map(lambda g: -3 * value * g, gradient)
    assert_close(found, expected, rtol=1e-13)


def test_teacher_and_per_token_arrays_get_no_gradient():
    student, teacher, mask, tokens = inputs(np.float32)

    def of_rest(teacher, weight):
        tokens_now = {**tokens, "weight": weight}
        return by_chunks(student, teacher, mask, tokens_now, 3)[0]

    gradient = jax.grad(of_rest, argnums=(0, 1))(teacher, tokens["weight"])

    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize("chunk", [3, TIME])
def test_nan_at_masked_tokens_changes_nothing(chunk):
    (hidden, unembed), (teacher_hidden, teacher), mask, tokens = inputs(np.float32)
    spoil = lambda x: jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, nan)
    nan = jnp.float32(jnp.nan)
    spoiled_tokens = {
        "id": jnp.where(mask, tokens["id"], -1),
        "old": spoil(tokens["old"]),
        "weight": spoil(tokens["weight"]),
    }

    clean = with_gradient(
        by_chunks,
        (hidden, unembed),
        (teacher_hidden, teacher),
        mask,
        tokens,
        chunk=chunk,
    )
    spoiled = with_gradient(
        by_chunks,
        (spoil(hidden), unembed),
        (spoil(teacher_hidden), teacher),
        mask,
        spoiled_tokens,
        chunk=chunk,
    )

    assert np.isnan(spoil(hidden)).any()
    jax.tree.map(np.testing.assert_array_equal, spoiled, clean)


def test_padding_of_the_response_axis_changes_nothing():
    (hidden, unembed), (teacher_hidden, teacher), mask, tokens = inputs(np.float32)
    pad = lambda x: jnp.pad(x, [(0, 0), (0, 2)] + [(0, 0)] * (x.ndim - 2))

    (value, sums), (d_hidden, d_unembed) = with_gradient(
        by_chunks, (hidden, unembed), (teacher_hidden, teacher), mask, tokens, chunk=3
    )
    (wide_value, wide_sums), (wide_hidden, wide_unembed) = with_gradient(
        by_chunks,
        (pad(hidden), unembed),
        (pad(teacher_hidden), teacher),
        pad(mask),
        jax.tree.map(pad, tokens),
        chunk=3,
    )

    assert (wide_value, wide_sums) == (value, sums)
    np.testing.assert_array_equal(wide_unembed, d_unembed)
    np.testing.assert_array_equal(wide_hidden, pad(d_hidden))


def shapes_within(jaxpr):
    """Shape of every value computed anywhere in a jaxpr."""
    for equation in jaxpr.eqns:
        yield from (var.aval.shape for var in equation.outvars)
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from shapes_within(inner)


def largest_with_vocabulary(function, *arrays):
    jaxpr = jax.make_jaxpr(function)(*arrays).jaxpr
    shapes = set(shapes_within(jaxpr))
    # Gradients of the unembedding are [D, V] whatever the number of tokens.
    logits = [s for s in shapes if VOCAB in s and WIDTH not in s]
    return max(int(np.prod(shape)) for shape in logits)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_no_array_holds_more_logits_than_one_chunk(chunk):
    arrays = inputs(np.float32)

    def update(*arrays):
        return with_gradient(by_chunks, *arrays, chunk=chunk)

    found = largest_with_vocabulary(update, *arrays)

    assert found == ROWS * chunk * VOCAB
    whole = functools.partial(with_gradient, on_whole_logits)
    assert largest_with_vocabulary(whole, *arrays) == ROWS * TIME * VOCAB


@pytest.mark.parametrize("chunk", CHUNKS)
def test_token_log_probs_are_gathered_log_softmax(float64, chunk):
    (hidden, unembed), _, _, tokens = inputs()

    found = chunked.token_log_probs(
        hidden, unembed[0], tokens["id"], temperature=0.7, chunk=chunk
    )

    logp = jax.nn.log_softmax(hidden @ unembed[0] / 0.7)
    expected = np.take_along_axis(np.asarray(logp), tokens["id"][..., None], -1)[..., 0]
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_token_log_probs_hold_one_chunk_of_logits():
    (hidden, unembed), _, _, tokens = inputs(np.float32)

    score = functools.partial(chunked.token_log_probs, temperature=1.0, chunk=3)
    found = largest_with_vocabulary(score, hidden, unembed[0], tokens["id"])

    assert found == ROWS * 3 * VOCAB


def test_gradients_of_a_bfloat16_model_keep_its_dtype_and_sum_in_float32():
    arrays = inputs(np.float32)
    narrow = lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x
    student, teacher = jax.tree.map(narrow, arrays[:2])

    (value, _), gradient = with_gradient(
        by_chunks, student, teacher, *arrays[2:], chunk=1
    )

    whole = with_gradient(
        on_whole_logits,
        *jax.tree.map(lambda x: x.astype(jnp.float32), (student, teacher)),
        *arrays[2:],
    )
    assert value.dtype == jnp.float32
    assert {leaf.dtype for leaf in gradient} == {jnp.dtype(jnp.bfloat16)}
    # One rounding to 8 bits of d_logits and one of each result: two parts in 2^8.
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), gradient)
    assert_close(wide, whole[1], rtol=2**-7)
