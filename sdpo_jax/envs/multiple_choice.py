r"""Multiple choice: a response ends in the letter of one option.

A row is like those of the official SDPO repository:

  {"idx": 7, "prompt": "...", "system": "...", "answer": "B"}

`grader="fixed"` reads the last answer that the response marks as one: an
`<answer>` tag, a `\boxed{}`, or "answer is" and "Answer:" before the letter. It must be
one letter, optionally in brackets or bold, and optionally followed by that option's
text as the prompt gives it; a letter with other words is no answer.
`grader="official"` scores as the official code does, by the row's "dataset":

- gpqa: the last A, B, C or D that is a word, in either case (even the article "a");
- mmlu_pro: the first "answer is", else the first "Answer:", else the last single
  letter;
- all others: the text of the last `<answer>` tag, or without one the entire response,
  must equal the letter.
"""

import re
from collections.abc import Mapping
from typing import Any

from sdpo_jax.envs import answer_extraction, task
from sdpo_jax.envs.base import Verdict
from sdpo_jax.envs.single_turn import unreadable
from sdpo_jax.questions import boxed, rows
from sdpo_jax.questions.options import LETTERS
from sdpo_jax.questions.question import Question

INCORRECT_FORMAT = (
    "Incorrect Format: Give the letter of one option, and nothing else, where the "
    "question asks for the answer."
)

_DENIED = re.compile(
    r"\b(?:wrong|incorrect|not|least|unlikely|eliminated?|if|false|cannot)\b|n['\u2019]t\b",
    re.IGNORECASE,
)
_STATED = re.compile(
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
_MAX_CHARS = 2000  # Of a letter with its option's text.
_LONE = re.compile(r"\b([A-J])\b")


def data(row: rows.Row, where: str) -> dict[str, Any]:
    """The right letter, and the dataset, which selects the official rule."""
    answer = rows.field(row, "answer", str, where).strip()
    if len(answer) != 1 or answer not in LETTERS:
        raise ValueError(
            f"{where}, field answer: expected one letter of {LETTERS}, got {answer!r}"
        )
    return {"answer": answer, "dataset": row.get("dataset") or ""}


def fixed(question: Question, response: str, truncated: bool) -> Verdict:
    """Grade by the answer that the response marks last."""
    options = dict(_OPTION.findall(question.prompt))
    choice = chosen_letter(response, options)
    if choice is None:
        return unreadable(INCORRECT_FORMAT, truncated)
    if choice == question.data["answer"]:
        return Verdict(1.0, "Accepted", measurements={"format": 1.0})
    feedback = f"Wrong Answer: {choice} is not the right option."
    return Verdict(0.0, "Wrong Answer", feedback, {"format": 1.0})


def chosen_letter(response: str, options: Mapping[str, str]) -> str | None:
    """The letter that a response marks as its answer, or None if there is none.

    Args:
      response: what the policy wrote.
      options: letter -> the text of that option, for options listed in the prompt.
    """
    for read in (answer_extraction.last_tag, boxed.last_box):
        if (marked := read(response)) is not None:
            return _letter(marked, options)
    candidates = [
        _letter(statement[1], options)
        for statement in _STATED.finditer(response)
        if _affirms(
            response[max(statement.start() - 60, 0) : statement.start()], statement[1]
        )
    ]
    letters = [letter for letter in candidates if letter]
    if letters:
        return letters[-1]
    return _letter(response, {})


def _affirms(before: str, stated: str) -> bool:
    """Whether a statement gives an answer.

    It gives none after a denial ("not the answer: B"), or when its letter may be the
    article ("the answer is a large ...").
    """
    line = re.split(r"[\n.]", before)[-1]
    return not _DENIED.search(line) and not re.match(r"\W*[a-j]\b", stated)


def _letter(text: str, options: Mapping[str, str]) -> str | None:
    """The one letter that a marked answer names."""
    if len(text) > _MAX_CHARS:
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
    """`text` without case, styling and repeated white space, to compare by."""
    return " ".join(text.split()).strip(_MARKS + ".,;").casefold()


def official(question: Question, response: str, truncated: bool) -> Verdict:
    """Score as the official code does: without feedback, truncated or not."""
    read = _OFFICIAL.get(question.data["dataset"], _official_tag)
    right = read(response) == question.data["answer"]
    return Verdict(float(right), "Accepted" if right else "Wrong Answer")


def _official_tag(response: str) -> str:
    return response.rpartition("<answer>")[2].partition("</answer>")[0].strip()


def _official_gpqa(response: str) -> str:
    lone = re.findall(r"\b[A-D]\b", response.upper())
    # Without one the entire response is compared, up to dots and slashes around it.
    return lone[-1] if lone else response.strip().strip(".").rstrip("/")


def _official_mmlu_pro(response: str) -> str:
    for pattern in (r"answer is \(?([A-J])\)?", r"Answer:\s*([A-J])"):
        if match := re.search(pattern, response, re.IGNORECASE):
            return match[1]
    lone = _LONE.findall(response)
    return lone[-1] if lone else ""


_OFFICIAL = {"gpqa": _official_gpqa, "mmlu_pro": _official_mmlu_pro}


TASK = task.answered(data, fixed=fixed, official=official)
