r"""Multiple choice: a response ends in the letter of one option.

A row is like those of the official SDPO repository:

  {"idx": 7, "prompt": "...", "system": "...", "answer": "B"}

`grader="fixed"` reads the last answer that the response marks: an `<answer>` tag, a
`\boxed{}`, "the answer is", "Answer:", "is the correct option", or a last line that is
the letter. It must be one letter, optionally styled, and optionally followed by that
option's text as the prompt gives it, with or without LaTeX; a letter with the text of
another option is no answer. See `marked_choice`.

`grader="official"` scores as the official code does, by the row's "dataset":

- gpqa: the last A, B, C or D that is a word, in either case (even the article "a");
- mmlu_pro: the first "answer is", else the first "Answer:", else the last single
  letter;
- all others: the text of the last `<answer>` tag, or without one the entire response,
  must equal the letter.
"""

import re
from typing import Any

from sdpo_jax.envs import marked_choice, task
from sdpo_jax.envs.base import Verdict
from sdpo_jax.envs.single_turn import unreadable
from sdpo_jax.questions import options, rows
from sdpo_jax.questions.options import LETTERS
from sdpo_jax.questions.question import Question

INCORRECT_FORMAT = (
    "Incorrect Format: Give the letter of one option, and nothing else, where the "
    "question asks for the answer."
)

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
    asked = f"{question.system}\n{question.prompt}"
    choice = marked_choice.chosen_letter(
        response, options.listed(question.prompt), asked, truncated
    )
    if choice is None:
        return unreadable(INCORRECT_FORMAT, truncated)
    if choice == question.data["answer"]:
        return Verdict(1.0, "Accepted", measurements={"format": 1.0})
    feedback = f"Wrong Answer: {choice} is not the right option."
    return Verdict(0.0, "Wrong Answer", feedback, {"format": 1.0})


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
