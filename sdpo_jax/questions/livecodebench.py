"""Converts LiveCodeBench rows from their hub format to rows of `programming`.

  python -m sdpo_jax.questions.livecodebench test*.jsonl datasets/lcb_v6

reads files of livecodebench/code_generation_lite and writes the questions of the SDPO
paper (February to April 2025): `train.json` with half of the hidden tests of each
question, `test.json` with all of them. Both files contain the same questions, as in the
paper. To evaluate on questions that training never sees, use `test.json` as env.train
and shares of it as env.validation and env.heldout.

A hash of the question's uid selects the half. The official script draws it with NumPy,
so its halves have the same sizes but other tests.
"""

import argparse
import base64
import contextlib
import datetime
import hashlib
import json
import logging
import pickletools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo_jax.questions import rows

SINCE, UNTIL = datetime.date(2025, 2, 1), datetime.date(2025, 5, 1)
TIME_LIMIT_S = 6
FILES = {"half": "train.json", "all": "test.json"}
# Equal to the prompt of the published results, character by character.
PROMPT = (
    "You are a coding expert. You will be given a coding problem, and you need to "
    "write a correct Python program that matches the specification and passes all "
    "tests. The time limit is 1 second. You may start by outlining your thought "
    "process. In the end, please provide the complete code in a code block enclosed "
    "with ``` ```.\n\n{problem}"
)
SIGNATURE = (
    "\n\nYour solution should have the following signature: ```python\n{signature}\n```"
)

# For the tests of one question: a small file can decompress to any size.
_MAX_BYTES = 1 << 29
# Opcodes that push a string, and opcodes that do not change what is on the stack.
_PICKLED_TEXT = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_PICKLE_FRAME = ("PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP")

logger = logging.getLogger(__name__)


def from_livecodebench(
    hub_row: rows.Row, where: str, tests: str = "all"
) -> dict[str, Any]:
    """A row of `programming` from one of LiveCodeBench.

    Args:
      hub_row: question_content, question_id, starter_code, private_test_cases,
        metadata.
      where: file and row, for messages.
      tests: "all" hidden tests, or "half" of them (at least one).

    Raises:
      ValueError: if a field is missing or malformed; names file, row and field.
    """
    if tests not in ("all", "half"):
        raise ValueError(f'tests must be "all" or "half", got {tests!r}')
    uid = rows.field(hub_row, "question_id", str, where)
    hidden = _tests(hub_row, where)
    if tests == "half":
        hidden = _half(hidden, uid)
    kind = hidden[0]["testtype"]
    converted = {
        "inputs": [test["input"] for test in hidden],
        "outputs": [test["output"] for test in hidden],
        "testtype": kind,
        "time_limit": TIME_LIMIT_S,
    }
    if kind == "functional":
        inside = f"{where}, field metadata"
        metadata = _json(rows.field(hub_row, "metadata", str, where), inside, dict)
        converted["fn_name"] = rows.field(metadata, "func_name", str, inside)
    return {"uid": uid, "prompt": _prompt(hub_row, where), "tests": converted}


def _prompt(hub_row: rows.Row, where: str) -> str:
    """The problem statement in the prompt, with the signature if there is one."""
    problem = rows.field(hub_row, "question_content", str, where)
    starter = rows.field(hub_row, "starter_code", str, where)
    if starter.strip():
        if "def " not in starter:
            raise ValueError(
                f"{where}, field starter_code: expected a function, got {starter!r:.80}"
            )
        signature = starter.split("def ")[1].partition("Input\n")[0].strip()
        problem += SIGNATURE.format(signature=f"def {signature}")
    # The starter code is a method of a class, but the prompt asks for a function.
    return PROMPT.format(problem=problem).replace("(self, ", "(")


def _tests(hub_row: rows.Row, where: str) -> list[dict[str, str]]:
    """The hidden tests, each with input, output and testtype."""
    where = f"{where}, field private_test_cases"
    text = hub_row.get("private_test_cases")
    if not isinstance(text, str):
        raise ValueError(f"{where}: expected text, got {text!r:.80}")
    if not text.lstrip().startswith("["):
        text = _decompressed(text, where)
    tests = _json(text, where, list)
    if not tests:
        raise ValueError(f"{where}: contains no test")
    for index, test in enumerate(tests):
        inside = f"{where}, test {index + 1}"
        if not isinstance(test, Mapping):
            raise ValueError(f"{inside}: expected an object, got {test!r:.80}")
        for name in ("input", "output", "testtype"):
            rows.field(test, name, str, inside)
        if test["testtype"] != tests[0]["testtype"]:
            raise ValueError(f"{inside}, field testtype: differs from that of test 1")
    return tests


