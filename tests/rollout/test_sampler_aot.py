"""The sampler, compiled for real TPUs; see tests/test_aot.py for what that needs."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from sdpo_jax import distributed
from sdpo_jax.model import decoder
from sdpo_jax.rollout import Sampling, sampler
from tests.test_aot import (
    VOCAB,
    WIDTH,
    Case,
    architecture,
    mesh_of,
    sizes_of,
    tpu_compiler,
)

__all__ = ["tpu_compiler"]

# A TPU's program is not read back without a TPU.
pytestmark = pytest.mark.usefixtures("compiles")
COLLECTIVES = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute"

QUESTIONS, PROMPT, SLOTS = 8, 128, 64
SAMPLING = Sampling(4, 0.6, 0.95, 20, 256)


def abstract(mesh, arch):
    """Weights and prompts, placed as the sampler places them."""
    rows = distributed.sharding(mesh, "batch")
    shapes = jax.eval_shape(lambda: decoder.init(arch, jax.random.key(0)))
    place = lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where)
    params = jax.tree.map(place, shapes, decoder.shardings(arch, mesh))
    prompt_UP = jax.ShapeDtypeStruct((QUESTIONS, PROMPT), jnp.int32, sharding=rows)
    ids_U = jax.ShapeDtypeStruct((QUESTIONS,), jnp.uint32, sharding=rows)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return params, prompt_UP, ids_U, key


@functools.cache
def compiled_decoding(case):
    """The program that decodes, and the cache that it is given."""
    arch, mesh = architecture(case), mesh_of(case)
    place = functools.partial(sampler._place, arch)
    prepare = jax.jit(lambda p: decoder.unstack(arch, p, jnp.bfloat16, place))
    start = functools.partial(
        sampler._start, arch, (1, 2), "splash", sampling=SAMPLING, slots=SLOTS
    )
    extend = functools.partial(sampler._extend, arch, (1, 2), sampling=SAMPLING)

    with jax.set_mesh(mesh):
        params, *prompts = abstract(mesh, arch)
        number = jax.ShapeDtypeStruct((), jnp.int32)
        weights = like_outputs(prepare.lower(params).compile(), prepare, params)
        start = jax.jit(start)
        first = start.lower(weights, *prompts, number).compile()
        state = like_outputs(first, start, weights, *prompts, number)
        extend = jax.jit(extend, donate_argnums=1)
        decoding = extend.lower(weights, state, number).compile()
    return decoding, state.cache


CASES = [
    Case(tied=True),
    Case(),
    pytest.param(Case(vocab=VOCAB - 1), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_prefill_and_decoding_compile_for_tpus(case):
    decoding, cache = compiled_decoding(case)

    assert " while(" in decoding.as_text()
    memory = decoding.memory_analysis()
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache.layers))
    # The donated cache is written in place: it is never copied whole.
    assert memory.alias_size_in_bytes >= size / mesh_of(case).size


@pytest.mark.parametrize("case", CASES, ids=str)
def test_decoding_moves_logits_and_never_the_unembedding(case):
    decoding, _ = compiled_decoding(case)

    moved = re.findall(rf"= (.*?) (?:{COLLECTIVES})(?:-start)?\(", decoding.as_text())

    shards = distributed.batch_shards(mesh_of(case))
    logits = QUESTIONS * SAMPLING.attempts // shards * architecture(case).vocab
    assert max(size for types in moved for size in sizes_of(types)) == logits
    assert logits < WIDTH * VOCAB


def like_outputs(compiled, function, *args):
    """Shapes of what a compiled function returns, placed as it places them."""
    shapes = jax.eval_shape(function, *args)
    place = lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where)
    return jax.tree.map(place, shapes, compiled.output_shardings)
