"""Sources of questions; tests of the datasets library need it to be installed."""

import json
import logging
import sys
import types

import numpy as np
import pytest

from sdpo_jax import config, envs, hub
from sdpo_jax.questions import rows, sources


def data(row, where):
    return {"answer": row.get("answer")}


def load(text):
    return rows.load(sources.of(text, "env.train"), data)


def write(path, *of):
    path.write_text("".join(json.dumps(one) + "\n" for one in of))
    return path


def plain(number, **fields):
    return {"prompt": f"Question {number}?", "answer": "A"} | fields


def science(number, domain="Physics", **fields):
    return {
        "question": f"What is {number}?",
        "choices": {"text": ["x", "y"], "label": ["A", "B"]},
        "answerKey": "B",
        "type": "mcq-4-choices",
        "domain": domain,
        "details": {"level": "L3", "task": "t"},
    } | fields


@pytest.mark.parametrize("text", ["share:0.1", "some/train.json", "C:data.jsonl"])
def test_plain_files_and_shares_are_returned_unchanged(text):
    assert sources.of(text, "env.train") == text


@pytest.mark.parametrize(
    "text, message",
    [
        ("hf:", "expected NAME.option=value&..., each once"),
        ("hf:?split=train", "expected NAME"),
        ("hf:a/b", "add the required option .split="),
        ("tfds:a?data_dir=x", "add the required option .split="),
        ("hf:a/b?split=", "expected NAME"),
        ("hf:a/b?", "expected NAME"),
        ("hf:a/b?split", "expected NAME"),
        ("hf:a/b?split=train&split=test", "each once"),
        ("hf:a/b?splt=train", "'splt' is not an option of .* hf; expected conf"),
        ("hf:a/b?split=train&trust_remote_code=1", "'trust_remote_code' is not an o"),
        ("hf:a/b?split=train&data_dir=x", "'data_dir' is not an option of .* hf;"),
        ("tfds:a?split=train&config=x", "'config' is not an option of .* tfds;"),
        ("train.json?split=train", "'split' is not an option of .* file;"),
        ("train.json?convert=mine", "convert must be one of .*hicai-zju/SciKnowEval"),
        ("hf:a/b?split=train&convert=c/d", "convert must be one of"),
    ],
)
def test_malformed_address_is_refused(text, message):
    with pytest.raises(ValueError, match=rf"^env.heldout=.*{message}") as raised:
        sources.of(text, "env.heldout")

    assert "\n" not in str(raised.value)


def test_file_is_converted_filtered_and_its_rows_are_counted(tmp_path, caplog):
    file = write(
        tmp_path / "rows.jsonl",
        science(1),
        science(2, domain="Biology"),
        science(3, details={"level": "L2"}),
        science(4),
    )

    with caplog.at_level(logging.INFO):
        questions = load(f"{file}?convert=hicai-zju/SciKnowEval&where.domain=Physics")

    assert [q.prompt.partition("\n")[0] for q in questions] == [
        "What is 1?",
        "What is 4?",
    ]
    # The official files name rows by their index among those of one domain.
    assert [q.uid for q in questions] == ["0", "1"]
    assert "2 questions from 4 rows" in caplog.text