def _json(text: str, where: str, kind: type) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: is not JSON: {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{where}: expected {kind.__name__}, got {value!r:.80}")
    return value


def _decompressed(text: str, where: str) -> str:
    """The string inside base64, zlib and pickle, as the hub's files encode it."""
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(text, validate=True), _MAX_BYTES)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"{where}: is neither JSON nor compressed: {error}") from error
    if not inflate.eof:
        raise ValueError(
            f"{where}: is truncated, or decompresses to more than {_MAX_BYTES} bytes"
        )
    return _pickled_text(data, where)


def _pickled_text(data: bytes, where: str) -> str:
    """The only string in a pickle."""
    # `pickle.loads` would run code from the file; `genops` only lists the opcodes.
    texts = []
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name in _PICKLED_TEXT:
                texts.append(argument)
            elif code.name not in _PICKLE_FRAME:
                raise ValueError(f"opcode {code.name} is not allowed")
    except ValueError as error:
        raise ValueError(f"{where}: is not a pickled string: {error}") from error
    if len(texts) != 1:
        raise ValueError(f"{where}: the pickle has {len(texts)} strings, expected 1")
    return texts[0]


def _half(tests: Sequence[Mapping], uid: str) -> list[Mapping]:
    """Half of the tests, rounded down but at least one, in their original order."""

    def digest(index):
        return hashlib.sha256(f"{uid}/{index}".encode()).digest()

    kept = sorted(range(len(tests)), key=digest)[: max(1, len(tests) // 2)]
    return [tests[index] for index in sorted(kept)]


def convert(
    sources: Sequence[str | Path],
    folder: str | Path,
    since: datetime.date = SINCE,
    until: datetime.date = UNTIL,
) -> int:
    """Write train.json and test.json; return the number of questions.

    Args:
      sources: files of JSON lines, as on the hub.
      folder: output folder, created if missing.
      since: first contest day to include.
      until: day after the last one to include.

    Raises:
      ValueError: if a row is malformed, or no contest is on these days.
    """
    folder, count = Path(folder), 0
    folder.mkdir(parents=True, exist_ok=True)
    # Renamed at the end, so that an error leaves no incomplete file behind.
    unfinished = {tests: folder / f"{tests}.unfinished" for tests in FILES}
    with contextlib.ExitStack() as stack:
        files = {
            tests: stack.enter_context(open(path, "w", encoding="utf-8"))
            for tests, path in unfinished.items()
        }
        for hub_row, where in _rows(sources):
            if not since <= _day(hub_row, where) < until:
                continue
            count += 1
            for tests, file in files.items():
                converted = from_livecodebench(hub_row, where, tests)
                file.write(json.dumps(converted) + "\n")
    if not count:
        raise ValueError(f"no question is from {since} or later and before {until}")
    for tests, path in unfinished.items():
        path.replace(folder / FILES[tests])
    logger.info("wrote %d questions to %s", count, folder)
    return count


def _rows(sources: Sequence[str | Path]) -> Iterator[tuple[dict, str]]:
    """Every row and its location, with one row in memory at a time."""
    for source in sources:
        with open(source, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{source}, row {number}"
                    yield _json(line, where, dict), where


def _day(hub_row: rows.Row, where: str) -> datetime.date:
    date = rows.field(hub_row, "contest_date", str, where)
    try:
        return datetime.datetime.fromisoformat(date).date()
    except ValueError as error:
        raise ValueError(f"{where}, field contest_date: {error}") from error


def main() -> None:
    """Run the command in the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="+", help="files of JSON lines from the hub")
    parser.add_argument("folder", help="output folder of train.json and test.json")
    for name, day in (("--since", SINCE), ("--until", UNTIL)):
        parser.add_argument(name, type=datetime.date.fromisoformat, default=day)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    convert(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
