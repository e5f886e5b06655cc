"""Questions from rows: of files (JSON, JSON lines or Parquet), and of other sources.

Every row has a name ("uid", or the "idx" of the official SDPO files), a "prompt" and
perhaps a "system" turn; what else it holds is its environment's business.
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
    """Rows that are not simply those of a file.

    Args:
      name: for messages.
      read: yields where each row stands, and the row.
    """

    name: str
    read: Callable[[], Iterable[tuple[str, Any]]]

    def __str__(self) -> str:
        return self.name


def load_splits(
    files: Mapping[str, str | Path | NamedRows],
    data_of: Callable[[Row, str], Mapping[str, Any]],
) -> dict[str, list[Question]]:
    """The questions of every split; repeated and shared prompts are logged.

    Args:
      files: split -> file or source, or "share:0.1" for a tenth of the questions of
        "train". Which ones depends on their uids only.
      data_of: a row, and where it stands, to what the environment grades with.

    Raises:
      ValueError: see `load`; or if shares leave a split empty.
    """
    shares = {
        split: _share(split, str(source))
        for split, source in files.items()
        if str(source).startswith(SHARE)
    }
    splits = {s: load(path, data_of) for s, path in files.items() if s not in shares}
    splits = _cut(splits, shares)
    prompts = {split: {q.prompt for q in found} for split, found in splits.items()}
    for split, found in splits.items():
        if repeated := len(found) - len(prompts[split]):
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
            "0 and 1 for a part of env.train"
        )
    return share


def _cut(
    splits: Mapping[str, list[Question]], shares: Mapping[str, float]
) -> dict[str, list[Question]]:
    """`splits`, of whose "train" other splits take their shares."""
    whole = left = splits.get("train", [])
    cut, remaining = {}, 1.0
    # Held-out questions are taken first: another share of validation moves none.
    for split in sorted(shares):
        share = shares[split] / remaining if remaining > 0 else 1.0
        cut[split] = [q for q in left if _place(q, split) < share]
        left = [q for q in left if _place(q, split) >= share]
        remaining -= shares[split]
    if shares:
        cut["train"] = left
    if empty := [split for split, found in cut.items() if not found]:
        raise ValueError(
            f"env.{empty[0]} is left without a question: {len(whole)} in env.train are "
            f"too few for shares of {', '.join(map(str, shares.values()))}"
        )
    return {**splits, **cut}


def _place(question: Question, split: str) -> float:
    """A number in [0, 1) that only the uid and the split's name decide."""
    text = f"{split}/{question.uid}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:6], "big") / 2**48


def load(
    path: str | Path | NamedRows, data_of: Callable[[Row, str], Mapping[str, Any]]
) -> list[Question]:
    """Read a file or source of questions.

    Args:
      path: a file that ends in .parquet, or holds one JSON list, or JSON lines.
      data_of: see `load_splits`.

    Raises:
      ValueError: if a row is malformed; names file, row (from 1) and field.
    """
    places = path.read() if isinstance(path, NamedRows) else _numbered(Path(path))
    questions, seen = [], {}
    for where, row in places:
        question = _question(row, where, data_of)
        if question.uid in seen:
            first = seen[question.uid].removeprefix(f"{path}, ")
            raise ValueError(
                f"{where}: uid {question.uid!r} is that of {first} too; make it unique"
            )
        seen[question.uid] = where
        questions.append(question)
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions


def _numbered(path: Path) -> Iterable[tuple[str, Any]]:
    for number, row in enumerate(of_file(path), start=1):
        yield f"{path}, row {number}", row


def field(row: Row, name: str, kind: type, where: str) -> Any:
    """`row[name]`, of type `kind`.

    Raises:
      ValueError: if it is missing, or of another type.
    """
    if not isinstance(row.get(name), kind):
        got = f"{row.get(name)!r:.80}"
        raise ValueError(f"{where}, field {name}: expected {kind.__name__}, got {got}")
    return row[name]


def check_object(row: Any, where: str) -> None:
    """Refuse a row that is no object."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, got {type(row).__name__}")


def of_file(path: Path) -> Sequence[Any]:
    """What a file holds, row by row.

    Raises:
      ValueError: if it is not of the format that its name and beginning say.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet  # Slow to import, and most files do without.

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
