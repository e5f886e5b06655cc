"""Options of multiple choice: as prompts list them, and from GPQA and MMLU-Pro."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from sdpo_jax.questions import rows

LETTERS = "ABCDEFGHIJ"
_INSTRUCTION = (
    "Answer this question with the letter of the right option, between <answer> and "
    "</answer>."
)
_GPQA_WRONG = tuple(f"Incorrect Answer {number}" for number in (1, 2, 3))

_LISTED = re.compile(r"^[ \t]*[(\[*]*([A-J])[*]*[).:\]][*]*\s*(\S.*)$", re.MULTILINE)
_STYLED = re.compile(r"\\(?:text|math)[a-z]*\s*\{\s*(\(?[A-J][).:]\s*)\}(?:\\[ ,;]|~)*")
_INLINE = re.compile(r"(?<!\S)[(\[*]*([A-J])[*]*[).:\]][*]*\s+")


def listed(prompt: str) -> dict[str, str]:
    """Letter -> the text of that option, for the options that a prompt lists last."""
    prompt = _STYLED.sub(r" \1 ", prompt)
    of_lines = _in_order([(m[1], m[2]) for m in _LISTED.finditer(prompt)])
    if of_lines:
        return of_lines
    # All in one line: an option ends where the next one begins.
    found = list(_INLINE.finditer(prompt))
    starts = [*(m.start() for m in found), len(prompt)]
    texts = [prompt[m.end() : end] for m, end in zip(found, starts[1:], strict=True)]
    firsts = [text.partition("\n")[0].strip(" \t,;") for text in texts]
    return _in_order(list(zip((m[1] for m in found), firsts, strict=True)))


def _in_order(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """The last two or more pairs whose letters are A, B and so on."""
    lists: list[dict[str, str]] = [{}]
    for letter, text in pairs:
        if letter == LETTERS[0]:
            lists.append({})
        if letter == LETTERS[len(lists[-1]) : len(lists[-1]) + 1]:
            lists[-1][letter] = text.strip()
    return next((found for found in reversed(lists) if len(found) > 1), {})


def from_gpqa(row: rows.Row, seed: int = 0) -> dict[str, Any]:
    """A row of multiple choice from one of GPQA ("Idavidrein/gpqa").

    Args:
      row: Question, Correct Answer, Incorrect Answer 1 to 3, optionally Record ID.
      seed: decides the order of the options, together with the texts.

    Raises:
      ValueError: if a column is missing, or a wrong option equals the correct one.
    """
    where = "a row of GPQA"
    question, correct, *wrong = (
        rows.field(row, name, str, where).strip()
        for name in ("Question", "Correct Answer", *_GPQA_WRONG)
    )
    # A hash of the texts gives the same order on every machine and in every run.
    digest = lambda text: _digest(f"{seed}/{question}/{text}")
    options = sorted([correct, *wrong], key=digest)
    uid = row.get("Record ID") or _digest(question)[:16]
    return _converted(f"gpqa-{uid}", question, options, options.index(correct), "gpqa")


def from_mmlu_pro(row: rows.Row) -> dict[str, Any]:
    """A row of multiple choice from one of MMLU-Pro ("TIGER-Lab/MMLU-Pro").

    Args:
      row: question_id, question, options (up to ten), answer (a letter), answer_index.

    Raises:
      ValueError: if a column is missing, the answer's letter and index disagree, or
        a wrong option equals the correct one.
    """
    where = f"question {row.get('question_id')!r:.80} of MMLU-Pro"
    question = rows.field(row, "question", str, where).strip()
    options, index = rows.field(row, "options", list, where), row.get("answer_index")
    if not all(isinstance(text, str) for text in options):
        raise ValueError(f"{where}, field options: expected texts, got {options!r:.80}")
    # `type` instead of `isinstance`: True would pass for the index 1.
    in_range = type(index) is int and 0 <= index < min(len(options), len(LETTERS))
    if not in_range or row.get("answer") != LETTERS[index]:
        raise ValueError(
            f"{where}: answer {row.get('answer')!r:.80} and answer_index {index!r:.80} "
            f"name no one option of {len(options)}"
        )
    uid = f"mmlu_pro-{row.get('question_id', _digest(question)[:16])}"
    return _converted(uid, question, options, index, "mmlu_pro")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def _converted(
    uid: str, question: str, options: Sequence[str], correct: int, dataset: str
) -> dict[str, Any]:
    # One line per option, so that an answer that repeats an option's text is readable.
    options = [" ".join(text.split()) for text in options]
    if not all(options) or options.count(options[correct]) > 1 or len(options) < 2:
        raise ValueError(
            f"{uid}: an option is empty, or the same as the right one, or alone"
        )
    if len(options) > len(LETTERS):
        raise ValueError(f"{uid}: {len(options)} options, {len(LETTERS)} letters")
    lettered = [f"{LETTERS[n]}: {text}" for n, text in enumerate(options)]
    return {
        "uid": uid,
        "prompt": "\n\n".join([_INSTRUCTION, question, "\n".join(lettered)]),
        "answer": LETTERS[correct],
        "dataset": dataset,
    }
