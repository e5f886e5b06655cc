r"""Decides whether two answers are the same mathematics; runs in the sandbox.

Only an answer that is understood completely is compared as mathematics; see `answers`
for what one is. Its expressions are compared by sympy, exactly: decimals become
fractions, and nothing is rounded. All other answers are compared as text.
"""

import re
from collections.abc import Callable, Sequence

from sdpo_jax.mathematics import answers, results, trees, units, values
from sdpo_jax.mathematics.answers import Answer, flipped
from sdpo_jax.mathematics.names import order
from sdpo_jax.mathematics.tokens import text_of, tokens_of


def equal(answer: str, given: str) -> bool:
    """Whether `given` is the answer."""
    text = text_of(tokens_of(given))
    if not text or text == text_of(tokens_of(answer)):
        return bool(text)
    return _same(answers.parse(answer), answers.parse(given))


def _same(answer: Answer, given: Answer) -> bool:
    """Whether they are equal, where either may have a name in front."""
    kinds = {answer[0], given[0]}
    if "labelled" in kinds:
        return _same_labelled(answer, given)
    if _assigned(answer) or _assigned(given):
        if (same := _same_assigned(answer, given)) is not None:
            return same
    if "relation" in kinds and len(kinds) == 2:
        if answer[0] == "relation":
            return any(_same(one, given) for one in results.of_answer(answer))
        return any(_same(answer, one) for one in results.of_given(given, answer))
    if kinds <= {"list", "set"}:
        (name, members), (same_name, others) = _members(answer), _members(given)
        if name and same_name and name != same_name:
            return False
        return _same_members(members, others, "set" in kinds)
    return len(kinds) == 1 and _COMPARED[answer[0]](answer, given)


def _same_labelled(answer: Answer, given: Answer) -> bool:
    if answer[0] == given[0]:
        return all(map(_same, answer[1:], given[1:]))
    if answer[0] == "labelled":
        return any(_same(part, given) for part in answer[1:])
    return any(_same(answer, part) for part in given[1:])


def _same_values(a: Answer, b: Answer) -> bool:
    (_, first, unit), (_, second, other) = a, b
    if units.PERCENT in (unit, other) and unit != other:
        if unit and other:
            return False
        if values.same(units.fraction(first, unit), units.fraction(second, other)):
            return True
        # 50 % equals 0.5, and also 50 where the question asks for a percentage.
        number = second if unit else first
        is_percentage = number[0] == "number" and number[1] > 1
        return is_percentage and values.same(first, second)
    if unit and other and not units.agree(unit, other):
        return False
    if units.RADIAN in (unit, other) and unit != other:
        # A number alone may be of degrees, as one with pi hardly is.
        if not trees.contains(first, "constant", "pi"):
            return False
    return values.same(first, second)


def _same_members(a: list[Answer], b: list[Answer], are_sets: bool) -> bool:
    """Whether the members are equal in any order; sets ignore repeated members."""
    contains = lambda members, x: any(_identical(x, member) for member in members)
    if are_sets:
        return all(contains(b, x) for x in a) and all(contains(a, x) for x in b)
    left = list(b)
    for member in a if len(a) == len(b) else ():
        equal_to = next((x for x in left if _identical(member, x)), None)
        if equal_to is None:
            return False
        left.remove(equal_to)
    return len(a) == len(b)


def _identical(a: Answer, b: Answer) -> bool:
    """Equality of members, where x=1 is not 1."""
    return a[0] == b[0] and _same(a, b)


def _members(collection: Answer) -> tuple[str, list[Answer]]:
    """Name and members of a list or set: x, and 1 and 2, of "x=1,2" and "x=1,x=2"."""
    first, *others = collection[1] or [()]
    if not others or not _is_assignment(first):
        return "", collection[1]
    name = _base(first)
    if all(_is_assignment(other) and _base(other) == name for other in others):
        return name, [member[2][1][0] for member in collection[1]]
    if all(other[0] not in ("relation", "text") for other in others):
        return name, [first[2][1][0], *others]
    return "", collection[1]


def _is_assignment(answer: Answer) -> bool:
    if answer[0] != "relation" or answer[1] != ["="]:
        return False
    return answer[2][0][1].kind == "name"


