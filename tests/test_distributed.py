import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sdpo_jax import distributed
from sdpo_jax.model import decoder, families

SHAPE = {"data": 2, "fsdp": 2, "tensor": 2}


def mesh(**shape):
    return distributed.make_mesh(SHAPE | shape)


@pytest.mark.parametrize(
    "shape, sizes",
    [
        ((2, 2, 2), (2, 2, 2)),
        ((-1, 1, 1), (8, 1, 1)),
        ((1, -1, 2), (1, 4, 2)),
        ((2, 2, -1), (2, 2, 2)),
        ((8, -1, 1), (8, 1, 1)),
    ],
)
def test_mesh_has_the_sizes_asked_for(shape, sizes):
    found = distributed.make_mesh(dict(zip(distributed.MESH_AXES, shape, strict=True)))

    assert found.axis_names == ("data", "fsdp", "tensor")
    assert found.devices.shape == sizes
    assert {d.id for d in found.devices.flat} == {d.id for d in jax.devices()}


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, -1, 1), (-1, -1, 1), (4, 4, 1)])
def test_mesh_that_does_not_cover_the_devices_is_refused(shape):
    named = " x ".join(
        f"mesh.{axis}={size}"
        for axis, size in zip(distributed.MESH_AXES, shape, strict=True)
    )
    with pytest.raises(ValueError, match=f"{named} does not cover the 8 devices"):
        distributed.make_mesh(dict(zip(distributed.MESH_AXES, shape, strict=True)))


def test_mesh_of_some_devices():
    two = jax.devices()[:2]

    found = distributed.make_mesh({"data": 1, "fsdp": -1, "tensor": 1}, two)

    assert list(found.devices.flat) == two


@pytest.mark.parametrize("family", families.SWITCHES)
def test_every_axis_of_the_model_has_a_rule(family):
    arch = families.Architecture(
        family=family,
        vocab=8,
        width=4,
        mlp_width=8,
        layers=1,
        heads=2,
        kv_heads=2,
        head_width=2,
        norm_eps=1e-6,
        **families.SWITCHES[family],
        tied=False,
        max_positions=8,
        period=(families.LayerKind(1e4),),
    )
    axes = jax.tree.leaves(decoder.logical_axes(arch))

    used = {axis for axis in axes if axis is not None}
    assert used <= distributed.RULES.keys()
    for rule in distributed.RULES.values():
        names = (rule,) if isinstance(rule, str) else rule
        assert set(names) <= set(distributed.MESH_AXES)


def test_spec_maps_logical_axes_and_keeps_none_whole():
    found = distributed.spec("batch", None, "vocab")

    assert found == PartitionSpec(("data", "fsdp"), None, "tensor")


def test_batch_shards_counts_the_axes_that_cut_rows():
    assert distributed.batch_shards(mesh()) == 4
    assert distributed.batch_shards(mesh(data=1, fsdp=8, tensor=1)) == 8
    assert distributed.batch_shards(mesh(data=1, fsdp=1, tensor=8)) == 1


def test_constrain_without_a_mesh_is_the_identity():
    x = jnp.arange(4)

    assert distributed.constrain(x, "batch") is x


def test_constrain_with_a_mesh_is_in_the_jaxpr_and_places_the_result():
    pin = lambda x: distributed.constrain(2 * x, "batch", "vocab")
    x = jnp.ones((4, 6))

    with jax.set_mesh(mesh()):
        jaxpr = jax.make_jaxpr(pin)(x)
        placed = jax.jit(pin)(x)

    (equation,) = (e for e in jaxpr.eqns if e.primitive.name == "sharding_constraint")
    assert equation.params["sharding"].spec == distributed.spec("batch", "vocab")
    assert placed.sharding.spec == distributed.spec("batch", "vocab")
    assert placed.addressable_shards[0].data.shape == (1, 3)


def test_arrays_go_to_devices_by_rows_and_come_back_whole():
    tree = {"rows": np.arange(24).reshape(8, 3).astype(np.int32), "one": np.float32(7)}

    placed = distributed.to_devices(tree, mesh())
    back = distributed.to_host(placed)

    assert placed["rows"].sharding.spec == distributed.spec("batch")
    assert placed["rows"].addressable_shards[0].data.shape == (2, 3)
    assert placed["one"].sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in back.values())


@pytest.mark.parametrize("joined, calls", [(False, 1), (True, 0)])
def test_hosts_are_joined_once(joined, calls, monkeypatch):
    made = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: joined)
    monkeypatch.setattr(jax.distributed, "initialize", lambda: made.append(1))

    distributed.start()

    assert len(made) == calls


@pytest.mark.parametrize(
    "error",
    [
        ValueError("coordinator_address should be defined."),
        RuntimeError("initialize() must be called before any JAX calls.\nTwice."),
    ],
)
def test_starting_without_other_hosts_says_so(error, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", fail)

    with pytest.raises(ValueError, match="--multi_host: found no hosts.*on one host"):
        distributed.start()
    assert not jax.distributed.is_initialized()
    assert math.prod(mesh().devices.shape) == jax.device_count()


@pytest.mark.parametrize(
    "platforms, reason, remedy",
    [
        ("tpu", ".*Failed to open libtpu.so.*", r"jax\[tpu\]"),
        ("cuda", "no plugin for it is installed", r"jax\[cuda12\]"),
        ("abacus", ".*not in the list of known backends.*", "JAX_PLATFORMS$"),
    ],
)
def test_missing_platform_is_one_line_with_the_remedy(platforms, reason, remedy):
    # What is looked for is fixed when a process first asks for its devices.
    script = "from sdpo_jax import distributed; distributed.is_first()"
    env = {k: v for k, v in os.environ.items() if not k.startswith("TPU_")}

    found = subprocess.run(
        [sys.executable, "-c", script],
        env=env | {"JAX_PLATFORMS": platforms},
        capture_output=True,
        text=True,
    )

    last = found.stderr.strip().splitlines()[-1]
    told = rf"ValueError: JAX_PLATFORMS={platforms}: .*\({reason}\); unset .*{remedy}"
    assert re.match(told, last), last
