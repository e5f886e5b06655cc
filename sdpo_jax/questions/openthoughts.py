"""OpenThoughts: its rows as rows of `env.name=privileged`."""

import hashlib
from typing import Any

from sdpo_jax.questions import boxed, rows

_BOXED = "\n\nReason step by step, and put the final answer within \\boxed{}."
# Where a row of OpenThoughts has its solution; the first two are no model's.
_SOLUTIONS = ("solution", "ground_truth_solution", "deepseek_solution")


def from_openthoughts(row: rows.Row) -> dict[str, Any]:
    r"""A row of `privileged` from one of OpenThoughts.

    Args:
      row: of "open-thoughts/OpenThoughts-114k", in its configuration "metadata"
        (problem, ground_truth_solution, deepseek_solution, domain), or of
        "siyanzhao/Openthoughts_math_30k_opsd" (problem, solution, Answer).

    Returns:
      uid (of the problem's text: a problem that comes twice has it twice), prompt,
      solution, and the answer where the row says one, or where its own solution, not a
      model's, is mathematics with exactly one box.

    Raises:
      ValueError: if problem or solution is missing.
    """
    where = "a row of OpenThoughts"
    problem = rows.field(row, "problem", str, where).strip()
    texts = {name: row.get(name) for name in _SOLUTIONS}
    found = [n for n, text in texts.items() if isinstance(text, str) and text.strip()]
    if not problem or not found:
        raise ValueError(f"{where} has no problem, or none of {', '.join(_SOLUTIONS)}")
    mathematical = row.get("domain", "math") == "math"
    converted = {
        "uid": hashlib.sha256(problem.encode(errors="replace")).hexdigest()[:16],
        "prompt": problem + _BOXED * mathematical,
        "solution": texts[found[0]],
    }
    if mathematical and (answer := _answer(row, found[0])):
        converted["answer"] = answer
    return converted


def _answer(row: rows.Row, solution: str) -> str:
    """The answer of a mathematical row of OpenThoughts; empty if it says none."""
    given = str(row.get("Answer") or "").strip()
    if given or solution == "deepseek_solution":
        return given
    has_one_box = len(boxed.BOX.findall(row[solution])) == 1
    return (boxed.last_box(row[solution]) or "").strip() if has_one_box else ""
