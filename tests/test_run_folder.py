"""Which run folders are begun, resumed, finished or refused."""

import json
import pathlib
import subprocess
import sys

import pytest

from sdpo_jax import config, json_files, run_folder

ROOT = pathlib.Path(__file__).parents[1]
SUMMARY = {"method": "sdpo", "updates": 3}


def changed(**fields):
    c = config.default()
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return c


def claimed(folder, c, may_change=()):
    with run_folder.claim(folder, c, may_change) as finished:
        return finished


def begin(folder, c):
    """A folder as a run leaves it that was stopped."""
    assert claimed(folder, c) is None
    json_files.write_json_atomically(folder / "config.json", config.flat(c))
    return folder


def end(folder, c):
    """A folder as a run leaves it that is finished."""
    json_files.write_json_atomically(begin(folder, c) / run_folder.SUMMARY, SUMMARY)
    return folder


def test_new_folder_is_made_with_its_parents(tmp_path):
    folder = tmp_path / "not there" / "either"

    assert claimed(folder, config.default()) is None

    assert folder.is_dir()


def test_unfinished_run_goes_on(tmp_path):
    c = changed(eval__pass_at=(1, 4))
    assert claimed(begin(tmp_path, c), c) is None


def test_finished_run_tells_its_summary(tmp_path):
    c = config.default()
    assert claimed(end(tmp_path, c), c) == SUMMARY


def test_changed_fields_are_refused_one_by_one(tmp_path):
    end(tmp_path, changed(seed=1))
    kept = {path: path.read_bytes() for path in tmp_path.glob("*.json")}

    with pytest.raises(ValueError) as told:
        claimed(tmp_path, changed(seed=2, teacher__mode="live"), ["seed"])

    assert "\n  teacher.mode: 'ema' saved, 'live' now\n" in str(told.value)
    assert "  seed: " not in str(told.value)
    assert "--may_change=teacher.mode to continue" in str(told.value)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.json")} == kept


def test_folder_of_another_version_is_refused_by_its_fields(tmp_path):
    begin(tmp_path, config.default())
    fields = config.flat(config.default())
    fields["sdpo.top_q"] = fields.pop("sdpo.top_k")
    (tmp_path / "config.json").write_text(json.dumps(fields))

    with pytest.raises(ValueError) as told:
        claimed(tmp_path, config.default())

    # No permission would help: the fields are not there to be permitted.
    assert "fields differ: sdpo.top_k, sdpo.top_q; give another" in str(told.value)
    assert "--may_change" not in str(told.value)


def test_allowed_change_reopens_a_finished_run(tmp_path):
    end(tmp_path, changed(train__updates=3))
    longer = changed(train__updates=4)

    assert claimed(tmp_path, longer, ["train.updates"]) is None

    assert json.loads((tmp_path / "config.json").read_text())["train.updates"] == 4
    # Stopped and called again, it must go on and not show the old summary.
    assert claimed(tmp_path, longer) is None


def test_mistyped_permission_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="=sdpo.topk: no such field; nearest: sdpo.to"):
        claimed(tmp_path / "run", config.default(), ["sdpo.topk"])
    assert not (tmp_path / "run").exists()


HOLD = """
import pathlib, sys, time
from sdpo_jax import config, run_folder
with run_folder.claim(pathlib.Path(sys.argv[1]), config.default()):
    print("held", flush=True)
    time.sleep(60)
"""


def test_folder_held_by_another_process_is_refused_until_it_dies(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="is in use by another process"):
            claimed(tmp_path, config.default())
        holder.kill()
        holder.wait()

        # Nothing has to be cleaned up by hand after a kill.
        assert claimed(tmp_path, config.default()) is None


def test_folder_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError), run_folder.claim(tmp_path, config.default()):
        raise KeyError
    assert claimed(tmp_path, config.default()) is None
