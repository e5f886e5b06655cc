r"""Finds what an equation says its name is: 113 in `m+n=113` and in `x=100+13=113`.

The last side of a chain is its result where the others name it, or compute the same. A
chain whose sides disagree has no result, and nor has an equation such as x^2=7.
"""

import re
from collections.abc import Sequence

from sdpo_jax.mathematics import trees, units, values
from sdpo_jax.mathematics.answers import Answer, is_equation
from sdpo_jax.mathematics.names import Side

_Sides = Sequence[tuple[Answer, Side]]
# x+y=5 may be a line, where m+n=5 is a sum that was asked for.
_COORDINATES = frozenset(("x", "y", "z", "t", "r", "\\theta"))


def of_answer(relation: Answer) -> list[Answer]:
    """What may be given for the right answer without its name; [] if nothing may."""
    return _results(relation, strict=True)


def of_given(relation: Answer, answer: Answer | None) -> list[Answer]:
    """What a given answer says its name is; [] if it says more, or contradicts itself.

    What stands after an approximation counts only where the right answer is a decimal.
    """
    found = _results(relation, strict=False)
    if answer is None or not _is_decimal(answer) or "\\approx" not in relation[1]:
        return found
    return found + _rounded(relation)


def _results(relation: Answer, strict: bool) -> list[Answer]:
    _, signs, sides = relation
    if not is_equation(relation):
        return []
    if "\\in" in signs:
        is_named = signs == ["\\in"] and sides[0][1].kind == "name"
        is_set = sides[1][0][0] in ("set", "tuple", "union")
        return [sides[1][0]] if is_named and is_set else []
    if "\\approx" not in signs:
        return _last(sides, strict)
    exact = sides[: signs.index("\\approx") + 1]
    # After a name alone, or after nothing, there is no exact value.
    is_exact = exact[-1][0][0] == "value" and not exact[-1][1].kind
    found = (_last(exact, strict) if exact[1:] else [exact[0][0]]) if is_exact else []
    rounded = sides[len(exact) :]
    return [x for x in found if all(_rounds_to(x, *side) for side in rounded)]


def _rounded(relation: Answer) -> list[Answer]:
    """The approximation in a relation, unless the exact value before it disagrees."""
    _, signs, sides = relation
    start = signs.index("\\approx")
    *_, (last, side) = sides
    is_name = start == 0 and (sides[0][1].kind == "name" or not sides[0][1].key)
    if signs[start:] != ["\\approx"] or last[0] != "value":
        return []
    return [last] if is_name or _results(relation, strict=False) else []


def _last(sides: _Sides, strict: bool) -> list[Answer]:
    """The last side of a chain of equations, where the others name or compute it."""
    *rest, (result, side) = sides
    is_single = result[0] in ("value", "text") and not _is_closed(result)
    if side.kind == "name" and is_single:
        # 5 = x: the result stands first.
        is_named = len(rest) == 1 and not rest[0][1].kind and _is_closed(rest[0][0])
        return [rest[0][0]] if is_named else []
    if result[0] == "text":
        return []
    first = rest[0][1]
    for position, (value, beside) in enumerate(rest):
        names = _names(beside, result, strict) and not _is_computed(value)
        # A formula, such as \pi r^2, stands between the name and its value.
        is_formula = position > 0 and first.kind == "name" and value[0] == "value"
        if is_formula and not _is_closed(value) and _is_closed(result):
            names |= not _occurs(first, value)
        if not names and not _agree(value, result):
            return []
    return [result]


def _names(side: Side, result: Answer, strict: bool) -> bool:
    """Whether a side names or computes the result, and says nothing else of it."""
    if side.kind == "name":
        return not _occurs(side, result)
    if side.kind == "names":
        asked = not strict or not side.letters & _COORDINATES
        return asked and _is_closed(result)
    return side.kind == "computed" and not strict


def _is_computed(answer: Answer) -> bool:
    r"""Whether a function of numbers, such as \gcd(4,6), says its own value."""
    return (
        answer[0] == "value"
        and _is_closed(answer)
        and trees.contains(answer[1], "call")
    )


def _agree(a: Answer, b: Answer) -> bool:
    if a[0] != "value" or b[0] != "value":
        return a == b
    if units.PERCENT in (a[2], b[2]):
        return values.same(*(units.fraction(*x[1:]) for x in (a, b)))
    return values.same(a[1], b[1]) and (not a[2] or not b[2] or units.agree(a[2], b[2]))


def _symbols(answer: Answer) -> set[str]:
    if answer[:1] == ("value",):
        return trees.symbols(answer[1])
    parts = answer[1:] if answer and isinstance(answer[0], str) else answer
    found = (_symbols(x) for x in parts if isinstance(x, tuple | list))
    return set().union(*found)


def _is_closed(answer: Answer) -> bool:
    """Whether an answer is understood, and has no symbols."""
    return answer[0] not in ("text", "relation") and not _symbols(answer)


def _occurs(side: Side, answer: Answer) -> bool:
    """Whether the name of a side, such as f in f(x), occurs in an answer."""
    base = re.match(r"\\?[A-Za-z]+", side.key)
    used = {re.split(r"[_'(]", name)[0] for name in _symbols(answer)}
    return base is not None and base[0] in used


def _is_decimal(answer: Answer) -> bool:
    is_number = answer[0] == "value" and answer[1][0] == "number"
    return is_number and answer[1][1].denominator > 1


def _rounds_to(exact: Answer, rounded: Answer, side: Side) -> bool:
    """Whether a decimal is the exact value, rounded or cut off after its last digit."""
    digits = re.match(r"-?\d*\.?(\d*)", side.key)
    if exact[0] != "value" or rounded[0] != "value" or rounded[1][0] != "number":
        return False
    is_percentage = rounded[2] == units.PERCENT != exact[2]
    if exact[2] and rounded[2] and not units.agree(exact[2], rounded[2]):
        return False
    value = values.approximation(exact[1])
    if value is None or not value.is_real or not _is_closed(exact):
        return False
    found = float(value) * (100 if is_percentage else 1)
    written, step = float(rounded[1][1]), 10.0 ** -len(digits[1])
    excess = abs(found) - abs(written)
    return found * written >= 0 and -0.5 * step <= excess < step
