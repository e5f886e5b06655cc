"""GPQA and MMLU-Pro: their rows as rows of `env.name=multiple_choice`."""

import hashlib
from collections.abc import Sequence
from typing import Any

from sdpo_jax.questions import rows

LETTERS = "ABCDEFGHIJ"
_ASKED = (
    "Answer this question with the letter of the right option, between <answer> and "
    "</answer>."
)
_GPQA_WRONG = tuple(f"Incorrect Answer {number}" for number in (1, 2, 3))


def from_gpqa(row: rows.Row, seed: int = 0) -> dict[str, Any]:
    """A row of multiple choice from one of GPQA ("Idavidrein/gpqa").

    Args:
      row: Question, Correct Answer, Incorrect Answer 1 to 3, perhaps Record ID.
      seed: another one orders the options otherwise; nothing else does.

    Raises:
      ValueError: if a column is missing, or another option is the right one too.
    """
    where = "a row of GPQA"
    question, right, *wrong = (
        rows.field(row, name, str, where).strip()
        for name in ("Question", "Correct Answer", *_GPQA_WRONG)
    )
    # Of the texts alone: the same wherever and however often the row is read.
    place = lambda text: _digest(f"{seed}/{question}/{text}")
    options = sorted([right, *wrong], key=place)
    uid = row.get("Record ID") or _digest(question)[:16]
    return _converted(f"gpqa-{uid}", question, options, options.index(right), "gpqa")


def from_mmlu_pro(row: rows.Row) -> dict[str, Any]:
    """A row of multiple choice from one of MMLU-Pro ("TIGER-Lab/MMLU-Pro").

    Args:
      row: question_id, question, options (up to ten), answer (a letter), answer_index.

    Raises:
      ValueError: if a column is missing, the answer's letter and index disagree, or
        another option is the right one too.
    """
    where = f"question {row.get('question_id')!r:.80} of MMLU-Pro"
    question = rows.field(row, "question", str, where).strip()
    options, index = rows.field(row, "options", list, where), row.get("answer_index")
    if not all(isinstance(text, str) for text in options):
        raise ValueError(f"{where}, field options: expected texts, got {options!r:.80}")
    right = type(index) is int and 0 <= index < min(len(options), len(LETTERS))
    if not right or row.get("answer") != LETTERS[index]:
        raise ValueError(
            f"{where}: answer {row.get('answer')!r:.80} and answer_index {index!r:.80} "
            f"name no one option of {len(options)}"
        )
    uid = f"mmlu_pro-{row.get('question_id', _digest(question)[:16])}"
    return _converted(uid, question, options, index, "mmlu_pro")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _converted(
    uid: str, question: str, options: Sequence[str], right: int, dataset: str
) -> dict[str, Any]:
    # One line each, so that an answer with its option's text can be read.
    options = [" ".join(text.split()) for text in options]
    if not all(options) or options.count(options[right]) > 1 or len(options) < 2:
        raise ValueError(
            f"{uid}: an option is empty, or the same as the right one, or alone"
        )
    if len(options) > len(LETTERS):
        raise ValueError(f"{uid}: {len(options)} options, {len(LETTERS)} letters")
    lettered = [f"{LETTERS[n]}: {text}" for n, text in enumerate(options)]
    return {
        "uid": uid,
        "prompt": "\n\n".join([_ASKED, question, "\n".join(lettered)]),
        "answer": LETTERS[right],
        "dataset": dataset,
    }