def _base(assignment: Answer) -> str:
    """The name that a value is assigned to, without a subscript."""
    return re.sub(r"_(?:\{[^{}]*\}|.)", "", assignment[2][0][1].key)


def _assigned(answer: Answer) -> dict[str, Answer]:
    """Name -> value where several are assigned: x=1, y=2 or (x, y) = (1, 2)."""
    if answer[0] == "list" and all(map(_is_assignment, answer[1])):
        found = {one[2][0][1].key: one[2][1][0] for one in answer[1]}
        return found if len(found) == len(answer[1]) else {}
    if not _is_assignment(answer) or answer[2][1][0][:2] != ("tuple", "()"):
        return {}
    letters, members = answer[2][0][1].coordinates, answer[2][1][0][2]
    return (
        dict(zip(letters, members, strict=True)) if len(letters) == len(members) else {}
    )


def _same_assigned(a: Answer, b: Answer) -> bool | None:
    """Whether the same is assigned to the same names, or a point has it in order."""
    first, second = _assigned(a), _assigned(b)
    if first and second:
        return first.keys() == second.keys() and all(
            _same(first[name], second[name]) for name in first
        )
    names, point = (first, b) if first else (second, a)
    if point[:2] != ("tuple", "()") or len(names) != len(point[2]):
        return None
    in_order = zip(sorted(names, key=order), point[2], strict=True)
    return all(_same(names[name], member) for name, member in in_order)


def _same_relations(a: Answer, b: Answer) -> bool:
    (_, signs, sides), (_, others, their_sides) = a, b
    first, second = ([x for x, _ in both] for both in (sides, their_sides))
    for their_signs, theirs in ((others, second), (flipped(others), second[::-1])):
        if signs == their_signs and all(map(_same, first, theirs)):
            return True
    name, same_name = sides[0][1], their_sides[0][1]
    if name.kind and name.key == same_name.key:
        results_of = [results.of_answer(a), results.of_given(b, None)]
        if any(_same(x, y) for x in results_of[0] for y in results_of[1]):
            return True
    if len(signs) != 1 or len(others) != 1 or _is_solved(a) or _is_solved(b):
        return False
    if not all(flipped(signs)):
        return False
    # P(2)=4 does not say that P(4)=8, as it would if P(2) were a product.
    if any(re.search(r"[A-Za-z]\(", side.key) for _, side in (*sides, *their_sides)):
        return False
    differences = [_difference(both) for both in (first, second)]
    if not all(differences):
        return False
    sign = values.proportional(*differences)
    return (sign > 0 and signs == others) or (sign < 0 and signs == flipped(others))


def _is_solved(relation: Answer) -> bool:
    """Whether a relation says what one unknown is, as an unsolved one does not."""
    left, right = (side for side, _ in relation[2])
    return any(
        one[0] == other[0] == "value"
        and one[1][0] == "symbol"
        and not trees.symbols(other[1])
        for one, other in ((left, right), (right, left))
    )


def _difference(sides: Sequence[Answer]) -> trees.Tree | None:
    """The left side minus the right one; None if they are no values without a unit."""
    if any(side[0] != "value" or side[2] for side in sides):
        return None
    return trees.difference(sides[0][1], sides[1][1])


def _same_tuples(a: Answer, b: Answer) -> bool:
    return a[1] == b[1] and len(a[2]) == len(b[2]) and all(map(_same, a[2], b[2]))


def _same_matrices(a: Answer, b: Answer) -> bool:
    same_row = lambda x, y: len(x) == len(y) and all(map(_same, x, y))
    return len(a[1]) == len(b[1]) and all(map(same_row, a[1], b[1]))


_in_any_order = lambda a, b: _same_members(a[1], b[1], False)
_COMPARED: dict[str, Callable[[Answer, Answer], bool]] = {
    "value": _same_values,
    "text": lambda a, b: a == b,
    "relation": _same_relations,
    "tuple": _same_tuples,
    "matrix": _same_matrices,
    "union": _in_any_order,
    "or": _in_any_order,
    "and": _in_any_order,
}
