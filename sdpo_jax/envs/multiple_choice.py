r"""Multiple choice: a response ends in the letter of one option.

A row is like those of the official SDPO repository:

  {"idx": 7, "prompt": "...", "system": "...", "answer": "B"}

`grader="fixed"` reads the last answer that the response marks as one: an
`<answer>` tag, a `\boxed{}`, or "answer is" and "Answer:" before the letter. What is
marked must be one letter, perhaps in brackets or bold, and perhaps followed by that
option's text as the prompt has it; a letter with other words is no answer.
`grader="official"` scores as the official code does, by the row's "dataset":

- gpqa: the last A, B, C or D that stands alone, in whatever case, the article too;
- mmlu_pro: the first "answer is", else the first "Answer:", else the last lone letter;
- all others: what stands in the last `<answer>` tag, or without one the whole
  response, must equal the letter.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sdpo_jax.envs import marked, rows
from sdpo_jax.envs.base import Question, Verdict
from sdpo_jax.envs.graded import unreadable

LETTERS = "ABCDEFGHIJ"
INCORRECT_FORMAT = (
    "Incorrect Format: Give the letter of one option, and nothing else, where the "
    "question asks for the answer."
)

_DENIED = re.compile(
    r"\b(?:wrong|incorrect|not|least|unlikely|eliminated?|if|false|cannot)\b|n['\u2019]t\b",
    re.IGNORECASE,
)
_SAID = re.compile(
    r"\b(?:answer|option|choice)[*_]*(?:\s+is\b[*_]*\s*:?|\s*:)[*_]*\s*([^\n]*)",
    re.IGNORECASE,
)
_MARKS = " \t\r\n*_`\"'$"
_STYLED = re.compile(
    r"\\(?:boxed|text(?:bf|it|rm)?|math(?:rm|bf|it)|mbox)\s*\{([^{}]*)\}"
)
_INTRODUCED = re.compile(
    r"(?:(?:the|correct|option|choice|answer|is|:)\b[\s:]*)+", re.IGNORECASE
)
_CHOICE = re.compile(
    r"[(\[{]?(?P<letter>[A-Ja-j])[)\]}]?[*_`\"'$]*"
    r"(?:[.:,)\-\u2013\u2014]*\s*(?P<rest>.*))?",
    re.DOTALL,
)
_OPTION = re.compile(r"^\s*[(\[]?([A-J])[).:\]]\s*(.*\S)\s*$", re.MULTILINE)
_MOST_CHARS = 2000  # Of a letter with its option's text.
_ASKED = (
    "Answer this question with the letter of the right option, between <answer> and "
    "</answer>."
)
_GPQA_WRONG = tuple(f"Incorrect Answer {number}" for number in (1, 2, 3))
_LONE = re.compile(r"\b([A-J])\b")


def data(row: rows.Row, where: str) -> dict[str, Any]:
    """The right letter, and which of the official rules is this row's."""
    answer = rows.field(row, "answer", str, where).strip()
    if len(answer) != 1 or answer not in LETTERS:
        raise ValueError(
            f"{where}, field answer: expected one letter of {LETTERS}, got {answer!r}"
        )
    return {"answer": answer, "dataset": row.get("dataset") or ""}


def fixed(question: Question, response: str, truncated: bool) -> Verdict:
    """Grade by the answer that the response marks last."""
    options = dict(_OPTION.findall(question.prompt))
    choice = chosen(response, options)
    if choice is None:
        return unreadable(INCORRECT_FORMAT, truncated)
    if choice == question.data["answer"]:
        return Verdict(1.0, "Accepted", measurements={"format": 1.0})
    told = f"Wrong Answer: {choice} is not the right option."
    return Verdict(0.0, "Wrong Answer", told, {"format": 1.0})


def chosen(response: str, options: Mapping[str, str]) -> str | None:
    """The letter that a response marks as its answer, or None if there is none.

    Args:
      response: what the policy wrote.
      options: letter -> the text of that option, where the prompt has it.
    """
    for read in (marked.last_tag, marked.last_box):
        if (found := read(response)) is not None:
            return _letter(found, options)
    said = [
        _letter(text[1], options)
        for text in _SAID.finditer(response)
        if _affirms(response[max(text.start() - 60, 0) : text.start()], text[1])
    ]
    letters = [letter for letter in said if letter]
    if letters:
        return letters[-1]
    return _letter(response, {})


def _affirms(before: str, said: str) -> bool:
    """Whether what stands before lets the answer be one; "is a large" names none."""
    line = re.split(r"[\n.]", before)[-1]
    return not _DENIED.search(line) and not re.match(r"\W*[a-j]\b", said)


def _letter(text: str, options: Mapping[str, str]) -> str | None:
    """The one letter that a marked answer names."""
    if len(text) > _MOST_CHARS:
        return None
    text, before = re.sub(r"\\[()\[\]]", "", text), ""
    while text != before:
        before, text = text, _STYLED.sub(r"\1", text).strip(_MARKS)
    text = _INTRODUCED.sub("", text, count=1).strip(_MARKS) if len(text) > 1 else text
    choice = _CHOICE.fullmatch(text)
    if choice is None:
        return None
    letter, rest = choice["letter"].upper(), _plain(choice["rest"] or "")
    return letter if rest in ("", _plain(options.get(letter, ""))) else None


def _plain(text: str) -> str:
    """Text without what only changes its look."""
    return " ".join(text.split()).strip(_MARKS + ".,;").casefold()


def official(question: Question, response: str, truncated: bool) -> Verdict:
    """Score as the official code: no feedback, and no regard to truncation."""
    read = _OFFICIAL.get(question.data["dataset"], _official_tag)
    right = read(response) == question.data["answer"]
    return Verdict(float(right), "Accepted" if right else "Wrong Answer")


def _official_tag(response: str) -> str:
    return response.rpartition("<answer>")[2].partition("</answer>")[0].strip()


def _official_gpqa(response: str) -> str:
    lone = re.findall(r"\b[A-D]\b", response.upper())
    # Without one the whole response is compared, up to dots and slashes around it.
    return lone[-1] if lone else response.strip().strip(".").rstrip("/")


def _official_mmlu_pro(response: str) -> str:
    for said in (r"answer is \(?([A-J])\)?", r"Answer:\s*([A-J])"):
        if found := re.search(said, response, re.IGNORECASE):
            return found[1]
    lone = _LONE.findall(response)
    return lone[-1] if lone else ""


_OFFICIAL = {"gpqa": _official_gpqa, "mmlu_pro": _official_mmlu_pro}


def from_gpqa(row: rows.Row, seed: int = 0) -> dict[str, Any]:
    """A row of this environment from one of GPQA ("Idavidrein/gpqa").

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
    """A row of this environment from one of MMLU-Pro ("TIGER-Lab/MMLU-Pro").

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
