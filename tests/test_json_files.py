import json

import jax.numpy as jnp
import pytest

from sdpo_jax import json_files


def test_a_last_line_that_lacks_only_its_end_is_kept_and_completed(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')

    assert [line["step"] for line in json_files.read_lines(path)] == [1, 2]
    json_files.drop_lines_from(path, 3)

    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_broken_line_in_the_middle_is_refused_by_number(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')

    with pytest.raises(ValueError, match=r"lines.jsonl:2 is not JSON"):
        list(json_files.read_lines(path))


def test_dropping_lines_looks_at_steps_not_at_their_order(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"step": 5}\n{"step": 1}\n{"step": 4}\n{"step": 2}\n')

    json_files.drop_lines_from(path, 4)
    json_files.drop_lines_from(tmp_path / "missing.jsonl", 4)

    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["lines.jsonl"]


def test_a_json_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    json_files.write_json_atomically(path, {"best": jnp.float32(0.5)})

    def fail(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(json_files.os, "fsync", fail)
    with pytest.raises(OSError):
        json_files.write_json_atomically(path, {"best": 1.0})

    assert json.loads(path.read_text()) == {"best": 0.5}
