import dataclasses
import functools
import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdpo_jax import config, distributed, step
from sdpo_jax.batch import PAD
from sdpo_jax.model import decoder, huggingface
from sdpo_jax.rollout import Sampling, drawing, sampler

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
# Same float32 formulas, other orders of summation.
TOLERANCE = 1e-5
SAMPLING = Sampling(attempts=4, temperature=1.0, top_p=1.0, top_k=0, max_response=12)
# Ids name prompts, whatever their order and neighbours.
PROMPTS = {7: [5], 0: [3, 1, 4, 1, 5, 9], 2: [2, 7, 1, 8, 2, 8, 1, 8], 31: [6, 2]}
KEY = jax.random.key(3)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """What is tested here is compiled a dozen times and run for a dozen tokens."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def make_mesh(*sizes):
    shape = dict(zip(distributed.MESH_AXES, sizes, strict=True))
    return distributed.make_mesh(shape, jax.devices()[: np.prod(sizes)])


def make_sampler(arch, mesh=None, **changes):
    fields = {
        "dtype": jnp.float32,
        "stop_ids": (),
        "max_prompt": 8,
        "rows_at_once": 64,
    }
    mesh = mesh or make_mesh(1, 1, 1)
    return sampler.Sampler(arch, mesh, **fields | changes)


def load(name, mesh=None):
    arch = huggingface.architecture(GOLDEN / name)
    return arch, huggingface.load(GOLDEN / name, arch, mesh or make_mesh(1, 1, 1))


@pytest.fixture(scope="module")
def small():
    """One layer, whose logits leave many tokens likely."""
    arch = huggingface.architecture(GOLDEN / "qwen3_untied")
    arch = dataclasses.replace(arch, layers=1)
    shapes = jax.eval_shape(lambda: decoder.init(arch, jax.random.key(0)))
    rng = np.random.default_rng(0)
    draw = lambda s: jnp.asarray(rng.normal(0.5, 0.2, s.shape), jnp.float32)
    centred = lambda s: draw(s) - 0.5 if s.ndim > 1 else draw(s)
    return arch, jax.tree.map(centred, shapes)


@pytest.fixture(scope="module")
def engine(small):
    return make_sampler(small[0])


@pytest.fixture(scope="module")
def drawn(small, engine):
    return by_prompt(small, engine)


def sample(small, engine, prompts=PROMPTS, sampling=SAMPLING, key=KEY):
    return engine.sample(small[1], list(prompts.values()), list(prompts), sampling, key)


def by_prompt(small, engine, prompts=PROMPTS, sampling=SAMPLING, key=KEY):
    """Prompt id -> tokens and log-probabilities of its attempts."""
    attempts = sample(small, engine, prompts, sampling, key)
    shape = (len(prompts), sampling.attempts, sampling.max_response)
    token_UGR = attempts.response_BR.reshape(shape)
    logp_UGR = attempts.sampler_logp_BR.reshape(shape)
    return dict(zip(prompts, zip(token_UGR, logp_UGR, strict=True), strict=True))


def test_rows_are_handed_on_in_order_and_are_those_of_the_result(small):
    engine = make_sampler(small[0], rows_at_once=SAMPLING.attempts * 2)
    seen = []
    prompts = list(PROMPTS.values())

    whole = engine.sample(
        small[1], prompts, list(PROMPTS), SAMPLING, KEY, lambda *x: seen.append(x)
    )

    assert len(seen) > 1
    joined = jax.tree.map(lambda *x: np.concatenate(x), *(part for _, part in seen))
    chex.assert_trees_all_equal(joined, whole)
    rows = [row for rows, part in seen for row in range(rows.start, rows.stop)]
    assert rows == list(range(len(whole.response_BR)))


def assert_same(found, expected):
    for name, (token_GR, logp_GR) in found.items():
        np.testing.assert_array_equal(token_GR, expected[name][0])
        np.testing.assert_allclose(logp_GR, expected[name][1], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    "name", ["qwen2_sliding", pytest.param("olmo3_grouped", marks=pytest.mark.slow)]
)
def test_greedy_tokens_equal_those_of_transformers(name, monkeypatch):
    # The cache grows twice, and prompts of three lengths are padded.
    monkeypatch.setattr(sampler, "_FIRST_SLOTS", 16)
    arch, params = load(name)
    golden_BT = np.load(GOLDEN / name / "expected.npz")["greedy_BT"]
    lengths, new = [8, 12, 15], 40
    prompts = [row[:n].tolist() for row, n in zip(golden_BT, lengths, strict=True)]
    engine = make_sampler(arch, max_prompt=16)

    attempts = engine.sample(
        params, prompts, range(3), Sampling(2, 0.0, 1.0, 0, new), KEY
    )

    expected = [row[n : n + new] for row, n in zip(golden_BT, lengths, strict=True)]
    np.testing.assert_array_equal(attempts.response_BR, np.repeat(expected, 2, axis=0))
    np.testing.assert_array_equal(attempts.sampler_logp_BR, 0)
    assert attempts.response_mask_BR.all()


# The model itself is compared in test_decoder.py.
DRAWN_IN_EVERY_TEST = ("qwen3_tied", "olmo3_grouped")


@pytest.mark.parametrize(
    "name",
    [
        path.name
        if path.name in DRAWN_IN_EVERY_TEST
        else pytest.param(path.name, marks=pytest.mark.slow)
        for path in sorted(GOLDEN.iterdir())
        if path.is_dir()
    ],
)
def test_tokens_are_drawn_from_what_transformers_draws_from(name):
    arch, params = load(name)
    golden = np.load(GOLDEN / name / "expected.npz")
    sampling = Sampling(1, **json.loads(golden["sampling"].item()), max_response=8)
    prompt_B8, response_B8 = np.split(golden["sampled_BT"], 2, axis=1)

    hidden = functools.partial(decoder.hidden_before, arch, dtype=jnp.float32)
    logits_BRV = jax.jit(hidden)(params, prompt_B8, response_B8) @ decoder.unembedding(
        arch, params
    )

    expected_XV = golden["sampled_logp_BRV"].reshape(-1, arch.vocab)
    logits_XV = logits_BRV.reshape(expected_XV.shape)
    uniform_N = jnp.asarray((np.arange(4096) + 0.5) / 4096, jnp.float32)
    draw_all = jax.jit(
        lambda logits_V: drawing.draw(
            jnp.broadcast_to(logits_V, (4096, arch.vocab)), uniform_N, sampling
        )
    )
    for logits_V, expected_V in zip(logits_XV, expected_XV, strict=True):
        token_N, logp_N = draw_all(logits_V[None])
        # Every token as often as it is likely, and none that is excluded.
        count_V = np.bincount(token_N, minlength=arch.vocab)
        assert np.max(np.abs(count_V - 4096 * np.exp(expected_V))) < 2
        np.testing.assert_allclose(logp_N, expected_V[token_N], rtol=0, atol=5e-5)


def test_draws_do_not_depend_on_neighbours_or_order(small, engine, drawn):
    others = {99: [1, 2, 3], 31: PROMPTS[31], 98: [5] * 7, 7: PROMPTS[7]}

    found = by_prompt(small, engine, others)

    assert_same({name: found[name] for name in (7, 31)}, drawn)


def test_draws_do_not_depend_on_the_number_of_groups(small, drawn):
    # Three prompts at once: the second group is filled up.
    engine = make_sampler(small[0], rows_at_once=3 * SAMPLING.attempts)
    assert_same(by_prompt(small, engine), drawn)


def test_fewer_and_shorter_attempts_are_the_beginning_of_more(small, engine, drawn):
    fewer = dataclasses.replace(SAMPLING, attempts=2, max_response=5)

    found = by_prompt(small, engine, sampling=fewer)

    expected = {n: (token[:2, :5], logp[:2, :5]) for n, (token, logp) in drawn.items()}
    assert_same(found, expected)


@pytest.mark.parametrize(
    "sizes", [(1, 1, 1), pytest.param((2, 1, 1), marks=pytest.mark.slow)]
)
def test_draws_do_not_depend_on_fewer_rows_at_once_than_attempts(small, drawn, sizes):
    # Two rows on each shard, for three attempts: the second part holds one too many.
    arch, params = small
    mesh = make_mesh(*sizes)
    engine = make_sampler(arch, mesh, rows_at_once=2 * sizes[0])
    placed = jax.tree.map(jax.device_put, params, decoder.shardings(arch, mesh))
    three = dataclasses.replace(SAMPLING, attempts=3)
    rows, start = [], engine._start
    engine._start = lambda *args, **fields: (
        rows.append(fields["sampling"].attempts) or start(*args, **fields)
    )

    found = by_prompt((arch, placed), engine, sampling=three)

    assert rows == [2] * 2 * (len(PROMPTS) // sizes[0])
    assert_same(found, {n: (token[:3], logp[:3]) for n, (token, logp) in drawn.items()})


def test_draws_do_not_depend_on_padding_or_how_the_cache_grows(
    small, drawn, monkeypatch
):
    monkeypatch.setattr(sampler, "_FIRST_SLOTS", 5)
    grown, engine = [], make_sampler(small[0], max_prompt=13)
    grow = engine._grow
    engine._grow = lambda cache, slots: grown.append(slots) or grow(cache, slots=slots)

    found = by_prompt(small, engine)

    assert grown == [10, 12]
    assert_same(found, drawn)


def test_no_second_copy_of_weights_or_cache_is_ever_held(small, monkeypatch):
    monkeypatch.setattr(sampler, "_FIRST_SLOTS", 5)
    engine, prepared, grown = make_sampler(small[0]), [], []
    place, pad = engine._place, engine._pad
    engine._place = lambda part: prepared.append(part) or place(part)

    def recorded(x, more):
        assert all(earlier.is_deleted() for earlier in grown)
        grown.append(x)
        return pad(x, more=more)

    engine._pad = recorded
    by_prompt(small, engine)

    parts = [name for part in prepared for name in part]
    assert parts == ["embed", "head", "norm", "layers"]
    # Keys and values of one layer, twice.
    assert len(grown) == 4


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 4, 2), (2, 2, 2)])
def test_draws_do_not_depend_on_the_mesh(small, drawn, sizes):
    arch, params = small
    mesh = make_mesh(*sizes)
    axes = decoder.logical_axes(arch)
    place = lambda x, axes: jax.device_put(x, distributed.sharding(mesh, *axes))
    params = jax.tree.map(place, params, axes)

    found = by_prompt((arch, params), make_sampler(arch, mesh))

    assert_same(found, drawn)


@pytest.mark.slow
def test_draws_do_not_depend_on_a_mesh_that_does_not_divide_the_vocabulary(small):
    arch, params = small
    arch = dataclasses.replace(arch, vocab=arch.vocab - 1)
    kernel_DV = params["head"]["kernel_DV"][:, : arch.vocab]
    table_VD = params["embed"]["table_VD"][: arch.vocab]
    params |= {"head": {"kernel_DV": kernel_DV}, "embed": {"table_VD": table_VD}}
    mesh = make_mesh(1, 2, 2)
    placed = jax.tree.map(jax.device_put, params, decoder.shardings(arch, mesh))

    found = by_prompt((arch, placed), make_sampler(arch, mesh))

    assert_same(found, by_prompt((arch, params), make_sampler(arch)))


def test_questions_attempts_positions_and_keys_draw_different_numbers(
    small, engine, drawn
):
    ids_U = np.array([0, 1, 7, 2**32 - 1], np.uint32)
    one_BR = jax.jit(lambda key: sampler._uniforms(key, ids_U, jnp.arange(4), 12))(KEY)
    twins = {n: PROMPTS[7] for n in PROMPTS}

    found = by_prompt(small, engine, twins)
    other = by_prompt(small, engine, twins, key=jax.random.key(4))

    assert one_BR.shape == (16, 12)
    assert len(np.unique(one_BR)) == one_BR.size
    rows = [*found.values(), *other.values()]
    assert len(np.unique(np.concatenate([token for token, _ in rows]), axis=0)) == 32
    assert_same({7: found[7]}, drawn)


@functools.cache
def scorer(arch, temperature):
    c = config.default()
    c.rollout.temperature, c.step.chunk = temperature, 5
    c.rollout.attempts = SAMPLING.attempts
    return step.make_scorer(c, arch, make_mesh(1, 1, 1))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_log_probs_are_the_trainers(small, engine, temperature):
    arch, params = small
    sampling = dataclasses.replace(SAMPLING, temperature=temperature)

    attempts = sample(small, engine, sampling=sampling)
    logp_BR = scorer(arch, temperature)(params, attempts)

    assert attempts.sampler_logp_BR.min() < -3
    np.testing.assert_allclose(
        attempts.sampler_logp_BR, logp_BR, rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 0.7}, {"top_p": 0.8}, {"top_k": 5}, {"temperature": 0.0}],
)
def test_log_probs_at_temperature_1_stand_beside_others(small, engine, changes):
    arch, params = small

    attempts = sample(small, engine, sampling=dataclasses.replace(SAMPLING, **changes))
    logp_BR = scorer(arch, 1.0)(params, attempts)

    np.testing.assert_allclose(attempts.policy_logp_BR, logp_BR, rtol=0, atol=TOLERANCE)
    assert np.abs(attempts.sampler_logp_BR - logp_BR).max() > 0.1


def test_log_probs_at_temperature_1_are_not_kept_twice(small, engine):
    assert sample(small, engine).policy_logp_BR is None


def test_weights_in_bfloat16_draw_almost_from_the_trainers_distribution(small):
    arch, params = small
    engine = make_sampler(arch, dtype=jnp.bfloat16)

    attempts = sample(small, engine)
    logp_BR = scorer(arch, 1.0)(params, attempts)

    assert attempts.sampler_logp_BR.dtype == np.float32
    # Eight bits of mantissa: 0.01 seen, on logits of size 3.
    np.testing.assert_allclose(attempts.sampler_logp_BR, logp_BR, rtol=0, atol=0.03)


def test_stop_tokens_end_rows_and_the_last_of_them_ends_decoding(
    small, drawn, monkeypatch
):
    monkeypatch.setattr(sampler, "_FIRST_SLOTS", 3)
    token_BR = np.concatenate([token for token, _ in drawn.values()])
    logp_BR = np.concatenate([logp for _, logp in drawn.values()])
    # Every row stops by its fifth token, some before: the cache grows once, to 6.
    stop_ids = sorted({int(token) for token in token_BR[:, 4]})
    first_B = np.isin(token_BR, stop_ids).argmax(axis=1)
    exists_BR = np.arange(SAMPLING.max_response) <= first_B[:, None]
    lengths, engine = [], make_sampler(small[0], stop_ids=stop_ids)
    extend = engine._extend

    def spy(*args, **options):
        state, ended = extend(*args, **options)
        lengths.append(int(state.length))
        return state, ended

    engine._extend = spy

    found = sample(small, engine)

    assert first_B.min() < 4
    assert lengths == [3, first_B.max() + 1] == [3, 5]
    np.testing.assert_array_equal(found.response_BR, np.where(exists_BR, token_BR, PAD))
    np.testing.assert_array_equal(found.response_mask_BR, exists_BR)
    np.testing.assert_allclose(
        found.sampler_logp_BR, np.where(exists_BR, logp_BR, 0), rtol=0, atol=TOLERANCE
    )


def test_signals_are_looked_at_between_tokens_and_change_nothing(small, monkeypatch):
    monkeypatch.setattr(sampler, "_FIRST_SLOTS", 8)
    looks = []
    engine = make_sampler(small[0], check_stop=lambda: looks.append("look"))
    whole = sample(small, engine)
    assert looks == ["look"]

    monkeypatch.setattr(sampler, "_LOOK", 5)
    cut = sample(small, engine)

    # At first after 8 tokens of 12, where the cache grows; then after 5 and 8.
    assert looks == ["look"] * 3
    jax.tree.map(np.testing.assert_array_equal, whole, cut)


def test_attempts_hold_prompts_padded_left_and_adjacent_rows(small, engine):
    attempts = sample(small, engine)

    assert attempts.prompt_BP.shape == (16, 8)
    assert attempts.rows_per_prompt == SAMPLING.attempts
    for row, prompt_P in enumerate(attempts.prompt_BP):
        prompt = list(PROMPTS.values())[row // SAMPLING.attempts]
        np.testing.assert_array_equal(prompt_P[: 8 - len(prompt)], PAD)
        np.testing.assert_array_equal(prompt_P[8 - len(prompt) :], prompt)
    assert attempts.response_BR.shape == (16, 12)
    assert attempts.response_mask_BR.all()


@pytest.mark.parametrize("prompts", [[[]], [[1], []], [[1] * 9, [1]]])
def test_empty_and_too_long_prompts_are_rejected(engine, prompts):
    with pytest.raises(ValueError, match="must hold 1 to 8 tokens, the longest here"):
        engine.sample({}, prompts, range(len(prompts)), SAMPLING, KEY)
