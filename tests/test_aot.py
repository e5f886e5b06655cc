"""The update, compiled for real TPUs, which are not needed for that; libtpu is.

  pip install --target .venv/aot libtpu

Not into the environment itself: there, plain JAX on a machine without a TPU would look
for one at every start. TPU_LIBRARY_PATH may name another libtpu.so.
"""

import dataclasses
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

from sdpo_jax import config, distributed, step, train_state
from sdpo_jax.batch import Attempts, Batch
from sdpo_jax.model import families
from tests import compiling

# A TPU's program is not read back without a TPU, nor what its compiler wrote to stderr.
pytestmark = pytest.mark.usefixtures("compiles")

# Four layers' worth of code is one layer's: they are scanned.
LAYERS, WIDTH, VOCAB = 4, 256, 4096
ROWS, PROMPT, RESPONSE, CHUNK = 32, 64, 256, 64


@dataclasses.dataclass(frozen=True)
class Case:
    """What is compiled, for which TPUs."""

    topology: str = "v5e:2x2"
    mesh: tuple[int, int, int] = (1, 2, 2)
    family: str = "qwen3"
    tied: bool = False
    attention: str = "splash"
    lora_rank: int = 0
    vocab: int = 0  # VOCAB if 0.

    def __str__(self):
        changed = [str(v) for v in dataclasses.astuple(self) if v != 0]
        return "-".join(changed)


FIRST = Case()
CASES = [
    FIRST,
    *(
        pytest.param(case, marks=pytest.mark.slow)
        for case in [
            Case(attention="xla"),
            Case("v5p:2x2x1", tied=True),
            Case(family="olmo3"),
            Case(family="olmo3", lora_rank=8),
            # That `tensor` does not divide, as Olmo3's 100,278 over four devices.
            Case(vocab=VOCAB - 1),
        ]
    ),
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
    # JAX reads its flags here; libtpu later, and an unknown one ends the process.
    jax.devices()
    flags = os.environ["XLA_FLAGS"].replace(compiling.CPU_ONLY, "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TPU_LIBRARY_PATH", path)
        patch.setenv("XLA_FLAGS", flags)
        yield


@functools.cache
def topology(name):
    return topologies.get_topology_desc(platform="tpu", topology_name=name)


def settings(case):
    c = config.default()
    c.model.attention, c.lora.rank = case.attention, case.lora_rank
    # "auto" asks which devices are present; here they are not those compiled for.
    c.model.dtype = "bfloat16"
    c.model.remat = "layer"
    c.rollout.questions = c.step.questions = 8
    c.rollout.attempts = ROWS // 8
    c.step.chunk, c.step.micro_batch = CHUNK, 2
    # The compiler sorts where it must find many of few: 100 of 2,048, not of 18,992.
    c.sdpo.top_k = 20
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = case.mesh
    return c


def architecture(case):
    kind = families.LayerKind(1e6)
    period = (kind,)
    if case.family == "olmo3":
        yarn = families.Yarn(8.0, 8192, 1.2, 32.0, 1.0, True)
        sliding = dataclasses.replace(kind, window=96)
        period = (sliding,) * 3 + (dataclasses.replace(kind, yarn=yarn),)
    return families.Architecture(
        family=case.family,
        vocab=case.vocab or VOCAB,
        width=WIDTH,
        mlp_width=2 * WIDTH,
        layers=LAYERS,
        heads=8,
        kv_heads=8,
        head_width=64,
        norm_eps=1e-6,
        **families.SWITCHES[case.family],
        tied=case.tied,
        max_positions=2**16,
        period=period,
    )


def abstract_batch(
    mesh, rows=ROWS, prompt=PROMPT, response=RESPONSE, rows_per_prompt=ROWS // 8
):
    place = distributed.sharding(mesh, "batch")
    array = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=place)
    attempts = Attempts(
        prompt_BP=array(jnp.int32, rows, prompt),
        response_BR=array(jnp.int32, rows, response),
        response_mask_BR=array(jnp.bool_, rows, response),
        sampler_logp_BR=array(jnp.float32, rows, response),
        rows_per_prompt=rows_per_prompt,
    )
    return Batch(
        attempts=attempts,
        reprompt_BQ=array(jnp.int32, rows, 2 * prompt),
        has_target_B=array(jnp.bool_, rows),
        loss_weight_B=array(jnp.float32, rows),
    )


