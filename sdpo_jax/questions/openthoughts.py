"""Converts OpenThoughts rows to rows of `env.name=privileged`."""

import hashlib
from typing import Any

from sdpo_jax.questions import boxed, rows

_INSTRUCTION = "\n\nReason step by step, and put the final answer within \\boxed{}."
# Fields with the solution, best first. Only the last one was written by a model.
_SOLUTIONS = ("solution", "ground_truth_solution", "deepseek_solution")


def from_openthoughts(row: rows.Row) -> dict[str, Any]:
    r"""A row of `privileged` from one of OpenThoughts.

    Args:
      row: from "open-thoughts/OpenThoughts-114k" with configuration "metadata"
        (problem, ground_truth_solution, deepseek_solution, domain), or from
        "siyanzhao/Openthoughts_math_30k_opsd" (problem, solution, Answer).

    Returns:
      uid (a hash of the problem's text, so equal problems share it), prompt, solution.
      A mathematical problem also has an answer if the row has one, or if its
      human-written solution has exactly one box.

    Raises:
      ValueError: if problem or solution is missing.
    """
    where = "a row of OpenThoughts"
    problem = rows.field(row, "problem", str, where).strip()
    texts = {name: row.get(name) for name in _SOLUTIONS}
    present = [n for n, text in texts.items() if isinstance(text, str) and text.strip()]
    if not problem or not present:
        raise ValueError(f"{where} has no problem, or none of {', '.join(_SOLUTIONS)}")
    is_mathematical = row.get("domain", "math") == "math"
    converted = {
        "uid": hashlib.sha256(problem.encode(errors="replace")).hexdigest()[:16],
        "prompt": problem + _INSTRUCTION * is_mathematical,
        "solution": texts[present[0]],
    }
    if is_mathematical and (answer := _answer(row, present[0])):
        converted["answer"] = answer
    return converted


def _answer(row: rows.Row, solution_field: str) -> str:
    """The answer of a mathematical row of OpenThoughts; empty if it is unknown."""
    answer = str(row.get("Answer") or "").strip()
    # A model's solution may be wrong, so its box is not trusted.
    if answer or solution_field == "deepseek_solution":
        return answer
    solution = row[solution_field]
    has_one_box = len(boxed.BOX.findall(solution)) == 1
    return (boxed.last_box(solution) or "").strip() if has_one_box else ""
