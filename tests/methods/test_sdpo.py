import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdpo_jax import config
from sdpo_jax.methods import METHODS, sdpo
from sdpo_jax.methods.tokens import Tokens

ROWS, TIME, VOCAB, KEPT = 2, 3, 7, 3
DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon")
SUPPORTS = (("full", True), ("top_k", True), ("top_k", False))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def settings(**fields):
    c = config.default()
    c.sdpo.top_k = KEPT
    for field, value in fields.items():
        c.update_from_flattened_dict({field.replace("__", "."): value})
    return c


def arrays(seed=0):
    r = np.random.default_rng(seed)
    student, *teachers = r.normal(size=(3, ROWS, TIME, VOCAB)) * 2
    ids = r.integers(0, VOCAB, (ROWS, TIME)).astype(np.int32)
    weight = r.random((ROWS, TIME))
    weight[1, 2] = 0
    advantage = r.normal(size=(ROWS, TIME))
    logp = np_take(np_log_softmax(student), ids)
    return student, teachers, Tokens(ids, weight, advantage, logp, None)


def np_log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def np_take(x, ids):
    return np.take_along_axis(x, ids[..., None], -1)[..., 0]


def np_divergence(c, student_z, teacher_z):
    """The definition, one position at a time."""
    out = np.zeros(student_z.shape[:-1])
    for index in np.ndindex(out.shape):
        p = np.exp(np_log_softmax(student_z[index] / c.rollout.temperature))
        q = np.exp(np_log_softmax(teacher_z[index] / c.rollout.temperature))
        if c.sdpo.support == "top_k":
            kept = sorted(range(VOCAB), key=lambda v, p=p: -p[v])[:KEPT]
            p, q = p[kept], q[kept]
            if c.sdpo.keep_tail:
                p, q = np.append(p, 1 - p.sum()), np.append(q, 1 - q.sum())
            else:
                p, q = p / p.sum(), q / q.sum()
        share = c.sdpo.mixture
        m = (1 - share) * p + share * q
        kl = lambda a, b: sum(a * np.log(a / b))
        out[index] = {
            "forward_kl": kl(q, p),
            "reverse_kl": kl(p, q),
            "jensen_shannon": (1 - share) * kl(p, m) + share * kl(q, m),
        }[c.sdpo.divergence]
    return out


def value_and_gradient(c, student, teachers, tokens):
    as_jax = functools.partial(jax.tree.map, jnp.asarray)

    @jax.jit
    def run(student, teachers, tokens):
        of_student = lambda student: sdpo.loss(c, student, teachers, tokens)
        return jax.value_and_grad(of_student, has_aux=True)(student)

    results = run(as_jax(student), as_jax(teachers), as_jax(tokens))
    (value, sums), gradient = jax.device_get(results)
    return value, sums, gradient


@pytest.mark.parametrize("temperature", [0.6])
@pytest.mark.parametrize(
    "divergence, support", list(itertools.product(DIVERGENCES, SUPPORTS))
)
def test_loss_equals_its_definition(divergence, support, temperature):
    c = settings(
        sdpo__divergence=divergence,
        sdpo__support=support[0],
        sdpo__keep_tail=support[1],
        sdpo__mixture=0.3,
        rollout__temperature=temperature,
    )
    student, teachers, tokens = arrays()
    logp = np_take(np_log_softmax(student / temperature), tokens.id_BC)
    tokens = tokens.replace(sampler_logp_BC=logp)

    value, sums, _ = value_and_gradient(c, student, (teachers[0],), tokens)

    expected = np.sum(tokens.weight_BC * np_divergence(c, student, teachers[0]))
    assert value == pytest.approx(expected, rel=1e-12)
    assert sums["divergence"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_sampled_token_has_the_gradient_of_the_full_reverse_kl(temperature):
    common = {"sdpo__divergence": "reverse_kl", "rollout__temperature": temperature}
    full, sampled = (
        settings(sdpo__support=support, **common)
        for support in ("full", "sampled_token")
    )
    student, teachers, tokens = arrays()
    logp = np_log_softmax(student / temperature)

    _, _, expected = value_and_gradient(
        full, student, (teachers[0],), without_sampler_gap(tokens, logp)
    )
    found = np.zeros_like(expected)
    for v in range(VOCAB):
        chosen = tokens.replace(id_BC=np.full((ROWS, TIME), v, np.int32))
        chosen = without_sampler_gap(chosen, logp)
        _, _, gradient = value_and_gradient(sampled, student, (teachers[0],), chosen)
        found += np.exp(logp[..., v : v + 1]) * gradient

    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-15)
    assert np.abs(expected).max() > 0.1


def without_sampler_gap(tokens, logp):
    return tokens.replace(sampler_logp_BC=np_take(logp, tokens.id_BC))


@pytest.mark.parametrize("support", ["full", "top_k", "sampled_token"])
def test_teacher_gets_no_gradient(support):
    c = settings(sdpo__divergence="reverse_kl", sdpo__support=support)
    student, teachers, tokens = arrays()
    tokens = jax.tree.map(jnp.asarray, tokens)

    of_teacher = lambda teacher: sdpo.loss(c, jnp.asarray(student), (teacher,), tokens)[
        0
    ]
    gradient = jax.grad(of_teacher)(jnp.asarray(teachers[0]))

    np.testing.assert_array_equal(gradient, 0)


