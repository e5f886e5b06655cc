r"""Decides whether two trees have the same value, exactly, and within bounds.

The size of each step is bounded before it is taken, so that 10^{10^{10}} or the
factorial of a million costs nothing: what is too large is equal only to the same
expression.
"""

import functools
import math
from collections.abc import Callable

import sympy

from sdpo_jax.mathematics.trees import Tree, in_order

_MAX_DIGITS = 5_000  # Of a numerator or denominator.
_MAX_ROOT_DIGITS = 200  # Roots look for factors.
_MAX_EXPONENT = 1_000_000  # Other than an integer.
_MAX_FACTORIAL = 1_500
_MAX_TERMS = 2_000  # After all powers and products are expanded.
_MAX_DEGREE = 200  # Of polynomials that fractions are cancelled in.
# Digits of the numbers that tell most unequal values apart without algebra, and the
# relative difference that rounding never makes.
_PRECISION, _DIFFERENCE = 30, sympy.Float("1e-15")
# A logarithm without a base is natural for some authors, and decimal for others.
_BASE = sympy.Symbol("base of log", positive=True)


# What sympy raises where it can compute no value.
_FAILURES = (
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    NotImplementedError,
    RecursionError,
)


class TooLargeError(ValueError):
    """A value with too many digits to be computed."""


class UndefinedError(ValueError):
    """An expression without a value, such as 1/0."""


def same(a: Tree, b: Tree) -> bool:
    """Whether two expressions are equal as mathematics."""
    try:
        if in_order(a) == in_order(b):
            return True
        first, second = value(a), value(b)
        if first == second:
            return True
        return _may_equal(a, b) and _difference_is_zero(first, second)
    except _FAILURES:
        return False


def proportional(a: Tree, b: Tree) -> int:
    """The sign of the constant that b times which is a; 0 if there is none."""
    try:
        first, second = value(a), value(b)
        names = first.free_symbols
        if not names or names != second.free_symbols:
            return 0
        if _terms(first) + _terms(second) > _MAX_TERMS:
            return 0
        ratio = first / second
        here, there = (ratio.evalf(15, subs=_point(i, ratio)) for i in (0, 1))
        if not abs(here - there) < 1e-9 * abs(here):
            return 0
        ratio = sympy.simplify(ratio)
    except _FAILURES:
        return 0
    is_constant = ratio.is_number and ratio.is_real and ratio.is_finite
    return int(sympy.sign(ratio)) if is_constant else 0


@functools.cache
def value(tree: Tree) -> sympy.Expr:
    """The value of an expression.

    Raises:
      TooLargeError: if it is too large to compute.
      UndefinedError: if there is none.
    """
    operation, *parts = tree
    if operation == "number":
        return sympy.Rational(parts[0].numerator, parts[0].denominator)
    if operation == "symbol":
        return sympy.Symbol(parts[0])
    if operation == "constant":
        return _CONSTANTS[parts[0]]
    if operation == "call":
        found = _called(parts[0], [value(part) for part in parts[1:]])
    else:
        found = _OPERATIONS[operation](*map(value, parts))
    if not isinstance(found, sympy.Expr) or found.has(sympy.zoo, sympy.nan):
        raise UndefinedError(f"{operation} has no value")
    if _digits(found) > _MAX_DIGITS:
        raise TooLargeError(f"more than {_MAX_DIGITS} digits")
    return found


def _digits(expression: sympy.Expr) -> float:
    """The number of digits of the largest number in an expression."""
    numbers = expression.atoms(sympy.Rational)
    bits = [max(abs(x.p), x.q).bit_length() for x in numbers]
    return max(bits, default=0) * math.log10(2)


