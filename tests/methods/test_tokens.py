import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdpo_jax.methods import tokens as tokens_lib

LOGP = np.log(np.array([[0.5, 0.2, 0.1]], np.float32))


def tokens(old=None, sampler=LOGP):
    ones = jnp.ones(LOGP.shape, jnp.float32)
    ids = jnp.zeros(LOGP.shape, jnp.int32)
    old = None if old is None else jnp.asarray(old, jnp.float32)
    return tokens_lib.Tokens(ids, ones, ones, jnp.asarray(sampler, jnp.float32), old)


def test_log_ratio_without_old_log_probs_is_zero_but_has_a_gradient():
    ratio = lambda logp: jnp.sum(tokens_lib.log_ratio(tokens(), logp))

    value, gradient = jax.value_and_grad(ratio)(jnp.asarray(LOGP))

    assert value == 0
    np.testing.assert_array_equal(gradient, 1)


def test_log_ratio_is_the_difference_to_old_log_probs_within_twenty():
    old = LOGP - np.array([[0.3, -25.0, 25.0]], np.float32)

    found = tokens_lib.log_ratio(tokens(old), jnp.asarray(LOGP))

    np.testing.assert_allclose(found, [[0.3, -20, 20]], rtol=1e-6)


def test_sampler_weight_is_the_truncated_ratio_of_trainer_to_sampler():
    sampler = LOGP - np.log(np.array([[0.25, 1.5, 40.0]], np.float32))

    found = tokens_lib.sampler_weight(tokens(None, sampler), jnp.asarray(LOGP), 2.0)

    np.testing.assert_allclose(found, [[0.25, 1.5, 2.0]], rtol=1e-6)


def test_sampler_weight_reads_old_log_probs_when_there_are_any():
    sampler = LOGP - np.log(np.float32(1.5))
    moved = jnp.asarray(LOGP) + 3

    found = tokens_lib.sampler_weight(tokens(LOGP, sampler), moved, 2.0)

    np.testing.assert_allclose(found, np.full(LOGP.shape, 1.5), rtol=1e-6)


@pytest.mark.parametrize("old", [None, LOGP])
def test_sampler_weight_has_no_gradient(old):
    def weight(logp):
        return jnp.sum(tokens_lib.sampler_weight(tokens(old, LOGP - 0.1), logp, 2.0))

    gradient = jax.grad(weight)(jnp.asarray(LOGP))

    np.testing.assert_array_equal(gradient, 0)


def test_shared_sums_are_weighted_and_carry_no_gradient():
    logits = jnp.log(jnp.array([[[0.25, 0.75], [0.5, 0.5], [0.9, 0.1]]], jnp.float32))
    sampler = LOGP + np.array([[0.1, -0.2, 7.0]], np.float32)
    weighted = tokens(None, sampler).replace(weight_BC=jnp.array([[2.0, 1.0, 0.0]]))

    def sums(logits):
        return tokens_lib.shared_sums(weighted, logits, jnp.asarray(LOGP))

    found = sums(logits)
    entropy = [-0.25 * np.log(0.25) - 0.75 * np.log(0.75), np.log(2)]
    assert found["entropy"] == pytest.approx(2 * entropy[0] + entropy[1], rel=1e-6)
    assert found["sampler_gap"] == pytest.approx(2 * 0.1 + 0.2, rel=1e-5)
    gradient = jax.grad(lambda z: sum(sums(z).values()))(logits)
    np.testing.assert_array_equal(gradient, 0)
