r"""Expressions as trees: a tuple of an operation, then its operands.

("number", Fraction)  ("symbol", name)  ("constant", "pi", "e", "i" or "infinity")
("sum" or "product", tree, ...)  ("quotient", a, b)  ("power", a, b)
("call", name of the function, tree, ...)
"""

from collections.abc import Sequence
from fractions import Fraction

Tree = tuple

ONE, MINUS_ONE = ("number", Fraction(1)), ("number", Fraction(-1))
HALF = ("quotient", ONE, ("number", Fraction(2)))


def number(text: str) -> Tree:
    """A number as it is written; one with an exponent as product with a power of 10."""
    mantissa, _, exponent = text.partition("E")
    tree = ("number", Fraction(mantissa))
    if not exponent:
        return tree
    power = ("power", ("number", Fraction(10)), ("number", Fraction(int(exponent))))
    return ("product", tree, power)


def symbol(name: str) -> Tree:
    """A symbol; a constant if its name is one."""
    return ("constant", name) if name in ("e", "i") else ("symbol", name)


def root(tree: Tree, degree: Tree | None = None) -> Tree:
    """The square root, or that of a degree."""
    return ("power", tree, ("quotient", ONE, degree) if degree else HALF)


def negative(tree: Tree) -> Tree:
    """A tree times -1."""
    if tree[0] == "number":
        return ("number", -tree[1])
    return joined("product", [MINUS_ONE, tree])


def difference(a: Tree, b: Tree) -> Tree:
    """The sum of a and -b."""
    return joined("sum", [a, negative(b)])


def joined(operation: str, trees: Sequence[Tree]) -> Tree:
    """One sum or product of all, without nesting."""
    if len(trees) == 1:
        return trees[0]
    flat = [x for t in trees for x in (t[1:] if t[0] == operation else (t,))]
    return (operation, *flat)


def in_order(tree: Tree) -> Tree:
    """A tree with the members of its sums and products in one order."""
    parts = [in_order(x) if isinstance(x, tuple) else x for x in tree[1:]]
    if tree[0] in ("sum", "product"):
        parts.sort(key=repr)
    return (tree[0], *parts)


def symbols(tree: Tree) -> set[str]:
    """Names of the symbols in a tree."""
    if tree[0] == "symbol":
        return {tree[1]}
    return set().union(*(symbols(x) for x in tree[1:] if isinstance(x, tuple)))


def contains(tree: Tree, *start: str) -> bool:
    """Whether a tree, or one within it, starts with these parts."""
    if tree[: len(start)] == start:
        return True
    return any(contains(x, *start) for x in tree[1:] if isinstance(x, tuple))
