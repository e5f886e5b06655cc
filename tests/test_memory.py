import dataclasses
import pathlib

import pytest

from sdpo_jax import components, config, distributed, memory
from sdpo_jax.model import families

GOLDEN = pathlib.Path(__file__).parent / "golden"
GIB = 2**30
QWEN3_8B = families.Architecture(
    family="qwen3",
    vocab=151_936,
    width=4096,
    mlp_width=12_288,
    layers=36,
    heads=32,
    kv_heads=8,
    head_width=128,
    norm_eps=1e-6,
    **families.SWITCHES["qwen3"],
    tied=False,
    max_positions=40_960,
    period=(families.LayerKind(1e6),),
)
PARAMETERS = 8.19e9
# Of keys and values in bfloat16: 36 layers x 8 heads x 128 numbers, twice.
PER_TOKEN = 147_456


def settings(**fields):
    c = config.default()
    c.model.dtype = "bfloat16"
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return c


def make_mesh(*sizes):
    return distributed.make_mesh(dict(zip(distributed.MESH_AXES, sizes, strict=True)))


def test_needs_are_those_counted_by_hand():
    found = memory.needs(settings(), QWEN3_8B, make_mesh(1, 2, 4), trains=True)

    # Float32 weights, two moments and the teacher over all devices; in bfloat16, those
    # to sample with over `tensor` only.
    close = lambda x: pytest.approx(x, rel=2e-3)
    assert found.resident == {
        "weights": close(PARAMETERS * 4 / 8),
        "optimizer": close(PARAMETERS * 8 / 8),
        "teacher": close(PARAMETERS * 4 / 8),
        "weights for sampling": close(PARAMETERS * 2 / 4),
    }
    assert found.gradient == close(PARAMETERS * 2 / 8)
    assert found.prompt == PER_TOKEN // 4 * 2048
    assert found.attempt == PER_TOKEN // 4 * 8192 + 4 * 4 * 151_936
    assert found.of_rows(9) == 9 * found.attempt + 2 * found.prompt


def test_layers_with_a_window_need_its_length_only():
    period = (families.LayerKind(1e6, window=1024), families.LayerKind(1e6))
    arch = dataclasses.replace(QWEN3_8B, period=period)

    found = memory.needs(settings(), arch, make_mesh(1, 8, 1), trains=True)

    assert found.prompt == PER_TOKEN // 2 * (2048 + 1024)


def test_evaluation_and_adapters_need_no_state_of_all_weights():
    c, mesh = settings(lora__rank=16), make_mesh(1, 8, 1)
    whole = pytest.approx(PARAMETERS * 2 / 8, rel=2e-3)

    adapted = memory.needs(c, QWEN3_8B, mesh, trains=True).resident
    evaluated = memory.needs(c, QWEN3_8B, mesh, trains=False).resident

    assert adapted["frozen base"] == evaluated["weights"] == whole
    assert adapted["weights"] + adapted["optimizer"] < PARAMETERS * 12 / 8 / 30
    assert set(evaluated) == {"weights", "weights for sampling"}


def test_only_the_attempts_that_are_made_share_a_prompt():
    c = settings(rollout__attempts=4, eval__attempts=16)
    found = lambda trains: memory.needs(c, QWEN3_8B, make_mesh(1, 8, 1), trains)

    assert found(True).attempts == 4
    assert found(False).attempts == 16


@pytest.mark.parametrize(
    "sizes, limit, rows",
    [
        # 0.9 x 34.4 - 20.5 = 10.4 GB hold 33 x 0.304 and 5 x 0.075, on two shards.
        ((1, 2, 4), 32 * GIB, 2 * 33),
        # 0.9 x 68.7 - 32.8 = 29.1 GB hold 23 x 1.21 and 3 x 0.302, on eight.
        ((1, 8, 1), 64 * GIB, 8 * 23),
    ],
)
def test_rows_at_once_are_lowered_to_what_fits(sizes, limit, rows, caplog):
    found = memory.rows_that_fit(
        settings(), QWEN3_8B, make_mesh(*sizes), limit, trains=True
    )

    assert found == rows
    assert f"rollout.rows_at_once=256 lowered to {rows}: of" in caplog.text
    assert "weights 4.1 GB, optimizer 8.19 GB, teacher 4.1 GB" in caplog.text


@pytest.mark.parametrize("limit", [96 * GIB, None])
def test_rows_at_once_that_fit_are_left_alone(limit, caplog):
    found = memory.rows_that_fit(
        settings(), QWEN3_8B, make_mesh(1, 2, 4), limit, trains=True
    )

    assert found == 256
    assert not caplog.text


@pytest.mark.parametrize(
    "limit, fields",
    [
        # The state does not fit, or one attempt beside it.
        (16 * GIB, {}),
        (32 * GIB, {"rollout__max_response": 2**20}),
    ],
)
def test_what_cannot_fit_is_refused_with_the_numbers(limit, fields):
    told = (
        rf"too little memory: of {limit / 1e9:.3g} GB on each device, weights 4.1 GB, "
        r"optimizer 8.19 GB, teacher 4.1 GB, weights for sampling 4.1 GB .* an "
        r"update's gradient 2.05 GB; use more devices"
    )
    mesh = make_mesh(1, 2, 4)

    with pytest.raises(ValueError, match=told):
        memory.rows_that_fit(settings(**fields), QWEN3_8B, mesh, limit, trains=True)


def test_a_cpu_has_no_limit():
    assert memory.device_bytes(make_mesh(8, 1, 1)) is None


def test_a_device_that_says_how_much_it_has_is_believed():
    class Device:
        device_kind = "TPU v6 lite"

        def __init__(self, stats):
            self.memory_stats = lambda: stats

    class Mesh:
        def __init__(self, stats):
            self.local_devices = [Device(stats)]

    assert memory.device_bytes(Mesh({"bytes_limit": 7})) == 7
    assert memory.device_bytes(Mesh(None)) == 32 * GIB


def test_memory_is_checked_before_anything_is_loaded(monkeypatch):
    c = settings()
    c.model.path = str(GOLDEN / "qwen3_tied")
    c.rollout.max_prompt, c.rollout.max_response = 8, 8
    c.reprompt.max_length = 16
    monkeypatch.setattr(memory, "device_bytes", lambda mesh: 2**10)

    with pytest.raises(ValueError, match="too little memory"), components.build(c):
        pass
