"""LiveCodeBench: rows of its hub format as rows of `programming`.

  python -m sdpo_jax.questions.livecodebench test*.jsonl datasets/lcb_v6

reads files of livecodebench/code_generation_lite and writes the questions of the SDPO
paper, February to April 2025: `train.json` with half of the hidden tests of each,
`test.json` with all of them. The same questions are in both, as in the paper; for
questions that training never sees, give `test.json` as env.train and shares of it as
env.validation and env.heldout.

Which half is decided by a hash of the question's name; the official script draws it
with NumPy, so the halves are as large as there but not the same.
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
# Word for word what the published results were measured with.
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

_MOST_BYTES = 1 << 29  # Of one question's tests; a small file may unpack to anything.
_PICKLED_TEXT = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_PICKLE_FRAME = ("PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP")

logger = logging.getLogger(__name__)


def row(hub: rows.Row, where: str, tests: str = "all") -> dict[str, Any]:
    """A row of `programming`, from one of LiveCodeBench.

    Args:
      hub: question_content, question_id, starter_code, private_test_cases, metadata.
      where: file and row, for messages.
      tests: "all" of the hidden ones, or "half" of each question's (at least one).

    Raises:
      ValueError: if a field is missing or malformed; names file, row and field.
    """
    if tests not in ("all", "half"):
        raise ValueError(f'tests must be "all" or "half", got {tests!r}')
    uid = rows.field(hub, "question_id", str, where)
    hidden = _tests(hub, where)
    if tests == "half":
        hidden = _half(hidden, uid)
    kind = hidden[0]["testtype"]
    found = {
        "inputs": [test["input"] for test in hidden],
        "outputs": [test["output"] for test in hidden],
        "testtype": kind,
        "time_limit": TIME_LIMIT_S,
    }
    if kind == "functional":
        inside = f"{where}, field metadata"
        metadata = _json(rows.field(hub, "metadata", str, where), inside, dict)
        found["fn_name"] = rows.field(metadata, "func_name", str, inside)
    return {"uid": uid, "prompt": _prompt(hub, where), "tests": found}


def _prompt(hub: rows.Row, where: str) -> str:
    """The question, which shows the public tests, and perhaps the function to write."""
    problem = rows.field(hub, "question_content", str, where)
    starter = rows.field(hub, "starter_code", str, where)
    if starter.strip():
        if "def " not in starter:
            raise ValueError(
                f"{where}, field starter_code: expected a function, got {starter!r:.80}"
            )
        signature = starter.split("def ")[1].partition("Input\n")[0].strip()
        problem += SIGNATURE.format(signature=f"def {signature}")
    # A function, not a method: there is no class in what is asked for.
    return PROMPT.format(problem=problem).replace("(self, ", "(")


def _tests(hub: rows.Row, where: str) -> list[dict[str, str]]:
    """The hidden tests: input, output and testtype of each."""
    where = f"{where}, field private_test_cases"
    text = hub.get("private_test_cases")
    if not isinstance(text, str):
        raise ValueError(f"{where}: expected text, got {text!r:.80}")
    if not text.lstrip().startswith("["):
        text = _unpacked(text, where)
    tests = _json(text, where, list)
    if not tests:
        raise ValueError(f"{where}: holds no test")
    for index, test in enumerate(tests):
        place = f"{where}, test {index + 1}"
        if not isinstance(test, Mapping):
            raise ValueError(f"{place}: expected an object, got {test!r:.80}")
        for name in ("input", "output", "testtype"):
            rows.field(test, name, str, place)
        if test["testtype"] != tests[0]["testtype"]:
            raise ValueError(f"{place}, field testtype: is not that of test 1")
    return tests


def _json(text: str, where: str, kind: type) -> Any:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: is not JSON: {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{where}: expected {kind.__name__}, got {value!r:.80}")
    return value


def _unpacked(text: str, where: str) -> str:
    """The text in base64 of zlib of a pickle."""
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(text, validate=True), _MOST_BYTES)
    except (ValueError, zlib.error) as error:
        raise ValueError(f"{where}: is neither JSON nor compressed: {error}") from error
    if not inflate.eof:
        raise ValueError(
            f"{where}: is cut short, or unpacks to more than {_MOST_BYTES} bytes"
        )
    return _pickled_text(data, where)


def _pickled_text(data: bytes, where: str) -> str:
    """The one text in a pickle, read without running it: a pickle is a program."""
    texts = []
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name in _PICKLED_TEXT:
                texts.append(argument)
            elif code.name not in _PICKLE_FRAME:
                raise ValueError(f"it has {code.name}, and may hold a text only")
    except ValueError as error:
        raise ValueError(f"{where}: no pickle of a text: {error}") from error
    if len(texts) != 1:
        raise ValueError(f"{where}: the pickle holds {len(texts)} texts, expected one")
    return texts[0]


def _half(tests: Sequence[Mapping], uid: str) -> list[Mapping]:
    """Half of the tests, rounded down and at least one, in their order."""

    def place(index):
        return hashlib.sha256(f"{uid}/{index}".encode()).digest()

    kept = sorted(range(len(tests)), key=place)[: max(1, len(tests) // 2)]
    return [tests[index] for index in sorted(kept)]


def convert(
    sources: Sequence[str | Path],
    folder: str | Path,
    since: datetime.date = SINCE,
    until: datetime.date = UNTIL,
) -> int:
    """Write train.json and test.json; the number of questions.

    Args:
      sources: files of JSON lines, as on the hub.
      folder: where to; made if it is not there.
      since: the first day of contests that are taken.
      until: the day after the last.

    Raises:
      ValueError: if a row is malformed, or none is of these days.
    """
    folder, count = Path(folder), 0
    folder.mkdir(parents=True, exist_ok=True)
    parts = {kept: folder / f"{kept}.unfinished" for kept in FILES}
    with contextlib.ExitStack() as stack:
        files = {
            kept: stack.enter_context(open(part, "w", encoding="utf-8"))
            for kept, part in parts.items()
        }
        for hub, where in _rows(sources):
            if not since <= _day(hub, where) < until:
                continue
            count += 1
            for kept, file in files.items():
                file.write(json.dumps(row(hub, where, kept)) + "\n")
    if not count:
        raise ValueError(f"no question is of {since} to {until}, the last day excluded")
    for kept, part in parts.items():
        part.replace(folder / FILES[kept])
    logger.info("%d questions in %s", count, folder)
    return count


def _rows(sources: Sequence[str | Path]) -> Iterator[tuple[dict, str]]:
    """Every row and where it stands, one in memory at a time."""
    for source in sources:
        with open(source, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    where = f"{source}, row {number}"
                    yield _json(line, where, dict), where


def _day(hub: rows.Row, where: str) -> datetime.date:
    date = rows.field(hub, "contest_date", str, where)
    try:
        return datetime.datetime.fromisoformat(date).date()
    except ValueError as error:
        raise ValueError(f"{where}, field contest_date: {error}") from error


def main() -> None:
    """The command at the head of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sources", nargs="+", help="files of JSON lines from the hub")
    parser.add_argument("folder", help="where train.json and test.json go")
    for name, day in (("--since", SINCE), ("--until", UNTIL)):
        parser.add_argument(name, type=datetime.date.fromisoformat, default=day)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    convert(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
