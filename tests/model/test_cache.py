import jax
import jax.numpy as jnp
import numpy as np

from sdpo_jax.model import attention
from sdpo_jax.model import cache as kv_cache

PROMPTS, GROUP, PROMPT, SLOTS, HEADS, KV_HEADS, WIDTH = 2, 3, 16, 8, 4, 2, 32
TOKEN = SLOTS - 1


def attend_in_float64(q, layer):
    """Softmax attention of every row's token to its prompt and its response."""
    join = lambda shared, own: np.concatenate(
        [np.repeat(shared, GROUP, 0), own], axis=2
    )
    k = join(layer.prompt_k, layer.response_k)
    v = join(layer.prompt_v, layer.response_v)
    grouped = q.reshape(PROMPTS * GROUP, KV_HEADS, HEADS // KV_HEADS, WIDTH)
    score = np.einsum("bnhe,bnse->bnhs", grouped, k) * WIDTH**-0.5
    weight = np.exp(score - score.max(-1, keepdims=True))
    out = np.einsum("bnhs,bnse->bnhe", weight / weight.sum(-1, keepdims=True), v)
    return out.reshape(q.shape), np.abs(score).max()


def test_scores_of_decoding_accumulate_in_float32():
    r = np.random.default_rng(0)
    near = lambda mean, *shape: jnp.asarray(r.normal(mean, 1, shape), jnp.bfloat16)
    shared = lambda mean: near(mean, PROMPTS, KV_HEADS, PROMPT, WIDTH)
    own = lambda mean: near(mean, PROMPTS * GROUP, KV_HEADS, SLOTS, WIDTH)
    layer = kv_cache.LayerCache(shared(8), shared(0), own(8), own(0))
    # Scores of about 90 with close neighbours: bfloat16 would round them by up to 1/4.
    q_B1HE = near(2, PROMPTS * GROUP, 1, HEADS, WIDTH)
    exists_UP = jnp.ones((PROMPTS, PROMPT), bool)

    found = kv_cache.read(q_B1HE, layer, exists_UP, jnp.asarray(TOKEN), None)

    wide = lambda x: np.asarray(x, np.float64)
    expected, largest = attend_in_float64(wide(q_B1HE), jax.tree.map(wide, layer))
    assert largest > 64
    assert found.dtype == jnp.bfloat16
    # Weights, sums and the result are rounded to 8 bits: three times 2**-9 of numbers
    # up to 3.
    np.testing.assert_allclose(wide(found), expected, rtol=0, atol=9 * 2**-9)


def test_sums_of_values_are_in_the_dtype_that_is_asked_for():
    keys = 257  # Between 256 and 258, which are neighbours in bfloat16.
    q, k, v = (
        jnp.full((1, size, 1, 2), x, jnp.bfloat16)
        for size, x in ((1, 0), (keys, 0), (keys, 1))
    )

    partial = attention.attend_partially(
        q, k, v, jnp.ones((1, 1, keys), bool), jnp.float32
    )

    np.testing.assert_array_equal(partial.mixed_BTHE, np.full((1, 1, 1, 2), keys))
