import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdpo_jax import config
from sdpo_jax.methods import METHODS, grpo
from sdpo_jax.methods.tokens import Tokens

VOCAB = 5
LOW, HIGH, DUAL = 0.2, 0.28, 3.0


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def settings():
    c = config.default()
    c.grpo.clip_low, c.grpo.clip_high, c.grpo.dual_clip = LOW, HIGH, DUAL
    return c


def logits_and_tokens(ratio, advantage, *, sampler_ratio=1.0, old=True):
    """One row, one token per ratio pi / pi_old and advantage."""
    time = len(ratio)
    r = np.random.default_rng(0)
    logits = jnp.asarray(r.normal(size=(1, time, VOCAB)))
    ids = jnp.asarray(r.integers(0, VOCAB, (1, time)).astype(np.int32))
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], -1)[..., 0]
    old_logp = logp - jnp.log(jnp.asarray(ratio))[None]
    sampler = (old_logp if old else logp) - jnp.log(sampler_ratio)
    weight = jnp.asarray(r.random((1, time)) + 0.5)
    advantage = jnp.asarray(advantage)[None]
    return logits, Tokens(ids, weight, advantage, sampler, old_logp if old else None)


def value_and_gradient(logits, tokens, c=None):
    c = c or settings()

    @jax.jit
    def run(logits):
        of_student = lambda logits: grpo.loss(c, logits, (), tokens)
        return jax.value_and_grad(of_student, has_aux=True)(logits)

    (value, sums), gradient = jax.device_get(run(logits))
    return value, sums, gradient


def d_logp(logits, ids, temperature=1.0):
    """Gradient of each token's log-probability in its own logits."""
    one_hot = jax.nn.one_hot(ids, VOCAB, dtype=logits.dtype)
    return (one_hot - jax.nn.softmax(logits / temperature)) / temperature


# (ratio, advantage, gain in units of the advantage, d gain / d log pi likewise).
BRANCHES = {
    "inside the clip, up": (1.1, 2.0, 1.1, 1.1),
    "above the clip, up": (1.5, 2.0, 1 + HIGH, 0.0),
    "below the clip, up": (0.5, 2.0, 0.5, 0.5),
    "inside the clip, down": (0.9, -2.0, 0.9, 0.9),
    "below the clip, down": (0.5, -2.0, 1 - LOW, 0.0),
    "above the clip, down": (2.5, -2.0, 2.5, 2.5),
    "above the dual clip, down": (4.0, -2.0, DUAL, 0.0),
    "above the dual clip, up": (4.0, 2.0, 1 + HIGH, 0.0),
}


@pytest.mark.parametrize("branch", BRANCHES)
def test_value_and_gradient_at_each_branch_of_the_clip(branch):
    ratio, advantage, gain, slope = BRANCHES[branch]
    logits, tokens = logits_and_tokens([ratio], [advantage])

    value, _, gradient = value_and_gradient(logits, tokens)

    scale = -tokens.weight_BC * advantage
    assert value == pytest.approx((scale * gain).item(), rel=1e-12)
    expected = (scale * slope)[..., None] * d_logp(logits, tokens.id_BC)
    np.testing.assert_allclose(gradient, expected, rtol=1e-11, atol=1e-15)


def test_loss_is_the_sum_over_tokens_and_counts_the_clipped_ones():
    ratio, advantage, gain, slope = (
        np.array(x) for x in zip(*BRANCHES.values(), strict=True)
    )
    logits, tokens = logits_and_tokens(ratio, advantage)

    value, sums, _ = value_and_gradient(logits, tokens)

    weight = np.asarray(tokens.weight_BC[0])
    assert value == pytest.approx(-np.sum(weight * advantage * gain), rel=1e-12)
    # Tokens without a gradient, whichever of the clips cut them.
    clipped = slope == 0
    assert sums["clipped"] == pytest.approx(np.sum(weight * clipped), rel=1e-12)