def test_skipped_rows_are_logged_in_one_line(tmp_path, caplog):
    solved = {"problem": "3+4?", "solution": "It is 7."}
    half = solved | {"problem": "\ud83d?"}
    file = write(tmp_path / "rows.jsonl", solved, {"problem": ""}, solved, half)
    source = f"{file}?convert=siyanzhao/Openthoughts_math_30k_opsd"

    questions = load(source)

    assert [q.uid for q in questions] == ["0", "1"]
    (message,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert message == (
        f"{source}: skipped 2 of 4 rows; the first is {source}, row 2: "
        "a row of OpenThoughts has no problem, or none of solution, "
        "ground_truth_solution, deepseek_solution"
    )


def test_environment_reads_the_sources_that_its_config_names(tmp_path):
    file = write(tmp_path / "rows.jsonl", *(science(n) for n in range(40)))
    c = config.default()
    c.env.name = "multiple_choice"
    c.env.train = f"{file}?convert=hicai-zju/SciKnowEval"
    c.env.validation = "share:0.3"
    c.env.heldout = f"{file}?convert=hicai-zju/SciKnowEval&where.domain=Physics"

    environment = envs.from_config(c)

    counts = {split: len(environment.questions(split)) for split in config.SPLITS}
    assert counts["train"] + counts["validation"] == counts["heldout"] == 40
    attempt = environment.start(environment.questions("train")[0])
    assert attempt.act("<answer>B</answer>", False).score == 1
    c.env.heldout = "hf:some/set"
    with pytest.raises(ValueError, match="^env.heldout=hf:some/set: add the required"):
        envs.from_config(c)


def test_rows_are_filtered_by_nested_fields(tmp_path):
    file = write(
        tmp_path / "rows.jsonl",
        plain(1, idx=1, details={"level": 3}),
        plain(2, idx=2, details={"level": 2}),
    )

    assert [q.uid for q in load(f"{file}?where.details.level=3")] == ["1"]
    with pytest.raises(ValueError, match="rows.jsonl.*, row 1: there is no field dom"):
        load(f"{file}?where.domain=3")
    with pytest.raises(ValueError, match="there is no field details.level.x"):
        load(f"{file}?where.details.level.x=3")
    with pytest.raises(ValueError, match="holds no questions"):
        load(f"{file}?where.details.level=7")


def test_rows_of_a_filtered_file_keep_the_names_that_their_content_gives(tmp_path):
    file = write(tmp_path / "rows.jsonl", plain(1, answer="B"), plain(2))

    assert load(f"{file}?where.answer=A") == load(str(file))[1:]


def test_messages_locate_malformed_and_repeated_rows(tmp_path):
    file = write(tmp_path / "rows.jsonl", science(1), science(2, answerKey="C"))
    convert = "convert=hicai-zju/SciKnowEval"
    with pytest.raises(ValueError, match=r"rows.jsonl\?convert=.*, row 2: expected as"):
        load(f"{file}?{convert}")

    write(file, plain(1, idx=5), 7)
    with pytest.raises(ValueError, match="row 2: expected an object, got int"):
        load(f"{file}?where.answer=A")

    write(file, plain(1, idx=5), plain(2, idx=6, answer="B"), plain(3, idx=5))
    with pytest.raises(ValueError, match="row 3: uid '5' is that of row 1 too"):
        load(f"{file}?where.answer=A")


# The datasets library.


class Library(types.SimpleNamespace):
    """A fake of the library that records its last call."""

    def __init__(self, version="5.1.0", rows=(), error=None):
        super().__init__(__version__=version, called=None)
        self.config = types.SimpleNamespace(HF_HUB_OFFLINE=False)
        self._rows, self._error = rows, error

    def load_dataset(self, *args, **kwargs):
        self.called = (args, kwargs)
        if self._error:
            raise self._error
        return list(self._rows)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(hub, "is_absent", lambda: False)

    def install(**fields):
        library = Library(**fields)
        monkeypatch.setitem(sys.modules, "datasets", library)
        return library

    return install


def test_hub_gets_config_split_and_revision_and_nothing_else(installed):
    library = installed(rows=[plain(1), plain(2)])

    questions = load("hf:some/set?config=main&split=train[:90%]+test&revision=v1.0")

    expected = ("some/set", "main"), {"revision": "v1.0", "split": "train[:90%]+test"}
    assert library.called == expected
    assert [q.uid for q in questions] == ["0", "1"]


def test_hub_datasets_with_a_converter_are_converted(installed):
    installed(rows=[{"id": "7", "problem": "1+1?", "answer": "2"}])

    (question,) = load("hf:math-ai/aime25?split=test")

    assert (question.uid, question.data) == ("7", {"answer": "2"})
    assert question.prompt.startswith("1+1?\n\nPlease reason")


def test_files_of_the_hub_are_read_at_the_revision(installed):
    library = installed(rows=[plain(1)])

    load("hf:some/set?split=train&files=a.jsonl,b.jsonl&revision=refs/pr/3")

    files = [f"hf://datasets/some/set@refs%2Fpr%2F3/{n}.jsonl" for n in "ab"]
    assert library.called == (("json",), {"data_files": files, "split": "train"})


@pytest.mark.parametrize(
    "options, message",
    [
        (
            "files=a.jsonl,b.parquet",
            "files must all have the same extension, one of .json, .jsonl",
        ),
        ("files=a.py", "files must all have the same extension"),
        ("files=a.json&config=main", "files cannot be combined with config"),
    ],
)
def test_files_that_cannot_be_read_together_are_refused(installed, options, message):
    library = installed()

    with pytest.raises(ValueError, match=message):
        load(f"hf:some/set?split=train&{options}")
    assert library.called is None


def test_library_that_is_missing_or_may_run_code_is_refused(installed, monkeypatch):
    library = installed(version="3.6.0")
    with pytest.raises(ValueError, match="datasets 4 or later, got 3.6.0: pip install"):
        load("hf:some/set?split=train")
    assert library.called is None

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="^hf:some/set.*: pip install .datasets>=4"):
        load("hf:some/set?split=train")


@pytest.mark.parametrize(
    "error, message",
    [
        (RuntimeError("scripts are\nnot run"), "train: scripts are not run$"),
        (ConnectionError("no hub"), "train: no hub$"),
        (KeyError(), "train: KeyError$"),
    ],
)
def test_library_error_is_reported_in_one_line(installed, error, message):
    installed(error=error)

    with pytest.raises(ValueError, match=f"^hf:some/set.split={message}"):
        load("hf:some/set?split=train")