def mesh_of(case):
    return distributed.make_mesh(settings(case).mesh, topology(case.topology).devices)


@functools.cache
def compiled_update(case):
    """The update compiled for a topology, and what the compiler wrote to stderr."""
    c, arch, mesh = settings(case), architecture(case), mesh_of(case)
    update = step.make_train_step(c, arch, mesh)
    lowered = update.lower(
        train_state.abstract_state(c, arch, mesh),
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


@pytest.mark.parametrize("case", CASES, ids=str)
def test_update_compiles_for_tpus_within_its_memory(case):
    compiled, log = compiled_update(case)

    memory = compiled.memory_analysis()
    print(case, memory)
    assert "rematerialization" not in log, log
    mesh = mesh_of(case)
    state = jax.tree.leaves(
        train_state.abstract_state(settings(case), architecture(case), mesh)
    )
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


# This libtpu cannot print programs that it compiled for v5p.
def test_attention_of_student_and_teacher_is_a_kernel():
    compiled, _ = compiled_update(FIRST)

    kernels = re.findall(r"splash\w+", compiled.as_text())

    assert any("fwd" in kernel for kernel in kernels), set(kernels)
    assert any("dkv" in kernel for kernel in kernels), set(kernels)


def test_devices_exchange_candidates_of_the_top_k_and_never_all_logits():
    compiled, _ = compiled_update(FIRST)

    moved = re.findall(
        r"= (.*?) (?:all-gather|all-to-all|collective-permute)(?:-start)?\("
        r".*?op_name=\"[^\"]*/top_k\"",
        compiled.as_text(),
    )

    sizes = [size for types in moved for size in sizes_of(types)]
    assert sizes, "top_k moves nothing: then this test is out of date"
    # One micro-batch's chunk of local logits, cut over `tensor`.
    assert max(sizes) < 2 * CHUNK * VOCAB // FIRST.mesh[2]


def test_the_top_k_is_found_without_a_sort_of_the_vocabulary():
    compiled, _ = compiled_update(FIRST)

    program = compiled.as_text()
    sorted_types = re.findall(r"= \(?(.*?)\)? sort\(", program)

    longest = max(size for types in sorted_types for size in _last_axes(types))
    assert longest < VOCAB // FIRST.mesh[2]
    assert 'custom_call_target="TopK"' in program


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["splash", "xla"])
def test_update_of_32768_tokens_fits_a_tpu(attention):
    prompt, length = 4096, 32768
    case = Case(family="olmo3", attention=attention)
    c, arch, mesh = settings(case), architecture(case), mesh_of(case)
    c.rollout.questions = c.step.questions = c.rollout.attempts = 2
    c.step.micro_batch, c.step.chunk = 1, 512

    memory = (
        step.make_train_step(c, arch, mesh)
        .lower(
            train_state.abstract_state(c, arch, mesh),
            abstract_batch(mesh, 4, prompt, length - 2 * prompt, rows_per_prompt=2),
            jax.ShapeDtypeStruct((), jnp.float32),
        )
        .compile()
        .memory_analysis()
    )

    print(case, memory)
    # Of one row, in float32, on one device.
    scores = arch.heads // mesh.shape["tensor"] * length**2 * 4
    assert memory.temp_size_in_bytes < scores / 8


def sizes_of(types):
    """Elements of each array of an HLO type."""
    shapes = re.findall(r"\w+\[([\d,]*)\]", types)
    return [math.prod(int(n) for n in shape.split(",") if n) for shape in shapes]


def _last_axes(types):
    """Length of the last axis of each array of an HLO type."""
    return [int(n) for n in re.findall(r"\w+\[(?:\d+,)*(\d+)\]", types)]


# The sampler's prefill and decode are compiled in tests/rollout/test_sampler_aot.py.
