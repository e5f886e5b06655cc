"""Meshes of every slice shape that Cloud TPU sells, made from their descriptions.

Nothing is compiled; see tests/test_aot.py for what these descriptions need.
"""

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from sdpo_jax import distributed, memory
from tests.test_aot import topology, tpu_compiler
from tests.test_memory import QWEN3_8B, settings

__all__ = ["tpu_compiler"]

SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "4x4x12")
SLICES = [
    *(f"{kind}:{shape}" for kind in ("v5e", "v6e") for shape in SQUARES),
    *(f"{kind}:{shape}" for kind in ("v4", "v5p", "tpu7x") for shape in CUBES),
]


def factorisations(count):
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    for data in divisors:
        for fsdp in divisors:
            if count // data % fsdp == 0:
                yield data, fsdp, count // data // fsdp


def make_mesh(sizes, devices):
    named = dict(zip(distributed.MESH_AXES, sizes, strict=True))
    return distributed.make_mesh(named, devices)


def places(devices):
    """[..., 4]: where each device is in its slice."""
    flat = [(*d.coords, d.core_on_chip) for d in devices.flat]
    return np.array(flat).reshape(*devices.shape, 4)


@pytest.mark.parametrize("name", SLICES)
def test_every_mesh_of_a_slice_keeps_tensor_neighbours_together(name):
    devices = topology(name).devices

    for sizes in factorisations(len(devices)):
        mesh = make_mesh(sizes, devices)

        assert mesh.devices.shape == sizes
        assert len({d.id for d in mesh.devices.flat}) == len(devices)
        assert mesh.axis_types == (jax.sharding.AxisType.Auto,) * 3
        # Each group along `tensor` fills a box of the network, without a hole.
        place = places(mesh.devices)
        box = np.prod(np.ptp(place, axis=2) + 1, axis=-1)
        assert (box == sizes[2]).all(), sizes


@pytest.mark.parametrize("name", ["v5e:4x8", "v6e:8x8", "v5p:4x4x8", "tpu7x:2x4x4"])
def test_meshes_that_jax_makes_itself_have_its_order(name):
    devices, same = topology(name).devices, 0

    for sizes in factorisations(len(devices)):
        try:
            expected = jax.make_mesh(sizes, distributed.MESH_AXES, devices=devices)
        except NotImplementedError:
            continue
        assert (make_mesh(sizes, devices).devices == expected.devices).all(), sizes
        same += 1
    assert same


@pytest.mark.parametrize(
    "name, sizes, fits",
    [
        ("v5e:4x8", (1, 8, 4), 184),
        ("v6e:2x4", (1, 2, 4), 66),
        ("v5p:2x2x1", (1, 1, 4), 175),
    ],
)
def test_the_default_of_rows_at_once_is_lowered_on_small_slices(name, sizes, fits):
    mesh = make_mesh(sizes, topology(name).devices)

    limit = memory.device_bytes(mesh)

    rows = memory.rows_that_fit(settings(), QWEN3_8B, mesh, limit, trains=True)
    assert rows == fits


def test_rows_only_are_split_over_slices():
    two = topologies.get_topology_desc(
        platform="tpu", topology_name="v5e:2x4", num_slices=2
    ).devices

    mesh = make_mesh((-1, 2, 2), two)

    assert mesh.devices.shape == (4, 2, 2)
    slices = np.vectorize(lambda d: d.slice_index)(mesh.devices)
    assert [set(part.flat) for part in np.split(slices, 2)] == [{0}, {1}]
    with pytest.raises(ValueError, match="mesh.data=1 does not divide by the 2 slices"):
        make_mesh((1, -1, 2), two)
