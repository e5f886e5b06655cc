"""Files of rows: every format and encoding is read, or refused in one line."""

import bz2
import functools
import gzip
import io
import itertools
import json
import lzma
import tarfile
import zipfile

import pytest

from sdpo_jax.questions import files, rows

ROWS = [{"uid": "a", "prompt": "é?"}, {"uid": "b", "prompt": "😀 \u2028?"}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


def refused(path):
    with pytest.raises(ValueError) as raised:
        rows.load(path, lambda row, where: {})
    message = str(raised.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message.removeprefix(str(path))


def written(folder, content, name="rows.jsonl"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def by_pyarrow(codec, data):
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, codec) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": functools.partial(by_pyarrow, "zstd"),
    "lz4": functools.partial(by_pyarrow, "lz4"),
}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize(
    "content",
    [LINES, json.dumps(ROWS), LINES + "\n\n", LINES.replace("\n", "\n\ufeff")],
)
def test_json_is_read_with_and_without_a_byte_order_mark(tmp_path, mark, content):
    path = written(tmp_path, mark + content.encode())

    assert files.read(path) == ROWS


@pytest.mark.parametrize("extension", COMPRESS)
def test_compressed_files_are_read(tmp_path, extension):
    compress = COMPRESS[extension]
    lines = written(tmp_path, compress(LINES.encode()), f"rows.jsonl.{extension}")
    table = written(tmp_path, compress(b"uid,prompt\na,?"), f"rows.csv.{extension}")
    unnamed = written(tmp_path, compress(LINES.encode()), "rows")
    plain = written(tmp_path, "uid,prompt\na,?", f"plain.csv.{extension}")

    assert files.read(lines) == files.read(unnamed) == ROWS
    assert files.read(table) == files.read(plain) == [{"uid": "a", "prompt": "?"}]


@pytest.mark.parametrize("extension", COMPRESS)
def test_damaged_compressed_file_is_refused(tmp_path, extension):
    whole = COMPRESS[extension](LINES.encode() * 20)
    path = written(tmp_path, whole[:-10], f"rows.jsonl.{extension}")

    assert refused(path).startswith(" cannot be decompressed (")


def archive(kind):
    data = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(data, "w") as into:
            into.writestr("rows.jsonl", LINES)
    else:
        with tarfile.open(fileobj=data, mode=kind) as into:
            into.addfile(tarfile.TarInfo("rows.jsonl"))
    return data.getvalue()


@pytest.mark.parametrize(
    "content, told",
    [
        (LINES.encode("utf-16"), "is text in UTF-16, expected text in UTF-8; convert"),
        (LINES.encode("utf-16-le"), "is text in UTF-16, expected text in UTF-8"),
        (LINES.encode("utf-16-be"), "is text in UTF-16, expected text in UTF-8"),
        (LINES.encode("utf-32"), "is text in UTF-32, expected text in UTF-8"),
        (archive("zip"), "is a zip archive or a spreadsheet"),
        (archive("w"), "is a tar archive, expected text in UTF-8; unpack it"),
        (archive("w:gz"), "is a tar archive, expected text in UTF-8; unpack it"),
        (b"ARROW1\0\0", "is an Arrow file"),
        (b"\xff\xff\xff\xff\x10\0", "save_to_disk"),
        (b"\x80\x05]\x94.", "is a pickle"),
        (b"Rar!\x1a\x07", "is a RAR archive"),
        (b"abcde\0f", "is damaged, or no text, expected text in UTF-8; write it anew"),
        (b"SQLite format 3\0", "is a database"),
    ],
    # An archive holds the time, and test processes must agree on the names.
    ids=itertools.count(),
)
def test_other_kinds_of_files_are_named_with_the_remedy(tmp_path, content, told):
    assert told in refused(written(tmp_path, content))


def test_remedy_of_utf_16_is_a_command_on_the_file(tmp_path):
    path = written(tmp_path, LINES.encode("utf-16"))

    assert f"iconv -f UTF-16 -t UTF-8 {path} > NEW_FILE" in refused(path)


@pytest.mark.parametrize(
    "content, told",
    [
        ('{"prompt": "a"}\n{"uid": 1, "prompt": "é?"}', ", row 2, field prompt: byte"),
        ('[{"prompt": "a"},\n{"prompt": "é?"}]', ", line 2: byte 0xe9 is not UTF-8; "),
        ("uid,prompt\n1,a\n2,é", ", line 3: byte 0xe9 is not UTF-8; convert the file"),
    ],
)
def test_bytes_outside_utf_8_are_located(tmp_path, content, told):
    path = written(tmp_path, content.encode("latin-1"))

    assert refused(path).startswith(told)


def test_folder_missing_and_empty_files_are_refused(tmp_path):
    told = refused(tmp_path)
    assert told.startswith(" is a folder, expected a file of rows: name one of its ")
    assert told.endswith(f"hf:{tmp_path}?split=train")
    missing = refused(tmp_path / "nosuch.jsonl")
    assert missing.startswith(" cannot be read: No such file or directory; give the ")
    for content in ("", " \n", "\ufeff", "[]"):
        assert refused(written(tmp_path, content)).startswith(" holds no questions")


def test_unreadable_file_is_refused(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", forbidden)

    assert " cannot be read: Permission denied" in refused(tmp_path / "rows.jsonl")


def test_one_json_object_is_refused_by_its_fields(tmp_path):
    path = written(tmp_path, json.dumps({"version": 1, "data": ROWS}, indent=1))

    assert refused(path) == (
        " holds one JSON object with the fields version, data; expected a list of "
        "rows, or one row per line"
    )


def test_parquet_is_known_by_its_content(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.pq")

    assert files.read(tmp_path / "rows.pq") == ROWS


# CSV and TSV.


@pytest.mark.parametrize("extension, delimiter", [("csv", ","), ("TSV", "\t")])
def test_tables_of_text_are_read(tmp_path, extension, delimiter):
    cells = [
        ["", "uid", "prompt", "answer"],
        ["0", "a", '"two\nlines, ""quoted""\tand more"', "007"],
        ["1", "b", "x" * 200_000, ""],
    ]
    text = "\ufeff" + "\r\n".join(map(delimiter.join, cells)) + "\r\n\r\n"

    read = files.read(written(tmp_path, text, f"rows.{extension}"))

    assert read == [
        {"uid": "a", "prompt": 'two\nlines, "quoted"\tand more', "answer": "007"},
        {"uid": "b", "prompt": "x" * 200_000},
    ]


@pytest.mark.parametrize(
    "content, told",
    [
        ("uid,prompt\na,b,c", ", row 1: 3 cells under 2 columns; put a cell that hold"),
        ("uid,prompt\na,b\nc", ", row 2: 1 cells under 2 columns"),
        ('uid,prompt\na,"b', ", line 2: unexpected end of data"),
        ("uid;prompt\na;b", " separates its columns by ';', expected ',' by its ext"),
        ("uid\tprompt\na\tb", r" separates its columns by '\t', expected ','"),
        ("uid,uid,prompt\na,b,c", " has two columns 'uid'; rename one"),
        ("uid,prompt,rule\na,b,{", ", row 1, field rule: is not JSON: Expecting"),
        (
            "uid,prompt\na,",
            ", row 1, field prompt: expected str, got None; the row has",
        ),
    ],
)
def test_malformed_tables_are_refused(tmp_path, content, told):
    assert refused(written(tmp_path, content, "rows.csv")).startswith(told)
