import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.topk_tail_kl import reference

ROWS, VOCAB, KEPT = 3, 11, 4
# float64 arithmetic on a dozen numbers of order one.
EXACT = 1e-13


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def logits(seed, scale=2.0):
    return np.random.default_rng(seed).normal(size=(ROWS, VOCAB)) * scale


def np_log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def np_divergence(p, q, kind, c):
    kl = lambda a, b: (a * np.log(a / b)).sum(-1)
    m = (1 - c) * p + c * q
    return {
        "forward_kl": kl(q, p),
        "reverse_kl": kl(p, q),
        "jensen_shannon": (1 - c) * kl(p, m) + c * kl(q, m),
    }[kind]


def np_buckets(student_z, teacher_z, keep_tail):
    """Probabilities of student and teacher on the student's top tokens, by sorting."""
    p, q = np.exp(np_log_softmax(student_z)), np.exp(np_log_softmax(teacher_z))
    ids = np.argsort(-student_z, axis=-1)[:, :KEPT]
    p, q = np.take_along_axis(p, ids, -1), np.take_along_axis(q, ids, -1)
    if not keep_tail:
        return p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True), ids
    tail = lambda x: np.concatenate([x, 1 - x.sum(-1, keepdims=True)], -1)
    return tail(p), tail(q), ids


@functools.partial(jax.jit, static_argnums=(2, 3), static_argnames=("keep_tail", "k"))
def from_logits(student_z, teacher_z, kind, c, *, keep_tail, k=KEPT):
    student, teacher = reference.top_k_buckets(
        jax.nn.log_softmax(student_z), jax.nn.log_softmax(teacher_z), k, keep_tail
    )
    return reference.divergence(student, teacher, kind, c)


def gradient(student_z, teacher_z, kind, c=0.5, **options):
    total = lambda z: jnp.sum(from_logits(z, teacher_z, kind, c, **options))
    return np.asarray(jax.jit(jax.grad(total))(jnp.asarray(student_z)))


@pytest.mark.parametrize("c", [0.5, 0.1])
@pytest.mark.parametrize("kind", reference.DIVERGENCES)
def test_divergence_equals_its_definition(kind, c):
    student, teacher = np_log_softmax(logits(0)), np_log_softmax(logits(1))

    found = reference.divergence(student, teacher, kind, c)

    expected = np_divergence(np.exp(student), np.exp(teacher), kind, c)
    np.testing.assert_allclose(found, expected, rtol=EXACT)
    # A definition with the wrong sign would not be positive.
    assert (expected > 0.01).all()


@pytest.mark.parametrize("keep_tail", [True, False])
@pytest.mark.parametrize("kind", reference.DIVERGENCES)
def test_divergence_of_top_k_equals_its_definition(kind, keep_tail):
    student, teacher = logits(0), logits(1)

    found = from_logits(student, teacher, kind, 0.3, keep_tail=keep_tail)

    p, q, _ = np_buckets(student, teacher, keep_tail)
    np.testing.assert_allclose(found, np_divergence(p, q, kind, 0.3), rtol=EXACT)


def closed_form(student_z, teacher_z, kind, c):
    """dz_j = 1[j in top K] a_j + d p_j, with d = -sum_k a_k (design.md)."""
    p, q, ids = np_buckets(student_z, teacher_z, keep_tail=True)
    s, t, m = np.log(p), np.log(q), np.log((1 - c) * p + c * q)
    above_tail = lambda x: x[:, :-1] - x[:, -1:]
    a = {
        "forward_kl": -q[:, :-1] + q[:, -1:] * p[:, :-1] / p[:, -1:],
        "reverse_kl": p[:, :-1] * above_tail(s - t),
        "jensen_shannon": (1 - c) * p[:, :-1] * above_tail(s - m),
    }[kind]
    dz = -a.sum(-1, keepdims=True) * np.exp(np_log_softmax(student_z))
    np.put_along_axis(dz, ids, np.take_along_axis(dz, ids, -1) + a, -1)
    return dz


@pytest.mark.parametrize("c", [0.5, 0.1])
@pytest.mark.parametrize("kind", reference.DIVERGENCES)
def test_gradient_of_top_k_and_tail_equals_the_closed_form(kind, c):
    student, teacher = logits(2), logits(3)

    found = gradient(student, teacher, kind, c, keep_tail=True)

    # Subtracting each token's own share of d cancels a digit or two.
    expected = closed_form(student, teacher, kind, c)
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("keep_tail", [True, False])
def test_score_has_mean_zero_on_the_buckets(keep_tail):
    student = jnp.asarray(logits(4))

    def log_buckets(z):
        logp = jax.nn.log_softmax(z)
        return reference.top_k_buckets(logp, logp, KEPT, keep_tail)[0]

    p = jnp.exp(log_buckets(student[0]))
    score = jax.jacobian(log_buckets)(student[0])

    # sum_v p(v) grad log p(v) = 0: without it the truncated reverse KL is biased.
    assert p.shape == (KEPT + keep_tail,)
    np.testing.assert_allclose(p @ score, np.zeros(VOCAB), atol=1e-15)
    assert np.abs(score).max() > 0.1


