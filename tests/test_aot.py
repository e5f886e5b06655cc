"""The update, compiled for real TPUs, which are not needed for that; libtpu is.

  pip install --target .venv/aot libtpu

Not into the environment itself: there, plain JAX on a machine without a TPU would look
for one at every start. TPU_LIBRARY_PATH may name another libtpu.so.
"""

import functools
import importlib.util
import math
import os
import pathlib
import re
import sys
import tempfile

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from sdpo_jax import config, distributed, step
from sdpo_jax.batch import Attempts, Batch
from sdpo_jax.model import families

# Four layers' worth of code is one layer's: they are scanned.
LAYERS, WIDTH, VOCAB = 4, 256, 4096
ROWS, PROMPT, REPROMPT, RESPONSE, CHUNK = 32, 64, 128, 256, 64
CASES = [
    ("v5e:2x2", (1, 2, 2), False),
    pytest.param("v5p:2x2x1", (1, 2, 2), True, marks=pytest.mark.slow),
]
DEVICE_KIND = {"v5e:2x2": "TPU v5 lite", "v5p:2x2x1": "TPU v5"}


def libtpu():
    """Where libtpu.so lies, or None."""
    named = os.environ.get("TPU_LIBRARY_PATH")
    aside = pathlib.Path(sys.prefix) / "aot" / "libtpu" / "libtpu.so"
    installed = importlib.util.find_spec("libtpu")
    places = [named, aside]
    if installed and installed.origin:
        places.append(pathlib.Path(installed.origin).with_name("libtpu.so"))
    return next((str(p) for p in places if p and os.path.exists(p)), None)


@pytest.fixture(scope="module", autouse=True)
def tpu_compiler():
    """Make JAX find libtpu; elsewhere these tests are skipped, visibly."""
    path = libtpu()
    if path is None:
        pytest.skip("no libtpu: pip install --target .venv/aot libtpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_LIBRARY_PATH", path)
        yield


@functools.cache
def topology(name):
    return topologies.get_topology_desc(platform="tpu", topology_name=name)


def settings(mesh):
    c = config.default()
    # "auto" asks which devices are present; here they are not those compiled for.
    c.model.dtype = "bfloat16"
    c.model.remat = "layer"
    c.rollout.questions = c.step.questions = 8
    c.rollout.attempts = ROWS // 8
    c.step.chunk, c.step.micro_batch = CHUNK, 2
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = mesh
    return c


def architecture(tied):
    return families.Architecture(
        family="qwen3",
        vocab=VOCAB,
        width=WIDTH,
        mlp_width=2 * WIDTH,
        layers=LAYERS,
        heads=8,
        kv_heads=8,
        head_width=64,
        norm_eps=1e-6,
        **families.SWITCHES["qwen3"],
        tied=tied,
        max_positions=4096,
        period=(families.LayerKind(1e6),),
    )


def abstract_batch(mesh):
    rows = distributed.sharding(mesh, "batch")
    array = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=rows)
    attempts = Attempts(
        prompt_BP=array(jnp.int32, ROWS, PROMPT),
        response_BR=array(jnp.int32, ROWS, RESPONSE),
        response_mask_BR=array(jnp.bool_, ROWS, RESPONSE),
        sampler_logp_BR=array(jnp.float32, ROWS, RESPONSE),
    )
    return Batch(
        attempts=attempts,
        reprompt_BQ=array(jnp.int32, ROWS, REPROMPT),
        has_target_B=array(jnp.bool_, ROWS),
        advantage_B=array(jnp.float32, ROWS),
        old_logp_BR=None,
        loss_weight_B=array(jnp.float32, ROWS),
    )


@functools.cache
def compiled_update(name, shape, tied):
    """The update compiled for a topology, and what the compiler wrote to stderr."""
    c, arch = settings(shape), architecture(tied)
    mesh = distributed.make_mesh(c.mesh, topology(name).devices)
    update = step.make_train_step(c, arch, mesh)
    lowered = update.lower(
        step.abstract_state(c, arch, mesh),
        abstract_batch(mesh),
        jax.ShapeDtypeStruct((), jnp.float32),
    )
    with tempfile.TemporaryFile() as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            compiled = lowered.compile()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.seek(0)
        return compiled, file.read().decode(errors="replace")


@pytest.mark.parametrize("name", DEVICE_KIND)
def test_topology_describes_real_tpus(name):
    devices = topology(name).devices

    assert [d.device_kind for d in devices] == [DEVICE_KIND[name]] * 4


@pytest.mark.parametrize("name, mesh, tied", CASES)
def test_update_compiles_for_tpus_within_its_memory(name, mesh, tied):
    compiled, log = compiled_update(name, mesh, tied)

    memory = compiled.memory_analysis()
    print(name, mesh, memory)
    assert "rematerialization" not in log, log
    c, arch = settings(mesh), architecture(tied)
    mesh = distributed.make_mesh(c.mesh, topology(name).devices)
    state = jax.tree.leaves(step.abstract_state(c, arch, mesh))
    local = sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in state
    )
    # The state is donated, so it is held once; all else is one batch of ids.
    assert memory.alias_size_in_bytes >= local
    assert memory.argument_size_in_bytes < 1.1 * local + 2**20
    # Float32 logits of all of the step's tokens on one device. Had they not been cut,
    # those of student and teacher and their gradient would be held at once.
    rows = ROWS // distributed.batch_shards(mesh)
    whole = rows * RESPONSE * VOCAB * 4 // mesh.shape["tensor"]
    assert 0 < memory.temp_size_in_bytes < 2 * whole


# This libtpu cannot print the program that it compiled for v5p.
@pytest.mark.parametrize("name, mesh, tied", CASES[:1])
def test_devices_exchange_candidates_of_the_top_k_and_never_all_logits(
    name, mesh, tied
):
    compiled, _ = compiled_update(name, mesh, tied)

    moved = re.findall(
        r"= (.*?) (?:all-gather|all-to-all|collective-permute)(?:-start)?\("
        r".*?op_name=\"[^\"]*/top_k\"",
        compiled.as_text(),
    )

    sizes = [size for types in moved for size in _sizes(types)]
    assert sizes, "top_k moves nothing: then this test is out of date"
    # One micro-batch's chunk of local logits, cut over `tensor`.
    assert max(sizes) < 2 * CHUNK * VOCAB // mesh[2]


def _sizes(types):
    """Elements of each array of an HLO type."""
    shapes = re.findall(r"\w+\[([\d,]*)\]", types)
    return [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]


# The sampler's prefill and decode are compiled in tests/rollout/test_sampler_aot.py.
