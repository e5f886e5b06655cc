import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdpo_jax.rollout import Sampling, drawing

# Same float32 formulas, other orders of summation.
TOLERANCE = 1e-5
SAMPLING = Sampling(attempts=4, temperature=1.0, top_p=1.0, top_k=0, max_response=12)


def in_parallel(x, axis):
    """A running sum in the order that accelerators add."""
    return jax.lax.associative_scan(jnp.add, x, axis=axis)


def draw(logits_V, uniform_B, sampling):
    logits_BV = jnp.broadcast_to(logits_V, (len(uniform_B), len(logits_V)))
    found = drawing.draw(logits_BV, jnp.asarray(uniform_B, jnp.float32), sampling)
    return [np.asarray(x) for x in found]


def likely(vocab, share, seed=0):
    """Random logits, of which a share is possible at all."""
    rng = np.random.default_rng(seed)
    logits_V = rng.normal(0, 3, vocab)
    logits_V[rng.random(vocab) > share] = -np.inf
    logits_V[vocab // 2] = 1.0
    return logits_V.astype(np.float32)


def probabilities(logits_V):
    wide = np.exp(logits_V.astype(np.float64) - logits_V.max())
    return wide / wide.sum()


@pytest.mark.parametrize("vocab", [1, 5, 128, 300])
def test_draws_are_as_frequent_as_they_are_likely(vocab):
    logits_V, grid = likely(vocab, 0.7), 2**12
    p_V = probabilities(logits_V / np.float32(0.8))
    sampling = dataclasses.replace(SAMPLING, temperature=0.8)

    token_B, logp_B = draw(logits_V, np.arange(grid) / grid, sampling)

    # A token's numbers form one interval, which holds its share of any grid.
    count_V = np.bincount(token_B, minlength=vocab)
    np.testing.assert_allclose(count_V / grid, p_V, rtol=0, atol=1.001 / grid)
    assert (np.diff(token_B) >= 0).all()
    np.testing.assert_allclose(logp_B, np.log(p_V[token_B]), rtol=0, atol=TOLERANCE)


def test_draws_invert_the_distribution_of_a_large_vocabulary():
    logits_V = likely(151_936, 0.5)
    above_V = np.cumsum(probabilities(logits_V))
    below_V = np.concatenate([[0], above_V[:-1]])
    uniform_B = (np.arange(32) + 0.5) / 32

    token_B, logp_B = draw(logits_V, uniform_B, SAMPLING)

    # Sums of 152 thousand float32 numbers, block by block.
    assert (below_V[token_B] - 1e-6 <= uniform_B).all()
    assert (uniform_B <= above_V[token_B] + 1e-6).all()
    p_B = (above_V - below_V)[token_B]
    np.testing.assert_allclose(logp_B, np.log(p_B), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("cumsum", [jnp.cumsum, in_parallel])
@pytest.mark.parametrize("vocab, possible", [(1000, 300), (151_936, 12)])
def test_impossible_tokens_are_never_drawn(vocab, possible, cumsum, monkeypatch):
    monkeypatch.setattr(jnp, "cumsum", cumsum)
    compiled = jax.jit(lambda *args: drawing.draw(*args, SAMPLING))
    rng = np.random.default_rng(0)
    for _ in range(3):
        places = np.sort(rng.permutation(vocab)[:possible])
        logits_V = np.full(vocab, -np.inf, np.float32)
        logits_V[places] = rng.normal(0, 3, possible)
        # The numbers that rounding could carry over the edge of a token's interval.
        edges = np.cumsum(probabilities(logits_V))[places].astype(np.float32)
        beside = [np.nextafter(edges, np.float32(end)) for end in (0, 1)]
        extreme = np.float32([0, 1e-38, 1 - 2**-23, 1 - 2**-24])
        uniform_B = np.concatenate([edges, *beside, extreme])
        uniform_B = np.minimum(uniform_B, np.float32(1 - 2**-24))

        rows = (len(uniform_B), vocab)
        token_B, logp_B = compiled(np.broadcast_to(logits_V, rows), uniform_B)

        assert np.isin(token_B, places).all()
        assert np.isfinite(logp_B).all()
        assert (token_B[-4], token_B[-1]) == (places[0], places[-1])


def test_draws_within_kept_tokens_are_renormalised():
    logits_V = np.log(np.float32([0.1, 0.4, 0.2, 0.3]))
    sampling = dataclasses.replace(SAMPLING, top_k=3, top_p=0.7)

    token_B, logp_B = draw(logits_V, [0.0, 0.5, 0.6, 0.99], sampling)

    # Of the three likeliest, 4/9 and 3/9 are the fewest that reach 0.7.
    np.testing.assert_array_equal(token_B, [1, 1, 3, 3])
    np.testing.assert_allclose(np.exp(logp_B), [4 / 7, 4 / 7, 3 / 7, 3 / 7], rtol=1e-6)


def test_temperature_zero_takes_the_likeliest_whatever_the_number():
    logits_V = np.float32([0.0, 2.0, 1.0, 2.0])
    sampling = Sampling(1, 0.0, 0.5, 2, 8)

    token_B, logp_B = draw(logits_V, [0.0, 0.5, 1 - 2**-24], sampling)

    np.testing.assert_array_equal(token_B, 1)
    np.testing.assert_array_equal(logp_B, 0)


def kept_by_transformers(logits_V, top_k, top_p):
    """TopKLogitsWarper, then TopPLogitsWarper, of transformers 5.23, in float64."""
    kept_V = np.full(len(logits_V), True)
    if top_k:
        kept_V = logits_V >= np.sort(logits_V)[-min(top_k, len(logits_V))]
    if top_p < 1:
        p_V = probabilities(np.where(kept_V, logits_V, -np.inf))
        order = np.argsort(p_V, kind="stable")
        removed = np.cumsum(p_V[order]) <= 1 - top_p
        removed[-1] = False
        kept_V[order[removed]] = False
    return kept_V


@pytest.mark.parametrize("top_k", [0, 1, 2, 20, 299, 300, 1000])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.95, 0.999, 1.0])
def test_kept_tokens_are_those_of_transformers(top_k, top_p):
    logits_BV = np.random.default_rng(1).normal(0, 2.5, (3, 300)).astype(np.float32)

    found_BV = np.asarray(drawing.keep_likely(logits_BV, top_k, top_p))

    kept_BV = [kept_by_transformers(logits_V, top_k, top_p) for logits_V in logits_BV]
    np.testing.assert_array_equal(np.isfinite(found_BV), kept_BV)
    np.testing.assert_array_equal(found_BV[kept_BV], logits_BV[kept_BV])


def test_ties_at_the_edge_are_kept():
    logits_BV = np.log(np.float32([[0.25, 0.125, 0.25, 0.125, 0.125, 0.125]]))
    kept = lambda *limits: np.isfinite(drawing.keep_likely(logits_BV, *limits))[0]

    np.testing.assert_array_equal(kept(1, 1.0), [1, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(kept(3, 1.0), 1)
    np.testing.assert_array_equal(kept(0, 0.3), [1, 0, 1, 0, 0, 0])
    np.testing.assert_array_equal(kept(0, 0.6), 1)


def test_a_sure_token_leaves_no_other():
    logits_BV = np.float32([[0, 500, 0, 0]])
    np.testing.assert_array_equal(
        drawing.keep_likely(logits_BV, 0, 0.95), [[-np.inf, 500, -np.inf, -np.inf]]
    )
    token_B, logp_B = draw(logits_BV[0], [0.0, 1 - 2**-24], SAMPLING)
    np.testing.assert_array_equal(token_B, 1)
    np.testing.assert_array_equal(logp_B, 0)
