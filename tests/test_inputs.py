"""What a config names: digests of its files, revisions of its datasets and models."""

import sys
import types

import huggingface_hub
import pytest

from sdpo_jax import config, digests, hub, inputs
from sdpo_jax.model import huggingface
from sdpo_jax.questions.question import Question


def of(environment=None, **fields):
    c = config.default()
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return inputs.contents(c, environment)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    names = ("config.json", "tokenizer.json", "chat_template.jinja", "merges.txt")
    for name in (*names, "model.safetensors", "tokenizer.model", "README.md"):
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize(
    "name", ["config.json", "chat_template.jinja", "model.safetensors", "merges.txt"]
)
def test_checkpoint_is_its_files(model, name):
    before = of(model__path=str(model))

    (model / name).write_text("replaced")

    after = of(model__path=str(model))
    assert before.keys() == after.keys() == {"model.path"}
    changed = before["model.path"].items() ^ after["model.path"].items()
    assert {file for file, _ in changed} == {name}
    # Nobody reads that.
    assert "README.md" not in after["model.path"]


def test_checkpoint_of_the_hub_is_its_commit(tmp_path, monkeypatch):
    snapshot = tmp_path / "snapshots" / "0123abcd"
    monkeypatch.setattr(huggingface, "directory_of", lambda *_: snapshot)

    assert of(model__path="some/model") == {"model.path": {"revision": "0123abcd"}}


def test_questions_are_their_files(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("1")
    fields = dict(env__train=f"{file}?convert=x", env__validation="share:0.1")

    expected = {"env.train": {"rows.jsonl": digests.of_text("1")}}
    assert of(**fields, env__heldout="seeds:0-9") == expected


def test_folder_of_a_dataset_is_its_files(tmp_path):
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(name)

    whole = of(env__train=f"hf:{tmp_path}?split=train")
    one = of(env__train=f"hf:{tmp_path}?split=train&files=test.jsonl")

    assert whole["env.train"].keys() == {"train.jsonl", "test.jsonl"}
    assert one["env.train"] == {"test.jsonl": digests.of_text("test.jsonl")}


class Hub:
    """The hub, which knows one dataset; its commit is the revision asked for."""

    def dataset_info(self, name, revision, timeout):
        if name != "some/set":
            raise RuntimeError("no such dataset")
        return types.SimpleNamespace(sha=f"commit of {revision}")


def test_dataset_of_the_hub_is_its_commit(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(hub, "is_absent", lambda: False)

    found = of(
        env__train="hf:some/set?split=train",
        env__validation="hf:some/set?split=test&revision=v1",
        env__heldout="hf:other/set?split=test",
    )

    assert found == {
        "env.train": {"some/set": "commit of None"},
        "env.validation": {"some/set": "commit of v1"},
    }


def test_prepared_dataset_is_its_version_and_files(tmp_path, monkeypatch):
    (tmp_path / "train.array_record").write_text("rows")
    info = types.SimpleNamespace(full_name="sums/1.0.0")
    builder = types.SimpleNamespace(data_dir=str(tmp_path), info=info)
    module = types.SimpleNamespace(builder=lambda name, data_dir: builder)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)

    found = of(env__train="tfds:sums?split=train")

    expected = {"sums/1.0.0/train.array_record": digests.of_text("rows")}
    assert found == {"env.train": expected}


def test_grader_is_its_file_or_its_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "one_file.py").write_text("1")
    (tmp_path / "several" / "inside").mkdir(parents=True)
    for name in ("__init__", "grade", "inside/more"):
        (tmp_path / "several" / f"{name}.py").write_text("")

    one = of(env__function__grade="one_file:grade")
    package = of(env__function__grade="several:grade")

    field = "env.function.grade"
    assert one == {field: {"one_file.py": digests.of_text("1")}}
    assert package[field].keys() == {"__init__.py", "grade.py", "inside/more.py"}
    assert of(env__function__grade="not_there:grade") == {}


class Asked:
    def __init__(self, answer, prompt="?"):
        self._question = Question("q", prompt, data={"answer": answer, 1: object()})

    def questions(self, split):
        if split == "heldout":
            raise KeyError(split)
        return [self._question]


def test_environment_of_the_callers_own_is_its_questions():
    found = of(Asked("a"), env__train="ignored.jsonl")

    assert found.keys() == {"env.train", "env.validation"}
    # Objects have no content that two processes agree on.
    assert found == of(Asked("a"))
    for other in (Asked("b"), Asked("a", prompt="!"), Asked(float("nan"))):
        assert found["env.train"] != of(other)["env.train"]


def test_what_cannot_be_read_is_left_to_whoever_needs_it(tmp_path):
    fields = dict(model__path=str(tmp_path / "absent/x"), env__train="absent.jsonl")

    assert of(**fields, env__validation="hf:x?split") == {}
