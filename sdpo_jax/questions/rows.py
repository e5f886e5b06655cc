"""Makes questions from rows of files (JSON, JSON lines, Parquet) and other sources.

Every row has a name ("uid", or "idx" as in the official SDPO files), a "prompt" and
optionally a "system" message. Its environment defines the other fields.
"""

import dataclasses
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdpo_jax.questions.question import Question

SHARE = "share:"
_log = logging.getLogger(__name__)

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class NamedRows:
    """Rows from a source other than an unconverted file.

    Args:
      name: of the source, for messages.
      read: yields pairs of a row's location, for messages, and the row.
    """

    name: str
    read: Callable[[], Iterable[tuple[str, Any]]]

    def __str__(self) -> str:
        return self.name


def load_splits(
    files: Mapping[str, str | Path | NamedRows],
    data_of: Callable[[Row, str], Mapping[str, Any]],
) -> dict[str, list[Question]]:
    """The questions of every split; logs how many prompts are repeated or shared.

    Args:
      files: split -> file or source, or "share:0.1" for a tenth of the questions of
        "train", selected by a hash of their uids.
      data_of: maps a row and its location to `Question.data`.

    Raises:
      ValueError: see `load`; or if shares leave a split empty.
    """
    shares = {
        split: _share(split, str(source))
        for split, source in files.items()
        if str(source).startswith(SHARE)
    }
    splits = {s: load(path, data_of) for s, path in files.items() if s not in shares}
    splits = _with_shares(splits, shares)
    prompts = {s: {q.prompt for q in questions} for s, questions in splits.items()}
    for split, questions in splits.items():
        if repeated := len(questions) - len(prompts[split]):
            _log.warning("env.%s repeats %d of its prompts", split, repeated)
    for other, split in itertools.combinations(splits, 2):
        if shared := len(prompts[split] & prompts[other]):
            _log.warning("env.%s shares %d prompts with env.%s", split, shared, other)
    return splits


def _share(split: str, source: str) -> float:
    try:
        share = float(source.removeprefix(SHARE))
    except ValueError:
        share = 0.0
    if not 0 < share < 1 or split == "train":
        raise ValueError(
            f"env.{split}={source}: expected a file, or {SHARE} and a number between "
            "0 and 1 for a share of env.train"
        )
    return share


def _with_shares(
    splits: Mapping[str, list[Question]], shares: Mapping[str, float]
) -> dict[str, list[Question]]:
    """`splits`, with the shares of other splits moved out of "train"."""
    train = remaining = splits.get("train", [])
    changed, remaining_share = {}, 1.0
    # "heldout" sorts before "validation", so a new validation share moves no held-out
    # question.
    for split in sorted(shares):
        # As a share of the questions that earlier splits have not taken.
        share = shares[split] / remaining_share if remaining_share > 0 else 1.0
        changed[split] = [q for q in remaining if _fraction(q, split) < share]
        remaining = [q for q in remaining if _fraction(q, split) >= share]
        remaining_share -= shares[split]
    if shares:
        changed["train"] = remaining
    if empty := [split for split, questions in changed.items() if not questions]:
        raise ValueError(
            f"env.{empty[0]} is left without a question: {len(train)} in env.train are "
            f"too few for shares of {', '.join(map(str, shares.values()))}"
        )
    return {**splits, **changed}


def _fraction(question: Question, split: str) -> float:
    """A hash of the uid and the split's name as a number in [0, 1)."""
    text = f"{split}/{question.uid}".encode("utf-8", "surrogatepass")
    # Six bytes: a float represents 48 bits exactly.
    return int.from_bytes(hashlib.sha256(text).digest()[:6], "big") / 2**48


def load(
    path: str | Path | NamedRows, data_of: Callable[[Row, str], Mapping[str, Any]]
) -> list[Question]:
    """The questions of a file or source.

    Args:
      path: a Parquet file (.parquet), a file with one JSON list or JSON lines, or the
        rows of another source.
      data_of: see `load_splits`.

    Raises:
      ValueError: if a row is malformed; names file, row (from 1) and field.
    """
    located = path.read() if isinstance(path, NamedRows) else _located(Path(path))
    questions, where_of = [], {}
    for where, row in located:
        question = _question(row, where, data_of)
        if question.uid in where_of:
            first = where_of[question.uid].removeprefix(f"{path}, ")
            raise ValueError(
                f"{where}: uid {question.uid!r} is that of {first} too; make it unique"
            )
        where_of[question.uid] = where
        questions.append(question)
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions


def _located(path: Path) -> Iterable[tuple[str, Any]]:
    for number, row in enumerate(read_file(path), start=1):
        yield f"{path}, row {number}", row


def field(row: Row, name: str, kind: type, where: str) -> Any:
    """`row[name]`, checked to have type `kind`.

    Raises:
      ValueError: if the field is missing or has another type.
    """
    if not isinstance(row.get(name), kind):
        got = f"{row.get(name)!r:.80}"
        raise ValueError(f"{where}, field {name}: expected {kind.__name__}, got {got}")
    return row[name]


def check_object(row: Any, where: str) -> None:
    """Raise ValueError unless the row is a JSON object."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, got {type(row).__name__}")


def read_file(path: Path) -> Sequence[Any]:
    """The rows of a file.

    Raises:
      ValueError: if the content does not have the format that the extension or the
        first character indicates.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet  # Slow to import, and only Parquet files need it.

        try:
            return pyarrow.parquet.read_table(path).to_pylist()
        except pyarrow.ArrowException as error:
            raise ValueError(f"{path} is not Parquet: {error}") from error
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
    rows = []
    # `splitlines` would also split at characters such as U+2028 inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
    return rows


def _question(
    row: Any, where: str, data_of: Callable[[Row, str], Mapping[str, Any]]
) -> Question:
    check_object(row, where)
    uid = row.get("uid", row.get("idx"))
    if not isinstance(uid, str | int) or isinstance(uid, bool):
        raise ValueError(f"{where}, field uid (or idx): expected a name, got {uid!r}")
    prompt = field(row, "prompt", str, where)
    system = row.get("system") or ""
    if not isinstance(system, str):
        raise ValueError(f"{where}, field system: expected text, got {system!r}")
    if not prompt.strip():
        raise ValueError(f"{where}, field prompt: is empty")
    return Question(str(uid), prompt, system, data_of(row, where))
