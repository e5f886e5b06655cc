"""Every test sees eight CPU devices and JAX's strictest numerics."""

import os

import pytest

from tests import compiling

os.environ["JAX_PLATFORMS"] = "cpu"
compiling.set_environment()
# Ahead-of-time compilation for TPUs needs libtpu, never a TPU.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_WORKER_ID", "0")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def compiles():
    """Nothing is taken from the cache of compiled programs, and nothing put there."""
    with compiling.anew():
        yield