@pytest.fixture
def library(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the library is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return datasets


def test_folder_is_read_by_the_library(library, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder / "train.jsonl", plain(1, idx=3), plain(2, idx=4))
    write(folder / "test.jsonl", plain(5, idx=5))

    assert [q.uid for q in load(f"hf:{folder}?split=train")] == ["3", "4"]
    assert [q.uid for q in load(f"hf:{folder}?split=test")] == ["5"]
    assert [q.uid for q in load(f"hf:{folder}?split=train[:50%]+test")] == ["3", "5"]
    (other,) = load(f"hf:{folder}?split=train&files=test.jsonl")
    assert (other.uid, other.prompt, other.data) == (
        "5",
        "Question 5?",
        {"answer": "A"},
    )
    for text, message in [
        (f"hf:{folder}?split=nosuch", "nosuch"),
        (f"hf:{folder}?split=train&config=nosuch", "nosuch"),
        (f"hf:{folder}/nosuch?split=train", "nosuch"),
    ]:
        with pytest.raises(ValueError, match=message) as raised:
            load(text)
        assert "\n" not in str(raised.value)


def test_parquet_with_nested_fields_is_read_and_converted(library, tmp_path):
    import pyarrow
    from pyarrow import parquet

    folder = tmp_path / "set"
    folder.mkdir()
    table = pyarrow.Table.from_pylist([science(1), science(2, domain="Biology")])
    parquet.write_table(table, folder / "test-00000-of-00001.parquet")

    (question,) = load(
        f"hf:{folder}?split=test&convert=hicai-zju/SciKnowEval&where.domain=Biology"
    )

    assert question.prompt.startswith("What is 2?\n\nA: x\nB: y\n")


def test_script_of_a_dataset_is_not_run(library, tmp_path):
    folder = tmp_path / "scripted"
    folder.mkdir()
    ran = tmp_path / "ran"
    (folder / "scripted.py").write_text(f"open({str(ran)!r}, 'w')")

    with pytest.raises(ValueError, match="scripted"):
        load(f"hf:{folder}?split=train")
    assert not ran.exists()


# tensorflow-datasets, without TensorFlow.


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a dataset of three splits, written without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")
    text = tfds.features.Text()

    class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        # For a class of a package the library imports one that it does not require.
        __module__ = "toy"
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="main")]

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "prompt": text,
                    "answer": text,
                    "idx": tfds.features.Scalar(np.int64),
                    "choices": tfds.features.Sequence({"label": text}),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, _):
            return {
                "train": self._generate_examples("A\u00e9", 4),
                "bytes": self._generate_examples(b"\xff", 1),
            }

        def _generate_examples(self, answer, count):
            for n in range(count):
                choices = [{"label": "A"}, {"label": "B"}]
                yield n, plain(n, answer=answer, idx=n, choices=choices)

    Toy(
        data_dir=folder, config="main", file_format="array_record"
    ).download_and_prepare()
    return folder


def test_prepared_dataset_is_read_as_text_without_tensorflow(prepared):
    text = f"tfds:toy/main:1.0.0?split=train&data_dir={prepared}"
    questions = rows.load(sources.of(text, "env.train"), lambda row, where: dict(row))

    assert {q.uid for q in questions} == {"0", "1", "2", "3"}
    for question in questions:
        n = int(question.uid)
        assert question.prompt == f"Question {n}?"
        expected = plain(n, answer="A\u00e9", idx=n, choices={"label": ["A", "B"]})
        assert question.data == expected
    assert load(text) == load(text)
    assert "tensorflow" not in sys.modules


def test_content_of_a_prepared_dataset_is_its_version_and_files(prepared):
    text = f"tfds:toy/main?split=train&data_dir={prepared}"

    found = sources.contents(text, "env.train")

    assert "toy/main/1.0.0/dataset_info.json" in found
    assert any("train.array_record" in name for name in found)
    assert all(digest.startswith("sha256:") for digest in found.values())


def test_slices_of_prepared_splits_are_read(prepared):
    assert len(load(f"tfds:toy/main?split=train[:50%]&data_dir={prepared}")) == 2
    (one,) = load(f"tfds:toy/main?split=train&data_dir={prepared}&where.idx=2")
    assert one.uid == "2"


@pytest.mark.parametrize(
    "name, message",
    [
        ("toy/main?split=nosuch", "nosuch"),
        ("toy/main:2.0.0?split=train", "toy"),
        ("nosuch?split=train", "nosuch"),
        # Known to the library, but never prepared here.
        (
            "ai2_arc?split=train",
            "not supported.*file_format=(parquet or )?array_record",
        ),
        ("toy/main?split=bytes", "row 1, field answer: expected text in UTF-8, got"),
    ],
)
def test_unreadable_dataset_is_reported_in_one_line(prepared, name, message):
    with pytest.raises(ValueError, match=message) as raised:
        load(f"tfds:{name}&data_dir={prepared}")

    assert str(raised.value).startswith(f"tfds:{name}")
    assert "\n" not in str(raised.value)