def test_importance_ratio_is_capped_and_weights_value_and_gradient():
    c = settings(sdpo__support="full", sdpo__importance_ratio_cap=1.5)
    student, teachers, tokens = arrays()
    logp = tokens.sampler_logp_BC
    ratio = np.array([[0.5, 1.2, 4.0], [1.0, 1.49, 1.51]])
    old = logp - np.log(ratio)
    # Ratio to the sampler 1, so that only the ratio to the old policy weighs.
    with_old = tokens.replace(old_logp_BC=old, sampler_logp_BC=old)
    capped = np.minimum(ratio, 1.5)
    weighted = tokens.replace(weight_BC=tokens.weight_BC * capped)

    found = value_and_gradient(c, student, (teachers[0],), with_old)
    expected = value_and_gradient(c, student, (teachers[0],), weighted)

    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    # Equal gradients: the ratio itself carries none.
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-11, atol=1e-15)


def test_ratio_to_the_sampler_is_capped_and_weights_value_and_gradient():
    c = settings(sdpo__support="full", step__sampler_ratio_cap=2.0)
    student, teachers, tokens = arrays()
    ratio = np.array([[0.5, 1.9, 40.0], [1.0, 1.5, 2.1]])
    far = tokens.replace(sampler_logp_BC=tokens.sampler_logp_BC - np.log(ratio))
    capped = np.minimum(ratio, 2.0)
    weighted = tokens.replace(weight_BC=tokens.weight_BC * capped)

    found = value_and_gradient(c, student, (teachers[0],), far)
    expected = value_and_gradient(c, student, (teachers[0],), weighted)

    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-11, atol=1e-15)


def test_trust_region_teacher_is_a_normalised_geometric_mean():
    a, temperature = 0.3, 0.6
    c = settings(
        teacher__mixture=a, sdpo__support="full", rollout__temperature=temperature
    )
    student, (anchor, live), tokens = arrays()
    tokens = without_sampler_gap(tokens, np_log_softmax(student / temperature))

    found = value_and_gradient(c, student, (anchor, live), tokens)

    # q ∝ anchor^(1-a) live^a, each read at the rollout's temperature.
    as_p = lambda z: np.exp(np_log_softmax(z / temperature))
    q = as_p(anchor) ** (1 - a) * as_p(live) ** a
    q /= q.sum(-1, keepdims=True)
    mixed = temperature * np.log(q)
    expected = value_and_gradient(c, student, (mixed,), tokens)
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-10, atol=1e-15)


def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient():
    student, _, tokens = arrays()
    for divergence in DIVERGENCES:
        c = settings(sdpo__divergence=divergence)

        value, _, gradient = value_and_gradient(c, student, (student,), tokens)

        assert value == pytest.approx(0, abs=1e-15)
        np.testing.assert_allclose(gradient, 0, atol=1e-15)


def test_named_sums_are_weighted_means_and_carry_no_gradient():
    c = settings(sdpo__support="full")
    student, teachers, tokens = arrays()
    as_jax = functools.partial(jax.tree.map, jnp.asarray)

    def total(student):
        return sum(
            sdpo.loss(c, student, (jnp.asarray(teachers[0]),), as_jax(tokens))[
                1
            ].values()
        )

    _, sums, _ = value_and_gradient(c, student, (teachers[0],), tokens)
    logp, teacher_logp = np_log_softmax(student), np_log_softmax(teachers[0])
    gap = np_take(teacher_logp - logp, tokens.id_BC)
    entropy = -(np.exp(logp) * logp).sum(-1)
    weighted = lambda x: pytest.approx(np.sum(tokens.weight_BC * x), rel=1e-12)
    assert sums["teacher_advantage"] == weighted(gap)
    assert sums["entropy"] == weighted(entropy)
    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(student)), 0)


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"sdpo__support": "sampled_token"},
            "sampled_token.*set sdpo.divergence to reverse_kl, not jensen_shannon",
        ),
        (
            {
                "reprompt__demonstration_from": "nobody",
                "reprompt__show_feedback": "never",
            },
            "shows the teacher nothing",
        ),
    ],
)
def test_config_that_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        METHODS["sdpo"].check(settings(**fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"sdpo__support": "sampled_token", "sdpo__divergence": "reverse_kl"},
        {"reprompt__demonstration_from": "nobody"},
        {"reprompt__show_feedback": "never"},
    ],
)
def test_config_that_makes_sense_is_accepted(fields):
    METHODS["sdpo"].check(settings(**fields))


def test_divergence_is_given_as_data():
    c = settings(sdpo__divergence="reverse_kl", sdpo__keep_tail=False)

    found = METHODS["sdpo"].divergence(c)

    assert dataclasses.asdict(found) == {
        "kind": "reverse_kl",
        "mixture": 0.5,
        "support": "top_k",
        "top_k": KEPT,
        "keep_tail": False,
    }
