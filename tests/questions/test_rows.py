import json
import logging

import pytest

from sdpo_jax.questions import rows


def nothing(row, where):
    return {"answer": row.get("answer")}


def row(number, **fields):
    return {"idx": number, "prompt": f"Question {number}?"} | fields


def write(path, *of):
    path.write_text("".join(json.dumps(one) + "\n" for one in of))
    return path


def test_json_list_json_lines_and_parquet_give_equal_questions(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    table = [row(1, answer="A", system="S"), row(2, answer="B", system=None)]
    lines = write(tmp_path / "rows.jsonl", *table)
    one_list = tmp_path / "rows.json"
    one_list.write_text(json.dumps(table, indent=1))
    parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "rows.parquet")

    questions = rows.load(lines, nothing)

    assert [(q.uid, q.prompt, q.system) for q in questions] == [
        ("1", "Question 1?", "S"),
        ("2", "Question 2?", ""),
    ]
    assert [q.data for q in questions] == [{"answer": "A"}, {"answer": "B"}]
    assert rows.load(one_list, nothing) == questions
    assert rows.load(tmp_path / "rows.parquet", nothing) == questions


@pytest.mark.parametrize("uid, name", [("a", "a"), (0, "0")])
def test_uid_has_precedence_over_idx(tmp_path, uid, name):
    file = write(tmp_path / "rows.jsonl", row(7, uid=uid))

    assert [q.uid for q in rows.load(file, nothing)] == [name]


def test_lines_end_only_at_newlines(tmp_path):
    file = tmp_path / "rows.jsonl"
    prompts = ["a\u2028b", "c\x85d"]
    table = [row(number, prompt=prompt) for number, prompt in enumerate(prompts)]
    lines = [json.dumps(one, ensure_ascii=False) for one in table]
    file.write_text("\r\n".join(lines), encoding="utf-8")

    assert [q.prompt for q in rows.load(file, nothing)] == prompts


def test_file_that_is_no_parquet_is_rejected(tmp_path):
    pytest.importorskip("pyarrow")
    write(tmp_path / "rows.parquet", row(1))

    with pytest.raises(ValueError, match="rows.parquet is not Parquet"):
        rows.load(tmp_path / "rows.parquet", nothing)


def test_shares_split_the_training_questions_by_their_uids(tmp_path):
    file = write(tmp_path / "train.jsonl", *map(row, range(1000)))
    files = {"train": file, "validation": "share:0.1", "heldout": "share:0.25"}

    splits = rows.load_splits(files, nothing)

    uids = {split: {q.uid for q in questions} for split, questions in splits.items()}
    assert sum(map(len, uids.values())) == 1000
    assert set().union(*uids.values()) == {str(n) for n in range(1000)}
    assert 70 < len(uids["validation"]) < 130 and 200 < len(uids["heldout"]) < 300
    # A question stays where it was when others come or go.
    write(file, *map(row, range(0, 2000, 2)))
    again = rows.load_splits(files, nothing)
    kept = {str(n) for n in range(0, 1000, 2)}
    for split, questions in again.items():
        assert {q.uid for q in questions} & kept == uids[split] & kept


@pytest.mark.parametrize(
    "shares",
    [
        {"heldout": "share:0.25"},
        {"heldout": "share:0.25", "validation": "share:0.1"},
        {"validation": "share:0.3", "heldout": "share:0.25"},
    ],
)
def test_held_out_questions_do_not_depend_on_other_shares(tmp_path, shares):
    file = write(tmp_path / "train.jsonl", *map(row, range(1000)))
    alone = {"validation": "share:0.1", "heldout": "share:0.25"}

    heldout = rows.load_splits({"train": file} | shares, nothing)["heldout"]

    assert heldout == rows.load_splits({"train": file} | alone, nothing)["heldout"]
    assert 200 < len(heldout) < 300


@pytest.mark.parametrize(
    "files, message",
    [
        ({"validation": "share:0"}, "env.validation=share:0: expected a file, or"),
        ({"validation": "share:1"}, "a number between 0 and 1"),
        ({"heldout": "share:x"}, "env.heldout=share:x: expected a file"),
        ({"validation": "share:nan"}, "env.validation=share:nan: expected"),
        ({"train": "share:0.5"}, "env.train=share:0.5: expected a file"),
        ({"validation": "share:0.0001"}, "env.validation is left without a question"),
        (
            {"validation": "share:0.5", "heldout": "share:0.6"},
            "env.train is left without a question: 20 in env.train",
        ),
    ],
)
def test_invalid_shares_are_rejected(tmp_path, files, message):
    file = write(tmp_path / "train.jsonl", *map(row, range(20)))

    with pytest.raises(ValueError, match=message):
        rows.load_splits({"train": file} | files, nothing)


def test_repeated_and_shared_prompts_are_logged(tmp_path, caplog):
    same = {"prompt": "Question 1?"}
    train = write(tmp_path / "train.jsonl", row(1), row(2), row(3, **same))
    other = write(tmp_path / "other.jsonl", row(1), row(5))

    with caplog.at_level(logging.WARNING):
        rows.load_splits({"train": train, "validation": other}, nothing)

    assert caplog.messages == [
        "env.train repeats 1 of its prompts",
        "env.validation shares 1 prompts with env.train",
    ]


def test_only_splits_that_share_prompts_are_logged(tmp_path, caplog):
    train = write(tmp_path / "train.jsonl", row(1), row(2))
    other = write(tmp_path / "other.jsonl", row(4), row(5))

    rows.load_splits({"train": train, "validation": other, "heldout": other}, nothing)

    assert caplog.messages == ["env.heldout shares 2 prompts with env.validation"]
    caplog.clear()

    rows.load_splits({"train": train, "validation": train, "heldout": train}, nothing)

    assert caplog.messages == [
        "env.validation shares 2 prompts with env.train",
        "env.heldout shares 2 prompts with env.train",
        "env.heldout shares 2 prompts with env.validation",
    ]