def test_gradient_of_reverse_kl_is_a_policy_gradient_over_all_tokens():
    student, teacher = jnp.asarray(logits(5)), np_log_softmax(logits(6))

    def kl(z):
        logp = jax.nn.log_softmax(z)
        return jnp.sum(reference.divergence(logp, teacher, "reverse_kl", 0.5))

    # Proposition 2.1: advantage log q - log p, every token weighted by p, not sampled.
    p = jax.nn.softmax(student)
    advantage = teacher - jax.nn.log_softmax(student)
    policy_loss = lambda z: -jnp.sum(p * advantage * jax.nn.log_softmax(z))

    np.testing.assert_allclose(
        jax.grad(kl)(student), jax.grad(policy_loss)(student), rtol=1e-11, atol=1e-16
    )


@pytest.mark.parametrize("kind", reference.DIVERGENCES)
def test_keeping_every_token_and_renormalising_equals_the_full_divergence(kind):
    student, teacher = logits(7), logits(8)

    kept = from_logits(student, teacher, kind, 0.4, keep_tail=False, k=VOCAB)

    full = reference.divergence(
        jax.nn.log_softmax(student), jax.nn.log_softmax(teacher), kind, 0.4
    )
    np.testing.assert_allclose(kept, full, rtol=EXACT)


def test_tail_is_never_reported_below_1e_7_and_then_has_no_gradient():
    student = np.full((1, VOCAB), -30.0)
    student[:, :KEPT] = 5.0
    teacher_z = logits(9)[:1]

    def log_tail(z):
        logp = jax.nn.log_softmax(z)
        return reference.top_k_buckets(logp, logp, KEPT, True)[0][0, -1]

    # The true tail is about 7 exp(-35) / 4 = 1e-15.
    assert np.exp(log_tail(student)) == pytest.approx(1e-7, rel=1e-6)
    np.testing.assert_array_equal(jax.grad(log_tail)(jnp.asarray(student)), 0)
    # With the tail's term constant only the kept tokens' terms remain.
    found = gradient(student, teacher_z, "reverse_kl", keep_tail=True)
    p = np.exp(np_log_softmax(student))
    t = np_log_softmax(teacher_z)
    kept = np.arange(VOCAB) < KEPT
    inner = np.where(kept, p * (np_log_softmax(student) - t + 1), 0)
    expected = inner - p * inner.sum()
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-14)


def test_tail_just_above_the_clamp_is_exact():
    student = np.full((1, VOCAB), -10.0)
    student[:, :KEPT] = 3.0

    logp = jax.nn.log_softmax(student)
    found = reference.top_k_buckets(logp, logp, KEPT, True)[0][0, -1]

    tail = (VOCAB - KEPT) * np.exp(-13.0)
    assert 1e-7 < tail < 1e-4
    # expm1 of the logarithm of the kept mass, near 1, keeps about ten digits.
    assert np.exp(found) == pytest.approx(tail / (KEPT + tail), rel=1e-9)


@pytest.mark.parametrize("keep_tail", [True, False])
@pytest.mark.parametrize("kind", reference.DIVERGENCES)
def test_extreme_logits_give_finite_values_and_gradients(kind, keep_tail):
    big = np.float32(1e4)
    one_hot = np.zeros((3, VOCAB), np.float32)
    one_hot[:, 2] = big
    opposed = np.zeros((3, VOCAB), np.float32)
    opposed[0, 5], opposed[1, 2], opposed[2] = big, big, 0

    value = from_logits(one_hot, opposed, kind, 0.5, keep_tail=keep_tail)
    grad = gradient(one_hot, opposed, kind, keep_tail=keep_tail)

    assert value.dtype == grad.dtype == np.float32
    assert np.isfinite(value).all() and np.isfinite(grad).all()
    assert grad[1] == pytest.approx(0, abs=1e-6)


def test_ties_keep_exactly_k_tokens():
    flat = jnp.zeros((1, VOCAB))

    student, teacher = reference.top_k_buckets(
        jax.nn.log_softmax(flat), jax.nn.log_softmax(flat), KEPT, True
    )

    expected = [1 / VOCAB] * KEPT + [1 - KEPT / VOCAB]
    np.testing.assert_allclose(np.exp(student[0]), expected, rtol=EXACT)
    np.testing.assert_array_equal(student, teacher)


@pytest.mark.parametrize("vocab, k", [(96, 3), (96, 6), (40, 3), (37, 5), (16, 16)])
@pytest.mark.parametrize("distinct", [1000, 4])
@pytest.mark.parametrize("blocks", [1, 2, 8])
def test_top_k_by_blocks_equals_top_k_of_the_whole_ties_included(
    vocab, k, distinct, blocks
):
    r = np.random.default_rng(vocab)
    value = jnp.asarray(r.integers(0, distinct, (2, 3, vocab)).astype(np.float32))

    found = reference.top_k_ids(value, k, blocks)

    np.testing.assert_array_equal(found, jax.lax.top_k(value, k)[1])


def test_unknown_divergence_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="forward_kl.*reverse_kl.*'hellinger'"):
        reference.divergence(jnp.zeros(2), jnp.zeros(2), "hellinger", 0.5)
