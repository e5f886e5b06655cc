r"""The final answer in a worked solution: after GSM8K's "####", or in the last box.

A grader compares final answers. A whole solution in an answer's place equals no
response, so every attempt would be wrong without a word.
"""

import re

from sdpo_jax.questions import boxed

_MARK = "####"
_STATED = re.compile(r"\banswer\s*(?:is\b|:|=)", re.IGNORECASE)
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")
# A longer text is no answer: "no solution", "all real numbers greater than 2".
_MAX_WORDS = 20
_MISSING = ("nan", "null", "<na>")


def marked_answer(text: str) -> str | None:
    """What a solution marks as its answer; None if it marks nothing."""
    _, mark, answer = text.rpartition(_MARK)
    if not mark:
        answer = boxed.last_box(text) or ""
    return answer.strip() or None


def answer_of(solution: str, where: str) -> str:
    """The answer of a solution, which may be the answer alone.

    Raises:
      ValueError: if it is longer than an answer and marks none.
    """
    answer = marked_answer(solution) or solution
    check_is_answer(answer, where)
    return answer


def check_is_answer(answer: str, where: str) -> None:
    """Refuse a worked solution, or what tables write for a missing value.

    Raises:
      ValueError: one line that names the place and what to write instead.
    """
    if answer.strip().lower() in _MISSING:
        raise ValueError(
            f"{where}: {answer.strip()!r} stands for a missing value; give the answer "
            "or leave out the row"
        )
    is_long = len(_WORD.findall(answer)) > _MAX_WORDS
    if not (is_long or _MARK in answer or _STATED.search(answer)):
        return
    marked = marked_answer(answer)
    hint = f", here {marked!r:.80}" if marked else ""
    raise ValueError(
        f"{where}: expected the final answer alone{hint}, got a worked solution: "
        f"{answer!r:.80}; cut it, or add ?convert=openai/gsm8k to a file with GSM8K's "
        "columns question and answer"
    )