def test_zero_advantage_has_no_loss_and_no_gradient():
    logits, tokens = logits_and_tokens([0.1, 1.0, 9.0], [0.0, 0.0, 0.0])

    value, _, gradient = value_and_gradient(logits, tokens)

    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_without_old_log_probs_it_is_the_plain_policy_gradient():
    logits, tokens = logits_and_tokens([9.0, 0.1], [1.5, -0.5], old=False)

    value, sums, gradient = value_and_gradient(logits, tokens)

    scale = -tokens.weight_BC * tokens.advantage_BC
    assert value == pytest.approx(scale.sum().item(), rel=1e-12)
    assert sums["clipped"] == 0
    expected = scale[..., None] * d_logp(logits, tokens.id_BC)
    np.testing.assert_allclose(gradient, expected, rtol=1e-11, atol=1e-15)


def test_temperature_divides_the_logits():
    c = settings()
    c.rollout.temperature = 0.6
    logits, tokens = logits_and_tokens([1.0], [1.0], old=False)
    logp = jnp.take_along_axis(
        jax.nn.log_softmax(logits / 0.6), tokens.id_BC[..., None], -1
    )[..., 0]
    tokens = tokens.replace(sampler_logp_BC=logp)

    _, _, gradient = value_and_gradient(logits, tokens, c)

    expected = -tokens.weight_BC[..., None] * d_logp(logits, tokens.id_BC, 0.6)
    np.testing.assert_allclose(gradient, expected, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("sampler_ratio, weight", [(0.5, 0.5), (1.7, 1.7), (30.0, 2.0)])
def test_ratio_to_the_sampler_is_capped_and_multiplies(sampler_ratio, weight):
    on_policy = logits_and_tokens([1.1, 0.5], [1.0, -1.0])
    off_policy = logits_and_tokens([1.1, 0.5], [1.0, -1.0], sampler_ratio=sampler_ratio)

    value, _, gradient = value_and_gradient(*on_policy)
    found, _, found_gradient = value_and_gradient(*off_policy)

    assert found == pytest.approx(weight * value, rel=1e-12)
    np.testing.assert_allclose(
        found_gradient, weight * gradient, rtol=1e-11, atol=1e-15
    )


@pytest.mark.parametrize("normalize_std", [False, True])
def test_advantages_are_scores_less_the_mean_of_what_is_known(normalize_std):
    rng = np.random.default_rng(0)
    score_UG = rng.random((50, 4))
    known_UG = rng.random((50, 4)) < 0.7
    c = settings()
    c.grpo.normalize_std = normalize_std

    found_UG = grpo.advantages(c, score_UG, known_UG)

    pairs = zip(found_UG, score_UG, known_UG, strict=True)
    for found_G, score_G, known_G in pairs:
        scores = score_G[known_G]
        expected = scores - scores.mean() if len(scores) else scores
        if normalize_std and len(scores) > 1:
            expected = expected / (scores.std(ddof=1) + 1e-6)
        np.testing.assert_allclose(found_G[known_G], expected, rtol=1e-6, atol=1e-12)
        np.testing.assert_array_equal(found_G[~known_G], 0)


@pytest.mark.parametrize("normalize_std", [False, True])
@pytest.mark.parametrize("score", [0.0, 0.1, 1.0])
def test_equal_scores_have_no_advantage(score, normalize_std):
    c = settings()
    c.grpo.normalize_std = normalize_std
    score_UG = np.array([[score] * 4, [0.3, score, score, score]])
    known_UG = np.array([[True] * 4, [False, True, True, True]])

    found_UG = grpo.advantages(c, score_UG, known_UG)

    # A tenth has no exact mean in binary.
    np.testing.assert_allclose(found_UG, 0, atol=1e-10)


def test_group_of_one_attempt_is_refused():
    c = settings()
    c.rollout.attempts = 1

    with pytest.raises(ValueError, match="rollout.attempts=1.*at least 2"):
        METHODS["grpo"].check(c)
