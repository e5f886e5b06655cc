"""Digests notice what changed, and read no more of huge weights than they must."""

import random

import pytest

from sdpo_jax import digests


def test_any_byte_of_a_file_counts(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "a.jsonl").write_bytes(bytes(1000))
    (tmp_path / "inside" / "b").write_bytes(b"b")
    before = digests.of_files(tmp_path)

    (tmp_path / "a.jsonl").write_bytes(bytes(999) + b"1")

    after = digests.of_files(tmp_path)
    assert list(before) == list(after) == ["a.jsonl", "inside/b"]
    assert before["a.jsonl"] != after["a.jsonl"]
    assert before["inside/b"] == after["inside/b"]
    assert before["a.jsonl"].startswith("sha256:")
    assert digests.of_files(tmp_path, [tmp_path / "a.jsonl"]).keys() == {"a.jsonl"}


@pytest.fixture
def small(monkeypatch):
    sizes = dict(_WHOLE=1000, _HEAD=100, _STRIDE=200, _SLICE=10)
    for name, size in sizes.items():
        monkeypatch.setattr(digests, name, size)


@pytest.mark.parametrize(
    "place, is_seen",
    [(0, True), (99, True), (200, False), (309, True), (310, False), (4999, True)],
)
def test_huge_weights_are_sampled(place, is_seen, tmp_path, small):
    content = bytearray(random.Random(0).randbytes(5000))
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    before = digests.of_files(tmp_path)[file.name]

    content[place] ^= 1
    file.write_bytes(content)

    assert (digests.of_files(tmp_path)[file.name] != before) == is_seen
    assert before.startswith("sampled-sha256:")
    # Every entry of a matrix as long as the stride cannot be another one unseen.
    file.write_bytes(content[:2000] + random.Random(1).randbytes(210) + content[2210:])
    assert digests.of_files(tmp_path)[file.name] != before


def test_size_of_huge_weights_counts(tmp_path, small):
    digest_of = lambda size: (
        (tmp_path / "m.safetensors").write_bytes(bytes(size))
        and digests.of_files(tmp_path)["m.safetensors"]
    )

    assert digest_of(5000) != digest_of(5001)


def test_huge_file_of_questions_is_read_whole(tmp_path, small):
    file = tmp_path / "train.jsonl"
    file.write_bytes(bytes(5000))
    before = digests.of_files(tmp_path)

    file.write_bytes(bytes(200) + b"1" + bytes(4799))

    assert digests.of_files(tmp_path) != before
