r"""The final answer in a worked solution: after GSM8K's "####", or in the last box.

A grader compares final answers. A whole solution in an answer's place equals no
response, so every attempt would be wrong without a word.
"""

import re

from sdpo_jax.questions import boxed

_MARK = "####"
_STATED = re.compile(r"\banswer\s*(?:is\b|:|=)", re.IGNORECASE)
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")
# An answer may be a few words, "all real numbers greater than 2"; over several lines,
# as in a matrix, or around a box it has fewer.
_MAX_WORDS, _MAX_WORDS_OVER_LINES, _MAX_WORDS_AROUND_BOX = 20, 5, 3
_MAX_CHARS = 1000
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


def _is_solution(text: str) -> bool:
    """Whether a text holds more than an answer."""
    limit = _MAX_WORDS_OVER_LINES if "\n" in text.strip() else _MAX_WORDS
    if (box := boxed.last_box(text)) is not None:
        limit = len(_WORD.findall(box)) + _MAX_WORDS_AROUND_BOX
    is_long = len(_WORD.findall(text)) > limit or len(text) > _MAX_CHARS
    return is_long or _MARK in text or bool(_STATED.search(text))


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
    if not _is_solution(answer):
        return
    marked = marked_answer(answer)
    hint = f", here {marked!r:.80}" if marked else ""
    raise ValueError(
        f"{where}: expected the final answer alone{hint}, got a worked solution: "
        f"{answer!r:.80}; cut it, or add ?convert=openai/gsm8k to a file with GSM8K's "
        "columns question and answer"
    )
