"""The golden checkpoints, and how tests of reading and writing load them."""

import pathlib

import jax
import numpy as np

from sdpo_jax import distributed
from sdpo_jax.model import huggingface

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TIED, UNTIED = GOLDEN / "qwen3_tied", GOLDEN / "qwen3_untied"
ALL = sorted(file.parent for file in GOLDEN.glob("*/config.json"))
WEIGHTS = "model.safetensors"


def make_mesh(data=1, fsdp=1, tensor=1):
    shape = {"data": data, "fsdp": fsdp, "tensor": tensor}
    return distributed.make_mesh(shape, jax.devices()[: data * fsdp * tensor])


def load(path, mesh=None, **options):
    arch = huggingface.architecture(path)
    return arch, huggingface.load(path, arch, mesh or make_mesh(), **options)


def assert_same_bits(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