def _power(base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    times = max((abs(x) for x in exponent.atoms(sympy.Rational)), default=1)
    if base.is_number or not exponent.is_Integer:
        # Powers such as e^(n log 2) and (2 sqrt 3)^n are computed as well.
        digits = _digits(base) or 1
        if not base.is_Rational or abs(base) not in (0, 1):
            if digits * times > _MAX_DIGITS:
                raise TooLargeError(f"more than {_MAX_DIGITS} digits")
    elif _digits(base) > 1 and _digits(base) * times > _MAX_DIGITS:
        raise TooLargeError(f"more than {_MAX_DIGITS} digits")
    if not exponent.is_Integer and _digits(base) > _MAX_ROOT_DIGITS:
        raise TooLargeError(f"a root of more than {_MAX_ROOT_DIGITS} digits")
    return base ** (exponent if exponent.is_Integer else _exponent(exponent))


def _exponent(value: sympy.Expr) -> sympy.Expr:
    """The argument of an exponential function."""
    if value.is_number and not abs(value.evalf(5)) < _MAX_EXPONENT:
        raise TooLargeError(f"an exponent above {_MAX_EXPONENT}")
    return value


def _called(name: str, values: list[sympy.Expr]) -> sympy.Expr:
    if name in ("gcd", "lcm"):
        if not all(x.is_Integer for x in values):
            raise UndefinedError(f"{name} of other than integers")
    elif name in ("max", "min") and not all(x.is_extended_real for x in values):
        raise UndefinedError(f"{name} of other than numbers")
    return sympy.sympify(_CALLS[name](*values))


def _factorial(n: sympy.Expr) -> sympy.Expr:
    if n.is_Rational and not (n.is_Integer and n >= 0):
        raise UndefinedError("the factorial of other than a natural number")
    if n.is_Integer and n > _MAX_FACTORIAL:
        raise TooLargeError(f"a factorial above {_MAX_FACTORIAL}")
    return sympy.factorial(n)


def _binomial(n: sympy.Expr, k: sympy.Expr) -> sympy.Expr:
    if n.is_Integer and k.is_Integer:
        chosen = min(abs(k), abs(n - k))
        if n < 0 or chosen * _digits(n) > _MAX_DIGITS:
            raise TooLargeError(f"more than {_MAX_DIGITS} digits")
    elif k.is_number and not abs(k) < _MAX_FACTORIAL:
        raise TooLargeError(f"more than {_MAX_FACTORIAL} factors")
    return sympy.binomial(n, k)


def _logarithm(of: sympy.Expr, base: sympy.Expr = _BASE) -> sympy.Expr:
    return sympy.log(of) / sympy.log(base)


_CONSTANTS = {
    "pi": sympy.pi,
    "e": sympy.E,
    "i": sympy.I,
    "infinity": sympy.oo,
}
_OPERATIONS: dict[str, Callable] = {
    "sum": lambda *terms: sympy.Add(*terms),
    "product": lambda *factors: sympy.Mul(*factors),
    "quotient": lambda a, b: a / b,
    "power": _power,
}
_CALLS: dict[str, Callable] = {
    "factorial": _factorial,
    "binomial": _binomial,
    "log": _logarithm,
    "ln": sympy.log,
    "exp": lambda x: _power(sympy.E, x),
    "sinh": lambda x: sympy.sinh(_exponent(x)),
    "cosh": lambda x: sympy.cosh(_exponent(x)),
    "tanh": lambda x: sympy.tanh(_exponent(x)),
    "gcd": sympy.igcd,
    "lcm": sympy.ilcm,
    "max": sympy.Max,
    "min": sympy.Min,
    "abs": sympy.Abs,
    "floor": sympy.floor,
    "ceiling": sympy.ceiling,
}
for _name in ("sin", "cos", "tan", "cot", "sec", "csc"):
    _CALLS[_name] = getattr(sympy, _name)
    _CALLS[f"arc{_name}"] = getattr(sympy, f"a{_name}")


def _point(number: int, expression: sympy.Expr) -> dict[sympy.Symbol, sympy.Float]:
    """A value for each symbol, the same in every expression."""
    names = sorted(expression.free_symbols, key=str)
    seed = lambda x: sum(ord(c) * 31**i for i, c in enumerate(str(x))) + 7 * number
    return {x: sympy.Float(1009 + seed(x) % 997, 50) / 1000 for x in names}


@functools.cache
def approximation(tree: Tree) -> sympy.Expr | None:
    """The value at one point, as a number; None if there is none."""
    try:
        exact = value(tree)
        number = exact.evalf(_PRECISION, subs=_point(0, exact))
    except _FAILURES:
        return None
    return number if number.is_number and number.is_finite else None


def _may_equal(a: Tree, b: Tree) -> bool:
    """Whether the values are too close to each other at one point to be told apart."""
    first, second = approximation(a), approximation(b)
    if first is None or second is None:
        return True
    scale = max(abs(first), abs(second))
    return bool(abs(first - second) <= _DIFFERENCE * scale)


def _difference_is_zero(a: sympy.Expr, b: sympy.Expr) -> bool:
    difference = a - b
    under = [x for x in difference.atoms(sympy.Pow) if x.exp.is_negative]
    terms = math.prod(map(_terms, under), start=_terms(difference))
    if difference.has(sympy.nan) or terms > _MAX_TERMS:
        return False
    if sympy.expand(difference) == 0:
        return True
    return _degree(difference) <= _MAX_DEGREE and sympy.simplify(difference) == 0


def _terms(expression: sympy.Expr) -> int:
    """At most as many terms as the expression has, written over one denominator."""
    counts = [min(_terms(part), _MAX_TERMS + 1) for part in expression.args]
    if expression.is_Add:
        found = sum(counts)
    elif expression.is_Pow and expression.exp.is_Integer:
        times = min(abs(int(expression.exp)), _MAX_TERMS)
        found = math.comb(times + counts[0] - 1, counts[0] - 1)
    elif expression.is_Mul:
        found = math.prod(counts)
    else:
        found = max(counts, default=1)
    return found


def _degree(expression: sympy.Expr) -> int:
    powers = [x.exp for x in expression.atoms(sympy.Pow) if x.exp.is_Rational]
    return max((max(abs(x.p), x.q) for x in powers), default=1)
