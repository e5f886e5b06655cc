"""The sampler, compiled for real TPUs; see tests/test_aot.py for what that needs."""

import functools

import jax
import jax.numpy as jnp
import pytest

from sdpo_jax import distributed
from sdpo_jax.model import decoder
from sdpo_jax.rollout import Sampling, sampler
from tests.test_aot import Case, architecture, libtpu, mesh_of, tpu_compiler

__all__ = ["tpu_compiler"]

QUESTIONS, PROMPT, SLOTS = 8, 128, 64
SAMPLING = Sampling(4, 0.6, 0.95, 20, 256)


def abstract(mesh, arch):
    """Weights and prompts, placed as the sampler places them."""
    rows = distributed.sharding(mesh, "batch")
    shapes = jax.eval_shape(lambda: decoder.init(arch, jax.random.key(0)))
    axes = decoder.logical_axes(arch)
    place = lambda s, names: jax.ShapeDtypeStruct(
        s.shape, s.dtype, sharding=distributed.sharding(mesh, *names)
    )
    params = jax.tree.map(place, shapes, axes)
    prompt_UP = jax.ShapeDtypeStruct((QUESTIONS, PROMPT), jnp.int32, sharding=rows)
    ids_U = jax.ShapeDtypeStruct((QUESTIONS,), jnp.uint32, sharding=rows)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return params, prompt_UP, ids_U, key


@pytest.mark.skipif(libtpu() is None, reason="no libtpu: see tests/test_aot.py")
def test_prefill_and_decoding_compile_for_tpus(compiles):
    case = Case(tied=True)
    arch, mesh = architecture(case), mesh_of(case)
    prepare = jax.jit(functools.partial(sampler._prepare, arch, jnp.bfloat16))
    start = functools.partial(
        sampler._start, arch, (1, 2), "splash", sampling=SAMPLING, slots=SLOTS
    )
    extend = functools.partial(sampler._extend, arch, (1, 2), sampling=SAMPLING)

    with jax.set_mesh(mesh):
        params, *prompts = abstract(mesh, arch)
        weights = like_outputs(prepare.lower(params).compile(), prepare, params)
        start = jax.jit(start)
        first = start.lower(weights, *prompts).compile()
        state = like_outputs(first, start, weights, *prompts)
        decoding = jax.jit(extend, donate_argnums=1).lower(weights, state).compile()

    assert " while(" in decoding.as_text()
    memory = decoding.memory_analysis()
    cache = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.cache.layers))
    # The donated cache is written in place: it is never copied whole.
    assert memory.alias_size_in_bytes >= cache / mesh.size


def like_outputs(compiled, function, *args):
    """Shapes of what a compiled function returns, placed as it places them."""
    shapes = jax.eval_shape(function, *args)
    place = lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where)
    return jax.tree.map(place, shapes, compiled.output_shardings)
