import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from sdpo_jax import config, distributed, export, json_files, train_state
from sdpo_jax.checkpoint import Checkpoints
from sdpo_jax.model import huggingface

ROOT = pathlib.Path(__file__).parents[1]
BASE = ROOT / "tests" / "golden" / "olmo3_grouped"


def run_config(**fields):
    c = config.default()
    c.model.path = str(BASE)
    c.sdpo.top_k = 20
    c.update_from_flattened_dict(fields)
    return c


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder: teacher of ones after update 2, the best; of twos after 3."""
    folder = tmp_path_factory.mktemp("run")
    c = run_config()
    mesh = distributed.make_mesh(c.mesh)
    arch = huggingface.architecture(c.model.path)
    params = huggingface.load(c.model.path, arch, mesh)
    state = train_state.new_state(c, arch, mesh, params)
    checkpoints = Checkpoints(folder / "checkpoints")
    ones = jax.tree.map(jnp.ones_like, params)
    twos = jax.tree.map(lambda x: x + 1, ones)
    checkpoints.save(2, state.replace(teacher=ones), {}, score=1.0)
    checkpoints.save(3, state.replace(teacher=twos), {}, score=0.5)
    checkpoints.close()
    json_files.write_json_atomically(folder / "config.json", config.flat(c))
    return folder


def test_student_is_written_as_it_was_read(finished, tmp_path):
    told = export.run(run_config(), finished, path=tmp_path / "out", dtype="float32")

    assert told["update"] == 3 and told["weights"] == "student"
    before = load_file(BASE / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert told["parameters"] == sum(x.size for x in before.values())
    assert (tmp_path / "out" / "generation_config.json").exists()


@pytest.mark.parametrize("checkpoint, value", [("last", 2), ("best", 1)])
def test_teacher_of_a_checkpoint_is_written_when_asked(
    finished, tmp_path, checkpoint, value
):
    told = export.run(
        run_config(),
        finished,
        path=tmp_path / "out",
        weights="teacher",
        checkpoint=checkpoint,
    )

    assert told["update"] == value + 1
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {str(x.dtype) for x in written.values()} == {"bfloat16"}
    assert all((x.astype(np.float32) == value).all() for x in written.values())


@pytest.fixture(scope="module")
def barely_trained(tmp_path_factory):
    """A run folder whose student changed by a millionth, but for one weight in 16."""
    folder = tmp_path_factory.mktemp("barely")
    c = run_config(**{"teacher.mode": "frozen"})
    mesh = distributed.make_mesh(c.mesh)
    arch = huggingface.architecture(c.model.path)
    params = huggingface.load(c.model.path, arch, mesh)
    state = train_state.new_state(c, arch, mesh, params)

    def trained(x):
        many = np.where(np.arange(x.size).reshape(x.shape) % 16, 1 + 1e-6, 2.0)
        return x * jnp.asarray(many, x.dtype)

    state = state.replace(student=jax.tree.map(trained, params))
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(1, state, {})
    checkpoints.close()
    return folder, c


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_export_says_how_much_of_the_change_survives_rounding(
    barely_trained, tmp_path, caplog, dtype
):
    folder, c = barely_trained
    caplog.set_level("INFO")

    told = export.run(c, folder, path=tmp_path / "out", dtype=dtype)

    before = load_file(BASE / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    differ = lambda x, y: np.count_nonzero(x.astype(np.float32) != y.astype(np.float32))
    rounded = {name: x.astype(dtype) for name, x in before.items()}
    kept = sum(differ(after[name], rounded[name]) for name in before)
    count = sum(x.size for x in before.values())
    assert told["changed"] == count
    assert told["changed_in_files"] == kept
    said = [r for r in caplog.records if "training changed" in r.getMessage()]
    assert len(said) == 1
    counts = (
        f"changed {count:,} of {count:,} weights; in {dtype}, {kept:,} still differ"
    )
    assert counts in said[0].getMessage()
    if dtype == "float32":
        assert kept == count and said[0].levelname == "INFO"
    else:
        # The one in 16 and hardly any other.
        assert 0.05 * count < kept < 0.1 * count
        assert said[0].levelname == "WARNING"
        assert "export with --export_dtype=float32" in said[0].getMessage()


def warnings_in(caplog):
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def test_large_change_in_bfloat16_is_no_cause_for_alarm(finished, tmp_path, caplog):
    told = export.run(run_config(), finished, path=tmp_path / "out", weights="teacher")

    assert told["changed_in_files"] > 0.99 * told["changed"] > 0
    assert not warnings_in(caplog)


def test_export_without_the_weights_of_the_base_says_so(finished, tmp_path, caplog):
    base = tmp_path / "base"
    base.mkdir()
    shutil.copyfile(BASE / "config.json", base / "config.json")
    c = run_config(**{"model.path": str(base)})

    told = export.run(c, finished, path=tmp_path / "out")

    assert "changed" not in told
    assert (tmp_path / "out" / "model.safetensors").exists()
    [message] = warnings_in(caplog)
    assert "was not counted" in message
    assert "model.safetensors is missing" in message


@pytest.fixture(scope="module")
def finished_lora(tmp_path_factory):
    """A run folder with adapters of threes and, for the teacher, of fives."""
    folder = tmp_path_factory.mktemp("lora_run")
    c = run_config(**{"lora.rank": 2})
    mesh = distributed.make_mesh(c.mesh)
    arch = huggingface.architecture(c.model.path)
    params = huggingface.load(c.model.path, arch, mesh)
    state = train_state.new_state(c, arch, mesh, params)
    all_of = lambda value: jax.tree.map(
        lambda x: jnp.full_like(x, value), state.student
    )
    state = state.replace(student=all_of(3), teacher=all_of(5))
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(1, state, {}, score=1.0)
    checkpoints.close()
    return folder, c


@pytest.mark.parametrize("weights, value", [("student", 3), ("teacher", 5)])
def test_adapters_are_written_alone_or_merged(finished_lora, tmp_path, weights, value):
    folder, c = finished_lora
    as_asked = {"weights": weights, "dtype": "float32"}

    for kind in ("peft", "merged"):
        told = export.run(c, folder, path=tmp_path / kind, lora=kind, **as_asked)
        assert told["weights"] == weights

    adapters = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert len(adapters) == 2 * 7 * 8
    assert all((x == value).all() for x in adapters.values())
    before = load_file(BASE / "model.safetensors")
    after = load_file(tmp_path / "merged" / "model.safetensors")
    # alpha / rank times the product of two factors of rank 2.
    change = c.lora.alpha / 2 * (2 * value * value)
    for name, x in after.items():
        adapted = "_proj" in name
        np.testing.assert_allclose(x, before[name] + change * adapted, rtol=1e-6)


def test_checkpoint_of_the_config_is_written_without_a_run(tmp_path):
    told = export.run(run_config(), path=tmp_path / "out")

    assert told["update"] == 0
    config_json = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config_json["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"weights": "nobody"}, "--export_weights=nobody: must be one of student | t"),
        ({"checkpoint": "first"}, "--checkpoint=first: must be one of last | "),
        ({"dtype": "int8"}, "--export_dtype=int8: must be one of bfloat16 | float32"),
        ({"lora": "both"}, "--export_lora=both: must be one of merged | peft"),
        ({"lora": "peft"}, "--export_lora=peft: lora.rank=0 trains no adapters"),
        (
            {"weights": "teacher"},
            "teacher.mode=live keeps no such weights; export the student",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused(finished, tmp_path, asked, message):
    c = run_config(**{"teacher.mode": "live"})

    with pytest.raises(ValueError, match=re.escape(message)):
        export.run(c, finished, path=tmp_path / "out", **asked)


def test_place_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--export_path is missing"):
        export.run(run_config())
    with pytest.raises(ValueError, match="--export_weights=teacher.*give its --workd"):
        export.run(run_config(), path=tmp_path / "out", weights="teacher")
    with pytest.raises(ValueError, match="--checkpoint=best: only a run has these"):
        export.run(run_config(), path=tmp_path / "out", checkpoint="best")
    with pytest.raises(ValueError, match="exists; move it away"):
        export.run(run_config(), path=tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        export.run(run_config(), tmp_path)


def test_base_that_was_replaced_is_not_exported(tmp_path):
    recorded = {"model.path": {"config.json": "sha256:0"}}
    json_files.write_json_atomically(tmp_path / "inputs.json", recorded)

    with pytest.raises(ValueError, match="model.path: config.json: sha256:0 recorded"):
        export.run(run_config(), tmp_path, path=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_exports_a_run_by_its_folder_alone(finished, tmp_path):
    out = tmp_path / "out"

    done = subprocess.run(
        [sys.executable, "-m", "sdpo_jax.main", "--job=export", "--json"]
        + [f"--workdir={finished}", f"--export_path={out}", "--export_dtype=float32"],
        cwd=ROOT,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["path"], told["dtype"]) == (str(out), "float32")
    assert (out / "model.safetensors").exists()
