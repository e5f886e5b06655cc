"""Every test sees eight CPU devices and JAX's strictest numerics."""

import os
import pathlib

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


# What takes longest with an empty cache, in `make test` or in `make test-slow`. The
# workers begin with it, so that none is left alone with a long file at the end.
LONGEST = (
    "test_aot.py",
    "test_run_command.py",
    "model/test_decoder.py",
    "test_step.py",
    "rollout/test_sampler.py",
    "test_end_to_end.py",
    "test_resume.py",
    "test_sweep.py",
)


def pytest_collection_modifyitems(items):
    folder = pathlib.Path(__file__).parent
    ranks = {folder / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture
def compiles():
    """Nothing is taken from the cache of compiled programs, and nothing put there."""
    with compiling.anew():
        yield
