"""Makes questions from rows of files and other sources.

`columns` says how a row gives its name, prompt and system message. Its environment
defines the other fields.
"""

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sdpo_jax.questions import columns, files
from sdpo_jax.questions.columns import (
    Row,
    check_finite,
    check_object,
    field,
    got,
    name_of,
)
from sdpo_jax.questions.question import Question

# Tasks and converters use some of `columns` too.
__all__ = ["Row", "check_finite", "check_object", "field", "got", "name_of"]

SHARE = "share:"
_log = logging.getLogger(__name__)


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
        "train", selected by a hash of their uids; empty for a split without questions.
      data_of: maps a row and its location to `Question.data`.

    Raises:
      ValueError: see `load`; or if shares leave a split empty.
    """
    shares = {
        split: _share(split, str(source))
        for split, source in files.items()
        if str(source).startswith(SHARE)
    }
    splits = {
        split: load(source, data_of) if source else []
        for split, source in files.items()
        if split not in shares
    }
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
      path: a file, see `files`, or the rows of another source.
      data_of: see `load_splits`.

    Raises:
      ValueError: if a row is malformed; names file, row (from 1) and field.
    """
    located = path.read() if isinstance(path, NamedRows) else _located(Path(path))
    # By uid, in order; each with its location, and whether its row gave no name.
    found: dict[str, tuple[Question, str, bool]] = {}
    repeats, conflicts = 0, []
    for where, row in located:
        check_object(row, where)
        named = name_of(row, where)
        question = _question(row, named, where, data_of)
        if question.uid not in found:
            found[question.uid] = question, where, named is None
            continue
        other, first, _ = found[question.uid]
        first = first.removeprefix(f"{path}, ")
        if named is not None:
            raise ValueError(
                f"{where}: uid {named!r} is that of {first} too; make it unique"
            )
        repeats += 1
        if question != other:
            conflicts.append(f"{where}: has the prompt of {first} too")
    if conflicts:
        raise ValueError(
            f"{conflicts[0]}, but is graded otherwise, and has no uid: remove one, or "
            f"give both rows a uid (rows like this: {len(conflicts)})"
        )
    if not found:
        raise ValueError(f"{path} holds no questions")
    if unnamed := sum(has_none for _, _, has_none in found.values()):
        _log.info(
            "%s: %d rows have no uid; a hash of the prompt names them", path, unnamed
        )
    if repeats:
        _log.warning(
            "%s: %d rows without a uid repeat another row, which is used once",
            path,
            repeats,
        )
    return [question for question, _, _ in found.values()]


def _located(path: Path) -> Iterable[tuple[str, Any]]:
    for number, row in enumerate(files.read(path), start=1):
        yield f"{path}, row {number}", row


def _question(
    row: Row,
    uid: str | None,
    where: str,
    data_of: Callable[[Row, str], Mapping[str, Any]],
) -> Question:
    prompt, system = columns.prompt_and_system(row, where)
    uid = uid or columns.name_by_content(prompt, system)
    return Question(
        uid, prompt, system, data_of(*columns.with_ground_truth(row, where))
    )
