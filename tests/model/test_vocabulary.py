import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.topk_tail_kl import chunked
from sdpo_jax import config, distributed, methods
from sdpo_jax.methods.tokens import Tokens
from sdpo_jax.model import decoder, families, vocabulary

WIDTH, VOCAB, ROWS, TIME = 8, 13, 4, 6
ARCH = families.Architecture(
    family="qwen3",
    vocab=VOCAB,
    width=WIDTH,
    mlp_width=8,
    layers=1,
    heads=4,
    kv_heads=4,
    head_width=2,
    norm_eps=1e-6,
    **families.SWITCHES["qwen3"],
    tied=False,
    max_positions=8,
    period=(families.LayerKind(1e4),),
)


def mesh():
    return distributed.make_mesh({"data": 1, "fsdp": 2, "tensor": 4})


def arrays():
    r = np.random.default_rng(0)
    of = lambda *shape: r.normal(size=shape)
    hidden, teacher = of(ROWS, TIME, WIDTH), of(ROWS, TIME, WIDTH)
    token_BR = r.integers(0, VOCAB, (ROWS, TIME)).astype(np.int32)
    return hidden, 3 * of(WIDTH, VOCAB), teacher, 3 * of(WIDTH, VOCAB), token_BR


def value_and_gradient(c, arch, shards, hidden, kernel, teacher, other, token_BR):
    """Of the method's loss, as the update computes them from stored weights."""
    tokens = Tokens(
        id_BC=token_BR,
        weight_BC=jnp.ones(token_BR.shape),
        advantage_BC=None,
        sampler_logp_BC=jnp.full(token_BR.shape, -2.0),
        old_logp_BC=None,
    )
    padded = lambda kernel: vocabulary.unembedding(
        arch, {"head": {"kernel_DV": kernel}}
    )

    def loss(hidden, kernel):
        copies = jnp.broadcast_to(padded(kernel)[None], (shards, *padded(kernel).shape))
        return chunked.sum_over_chunks(
            vocabulary.loss_within(arch, functools.partial(methods.of(c).loss, c)),
            (hidden, distributed.constrain(copies, "batch", None, "vocab")),
            ((teacher, padded(other)),),
            token_BR >= 0,
            tokens,
            chunk=3,
            batch_axes=distributed.RULES["batch"] if shards > 1 else (),
        )

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, kernel)


@pytest.mark.parametrize("support", ["full", "top_k"])
def test_loss_and_gradient_do_not_depend_on_padding(support):
    c = config.default()
    c.sdpo.support, c.sdpo.top_k = support, 3

    with jax.enable_x64(True):
        run = functools.partial(value_and_gradient, c, ARCH)
        expected = jax.jit(functools.partial(run, 1))(*arrays())
        with jax.set_mesh(mesh()):
            found = jax.jit(functools.partial(run, 2))(*arrays())

    close = functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-12)
    jax.tree.map(close, found, expected)


def test_padding_is_never_likely():
    logits = jnp.full((2, 16), 5.0)

    logp = jax.nn.log_softmax(vocabulary.within(ARCH, logits))

    np.testing.assert_allclose(logp[:, :VOCAB], -np.log(VOCAB), rtol=1e-6)
    assert (np.exp(logp[:, VOCAB:]) == 0).all()
    assert np.isfinite(logp).all()


def test_vocabulary_that_divides_is_left_alone():
    kernel = jnp.ones((WIDTH, 12))
    arch = dataclasses.replace(ARCH, vocab=12)

    with jax.set_mesh(mesh()):
        found = vocabulary.unembedding(arch, {"head": {"kernel_DV": kernel}})

    assert found is kernel
    assert vocabulary.within(arch, kernel) is kernel


@pytest.mark.parametrize(
    "change, message",
    [
        ({"heads": 6}, r"out_HED (1, 6, 2, 8): mesh.tensor=4 does not divide its axis"),
        ({"kv_heads": 2}, "key_DNE (1, 8, 2, 2): mesh.tensor=4 does not divide its ax"),
        ({"mlp_width": 6}, "down_FD (1, 6, 8): mesh.tensor=4 does not divide its axis"),
        ({"width": 12}, "table_VD (13, 12): mesh.tensor=4 x mesh.fsdp=2 does not divi"),
    ],
)
def test_other_sizes_that_do_not_divide_are_refused(change, message):
    arch = dataclasses.replace(ARCH, **change)

    with pytest.raises(ValueError, match=re.escape(message)):
        decoder.shardings(arch, mesh())
