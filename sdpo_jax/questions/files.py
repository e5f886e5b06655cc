"""Reads the rows of a file: JSON, JSON lines, CSV, TSV or Parquet; perhaps compressed.

Text is UTF-8, with or without a byte-order mark. Cells of CSV and TSV are text, and an
empty cell is a missing field.
"""

import bz2
import csv
import functools
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SURROGATE = re.compile("[\ud800-\udfff]")


def _by_pyarrow(codec: str, data: bytes) -> bytes:
    import pyarrow  # Slow to import, and few files need it.

    with pyarrow.CompressedInputStream(pyarrow.BufferReader(data), codec) as stream:
        return stream.read()


# First bytes of a compressed file -> what decompresses it.
_COMPRESSED: Mapping[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\0": lzma.decompress,
    b"\x28\xb5\x2f\xfd": functools.partial(_by_pyarrow, "zstd"),
    b"\x04\x22\x4d\x18": functools.partial(_by_pyarrow, "lz4"),
}
_COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".lz4")
_UTF_16 = "text in UTF-16", "convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE"
_UTF_32 = "text in UTF-32", "convert it: iconv -f UTF-32 -t UTF-8 FILE > NEW_FILE"
# First bytes of other files -> what such a file is, and what to do. UTF-32's mark
# begins with that of UTF-16, so it comes first.
_UNREADABLE = {
    b"\xff\xfe\0\0": _UTF_32,
    b"\0\0\xfe\xff": _UTF_32,
    b"\xff\xfe": _UTF_16,
    b"\xfe\xff": _UTF_16,
    b"PK\x03\x04": (
        "a zip archive or a spreadsheet",
        "unpack it, or save the sheet as CSV",
    ),
    b"7z\xbc\xaf": ("a 7-Zip archive", "unpack it"),
    b"Rar!": ("a RAR archive", "unpack it"),
    b"ARROW1": ("an Arrow file", "write it as Parquet: to_parquet() of its dataset"),
    b"\xff\xff\xff\xff": (
        "an Arrow stream, perhaps of save_to_disk()",
        "write it as Parquet: to_parquet() of its dataset",
    ),
    b"SQLite format 3": ("a database", "export its table as CSV"),
    **dict.fromkeys(
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        ("a pickle", "write its rows as JSON lines"),
    ),
}
_TAR_MARK, _TAR_OFFSET = b"ustar", 257


def lone_surrogate(text: str) -> re.Match | None:
    """The first half of a surrogate pair without its other half, if there is one."""
    return _SURROGATE.search(text)


def read(path: Path) -> Sequence[Any]:
    """The rows of a file.

    Raises:
      ValueError: if the file cannot be read, or does not have the format that its
        extension or content indicates; one line that names the file and the remedy.
    """
    data, suffix = _content(path)
    if suffix == ".parquet" or data.startswith(b"PAR1"):
        return _parquet(data, path)
    text = text_of(data, path)
    if not text.strip():
        raise ValueError(f"{path} holds no questions: it is empty")
    if suffix in _DELIMITERS:
        return _separated(text, _DELIMITERS[suffix], path)
    return _json(text, path)


def _content(path: Path) -> tuple[bytes, str]:
    """The bytes of a file and its extension, decompressed."""
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder, expected a file of rows: name one of its files, or "
            f"read the folder as a dataset: hf:{path}?split=train"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read: {error.strerror}; give the path of a file, or "
            "hf:NAME?split=train for a dataset of the hub"
        ) from error
    suffixes = [suffix.lower() for suffix in path.suffixes]
    suffixes = [s for s in suffixes if s not in _COMPRESSED_SUFFIXES]
    for start, decompress in _COMPRESSED.items():
        if not data.startswith(start):
            continue
        try:
            data = decompress(data)
        except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
            raise ValueError(
                f"{path} cannot be decompressed ({error}); copy it again"
            ) from error
        break
    return data, suffixes[-1] if suffixes else ""


