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


def claimed(folder, c, may_change=(), **contents):
    now = {field.replace("__", "."): names for field, names in contents.items()}
    with run_folder.claim(folder, c, may_change, lambda: now) as finished:
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


def inputs_of(folder):
    return json.loads((folder / "inputs.json").read_text())


def saved_once(folder, c, **contents):
    """A run that was stopped after it saved a checkpoint."""
    begin(folder, c)
    claimed(folder, c, **contents)
    (folder / "checkpoints" / "00000001").mkdir(parents=True)
    return inputs_of(folder)


def test_another_content_is_refused_by_field_and_name(tmp_path):
    c = config.default()
    model = {"config.json": "sha256:aa", "tokenizer.json": "sha256:bb"}
    kept = saved_once(tmp_path, c, model__path=model, env__train={"a": "sha256:1"})
    replaced = {"config.json": "sha256:aa", "chat_template.jinja": "sha256:dd"}
    now = dict(model__path=replaced, env__train={"a": "sha256:2"})

    with pytest.raises(ValueError) as told:
        claimed(tmp_path, c, ["env.train"], **now)

    assert str(told.value).splitlines() == [
        f"{tmp_path} holds a run that began with another content:",
        "  model.path: chat_template.jinja: absent recorded, sha256:dd now",
        "  model.path: tokenizer.json: sha256:bb recorded, absent now",
        "Restore it, give another --workdir, or --may_change=model.path to continue "
        "with what is there now",
    ]
    assert inputs_of(tmp_path) == kept


def test_allowed_content_is_recorded_and_logged(tmp_path, caplog):
    c = config.default()
    saved_once(
        tmp_path, c, env__train={"a": "sha256:1"}, env__heldout={"b": "sha256:3"}
    )
    now = dict(env__train={"a": "sha256:2"}, env__heldout={"b": "sha256:3"})

    assert claimed(tmp_path, c, ["env.train"], **now) is None

    assert inputs_of(tmp_path)["env.train"] == {"a": "sha256:2"}
    (told,) = caplog.messages
    assert "another content:\n  env.train: a: sha256:1 recorded, sha256:2 now" in told
    # From now on it is the content of the run.
    assert claimed(tmp_path, c, **now) is None


def test_field_with_another_value_names_another_content(tmp_path):
    saved_once(tmp_path, changed(env__train="a"), env__train={"a": "sha256:1"})

    moved = changed(env__train="b")
    assert claimed(tmp_path, moved, ["env.train"], env__train={"b": "sha256:1"}) is None

    assert inputs_of(tmp_path) == {"env.train": {"b": "sha256:1"}}


def test_content_that_is_not_known_now_is_not_compared_and_kept(tmp_path):
    c = config.default()
    kept = saved_once(tmp_path, c, env__train={"some/set": "0123"})

    assert claimed(tmp_path, c) is None

    assert inputs_of(tmp_path) == kept


def test_folder_without_a_checkpoint_begins_with_what_is_there(tmp_path, caplog):
    c = begin(tmp_path, config.default()) and config.default()
    claimed(tmp_path, c, env__train={"a": "sha256:1"})

    assert claimed(tmp_path, c, env__train={"a": "sha256:2"}) is None

    assert inputs_of(tmp_path) == {"env.train": {"a": "sha256:2"}}
    assert not caplog.messages


def test_folder_of_an_earlier_version_records_its_content_from_now_on(tmp_path, caplog):
    c = config.default()
    saved_once(tmp_path, c)
    (tmp_path / "inputs.json").unlink()

    assert claimed(tmp_path, c, env__train={"a": "sha256:1"}) is None

    (told,) = caplog.messages
    assert told.endswith("has no inputs.json: content is compared from now on")
    assert inputs_of(tmp_path) == {"env.train": {"a": "sha256:1"}}


def test_finished_run_reads_no_content(tmp_path):
    c = config.default()
    end(tmp_path, c)

    with run_folder.claim(tmp_path, c, (), lambda: 1 / 0) as finished:
        assert finished == SUMMARY


def test_refused_content_leaves_a_finished_run_finished(tmp_path):
    c, longer = changed(train__updates=3), changed(train__updates=4)
    saved_once(tmp_path, c, env__train={"a": "1"})
    json_files.write_json_atomically(tmp_path / run_folder.SUMMARY, SUMMARY)

    with pytest.raises(ValueError, match="env.train: a: 1 recorded, 2 now"):
        claimed(tmp_path, longer, ["train.updates"], env__train={"a": "2"})

    assert claimed(tmp_path, c) == SUMMARY


def test_content_that_changed_is_named_by_field_and_file(tmp_path):
    assert run_folder.changed_contents(tmp_path, {"env.train": {"a": "2"}}) == {}
    saved_once(tmp_path, config.default(), env__train={"a": "1"}, env__heldout={})

    assert run_folder.changed_contents(tmp_path, {"env.train": {"a": "1"}}) == {}
    assert run_folder.changed_contents(tmp_path, {"env.train": {"a": "2"}}) == {
        "env.train": "\n  env.train: a: 1 recorded, 2 now"
    }


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