def _parquet(data: bytes, path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet  # Slow to import, and only Parquet files need it.

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not Parquet: {reason}") from error
    return table.to_pylist()


def text_of(data: bytes, path: Path) -> str:
    """The content of a file as text in UTF-8, with or without a byte-order mark.

    Raises:
      ValueError: if it is something else; one line that names the file and the remedy.
    """
    known = [what for start, what in _UNREADABLE.items() if data.startswith(start)]
    if data[_TAR_OFFSET:].startswith(_TAR_MARK):
        known = [("a tar archive", "unpack it")]
    elif (zeros := data[:1000].count(0)) and not known:
        # Text in UTF-16 without a mark has a zero byte in every ASCII character.
        is_utf_16 = zeros > len(data[:1000]) / 4
        known = [_UTF_16 if is_utf_16 else ("damaged, or no text", "write it anew")]
    if known:
        what, remedy = known[0]
        remedy = remedy.replace("FILE", str(path), 1)
        raise ValueError(f"{path} is {what}, expected text in UTF-8; {remedy}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}, {_place(data, error.start)}: byte 0x{data[error.start]:02x} is "
            "not UTF-8; convert the file, for example from Latin-1: iconv -f LATIN1 "
            f"-t UTF-8 {path} > NEW_FILE"
        ) from error


def _place(data: bytes, offset: int) -> str:
    """Row and field of a byte outside UTF-8 in JSON lines; in other files the line."""
    number = data.count(b"\n", 0, offset) + 1
    line = data.split(b"\n")[number - 1]
    try:
        row = json.loads(line.decode("utf-8", "surrogateescape"))
        fields = {name: json.dumps(row[name], ensure_ascii=False) for name in row}
    except (ValueError, TypeError):
        return f"line {number}"
    return next(
        f"row {number}, field {name}"
        for name, text in fields.items()
        if lone_surrogate(name + text)
    )


def _separated(text: str, delimiter: str, path: Path) -> list[dict[str, Any]]:
    """The rows of CSV or TSV whose first line names the columns."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    # The library refuses cells of more than 131,072 characters, for all its readers.
    limit = csv.field_size_limit(len(text) + 1)
    try:
        header, *lines = [cells for cells in reader if cells]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    finally:
        csv.field_size_limit(limit)
    _check_header(header, delimiter, path)
    rows = []
    for number, cells in enumerate(lines, start=1):
        if len(cells) != len(header):
            raise ValueError(
                f"{path}, row {number}: {len(cells)} cells under {len(header)} columns;"
                f' put a cell that holds {delimiter!r} or a new line between "..."'
            )
        named = zip(header, cells, strict=True)
        # The column of a table's index has no name.
        rows.append(
            {name.strip(): cell for name, cell in named if cell and name.strip()}
        )
    return rows


def _check_header(header: Sequence[str], delimiter: str, path: Path) -> None:
    if len(header) == 1 and (other := re.search(r"[;|\t,]", header[0])):
        raise ValueError(
            f"{path} separates its columns by {other[0]!r}, expected {delimiter!r} by "
            "its extension: .csv means commas, .tsv means tabs"
        )
    if repeated := [name for name in header if name and header.count(name) > 1]:
        raise ValueError(f"{path} has two columns {repeated[0]!r}; rename one")


def _json(text: str, path: Path) -> list[Any]:
    """The rows of one JSON list, or of one JSON value per line."""
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
    rows = []
    # `splitlines` would also split at characters such as U+2028 inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            # Joined files have a byte-order mark in their middle.
            rows.append(json.loads(line.removeprefix("\ufeff")))
        except (ValueError, RecursionError) as error:
            _refuse_one_object(text, path)
            raise ValueError(
                f"{path}, line {number} is not JSON: {error}; expected one JSON object "
                "per line, or one list of them"
            ) from error
    return rows


def _refuse_one_object(text: str, path: Path) -> None:
    """Refuse a file that is one JSON object over several lines."""
    try:
        fields = list(json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return
    raise ValueError(
        f"{path} holds one JSON object with the fields {', '.join(fields):.200}; "
        "expected a list of rows, or one row per line"
    )
