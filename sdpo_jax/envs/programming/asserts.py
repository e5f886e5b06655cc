"""Reads tests written as Python, such as `assert add(1, 2) == 3`, without running them.

Only the call goes to the sandbox. The expected result stays here, so a program cannot
see or forge it. The supported forms are

  assert f(1, x=(2, 3)) == [4]        also reversed, and joined by `and`
  assert f(1) is True                 or False, None
  assert f(1)                         and `assert not f(1)`
  assert abs(f(1) - 0.5) < 1e-6       or <=
  assert math.isclose(f(1), 0.5, rel_tol=1e-6)

each with or without a message, alone or within HumanEval's `def check(candidate)`.
Arguments and expected values are literals. Results come back as JSON, so a tuple
equals its list, and the keys of an object are strings; otherwise `==` is Python's.
"""

import ast
import builtins
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

_NAME = "asserted_{}_"


@dataclasses.dataclass(frozen=True)
class Asserted:
    """The condition that an assert puts on a result.

    Args:
      relation: "==", "is", "close" (to the value), or "true" (its truth is the value).
      value: the expected JSON value.
      relative: relative tolerance of "close", as in `math.isclose`.
      absolute: absolute tolerance of "close".
    """

    relation: str
    value: Any
    relative: float = 0.0
    absolute: float = 0.0

    def __post_init__(self):
        if self.relative < 0 or self.absolute < 0:
            raise ValueError("a tolerance is negative")

    def holds(self, result: Any) -> bool:
        """Whether `result`, a JSON value, satisfies the condition."""
        if self.relation == "==":
            return result == self.value
        if self.relation == "is":
            return type(result) is type(self.value) and result == self.value
        if self.relation == "true":
            return bool(result) is self.value
        try:
            return math.isclose(
                result, self.value, rel_tol=self.relative, abs_tol=self.absolute
            )
        except (TypeError, OverflowError):
            return False

    def __str__(self) -> str:
        if self.relation == "true":
            return f"a value that is {str(self.value).lower()} as a condition"
        near = f", within {self.absolute or self.relative:g}"
        return json.dumps(self.value) + (near if self.relation == "close" else "")


def read(text: str, function: str, where: str) -> list[tuple[str, Asserted]]:
    """The calls in Python asserts, each with the condition on its result.

    Args:
      text: asserts, or `def check(candidate)` with some; trusted.
      function: the name that `candidate` stands for; may be empty without one.
      where: file, row and field, for messages.

    Raises:
      ValueError: if the text holds anything but supported asserts.
    """
    try:
        pairs = []
        for test, names in _tests(ast.parse(text), function):
            pairs += _read(test, names)
        return pairs
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{where}: cannot read {text!r:.80}: {error}") from error


def callable_names(calls: Sequence[str]) -> tuple[list[str], str]:
    """Names of functions without arguments, and source in which they make the calls."""
    names = [_NAME.format(index) for index in range(len(calls))]
    lines = [
        f"def {name}(): return {call}" for name, call in zip(names, calls, strict=True)
    ]
    # The blank line ends what the program's last line may leave open by a backslash.
    return names, "\n\n" + "\n".join(lines) + "\n"


def _tests(module: ast.Module, function: str) -> Iterator[tuple[ast.expr, dict]]:
    """Every assert's condition, and the functions that names in it stand for."""
    bodies = [([node for node in module.body if not _is_of_check(node)], {})]
    for node in filter(_is_of_check, module.body):
        if isinstance(node, ast.Expr) and not function:
            function = ast.unparse(node.value.args[0])
    for node in module.body:
        if _is_of_check(node) and isinstance(node, ast.FunctionDef):
            bodies.append((node.body, {_candidate(node): function}))
    if len(bodies) > 1 and not function:
        raise ValueError("fn_name does not say what the candidate is")
    for body, names in bodies:
        for node in body:
            if isinstance(node, ast.Assert):
                yield node.test, names
            elif not _asserts_nothing(node):
                raise ValueError(f"`{ast.unparse(node):.60}` is no assert")


def _is_of_check(node: ast.stmt) -> bool:
    """Whether a statement is `def check`, or a call of it with one argument."""
    if isinstance(node, ast.FunctionDef):
        return node.name == "check"
    call = node.value if isinstance(node, ast.Expr) else None
    return (
        isinstance(call, ast.Call)
        and ast.unparse(call.func) == "check"
        and len(call.args) == 1
    )


def _candidate(check: ast.FunctionDef) -> str:
    if len(check.args.args) != 1:
        raise ValueError("check takes more arguments than the candidate")
    return check.args.args[0].arg


def _asserts_nothing(node: ast.stmt) -> bool:
    """Whether a statement asserts nothing: an import, a text or a named constant."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Pass):
        return True
    value = getattr(node, "value", None)
    return isinstance(node, ast.Expr | ast.Assign) and _is_literal(value)


def _read(test: ast.expr, names: dict) -> list[tuple[str, Asserted]]:
    if isinstance(test, ast.Constant) and test.value is True:
        return []  # HumanEval uses `assert True` as a heading.
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return [pair for value in test.values for pair in _read(value, names)]
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return [(_call(test.operand, names), Asserted("true", False))]
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return [_compared(test.left, test.ops[0], test.comparators[0], names)]
    if isinstance(test, ast.Call):
        if ast.unparse(test.func) in ("math.isclose", "isclose"):
            return [_isclose(test, names)]
        return [(_call(test, names), Asserted("true", True))]
    raise ValueError(f"`{ast.unparse(test):.60}` is no call compared to a constant")


def _compared(
    left: ast.expr, operation: ast.cmpop, right: ast.expr, names: dict
) -> tuple[str, Asserted]:
    if isinstance(operation, ast.Lt | ast.LtE):
        return _near(left, operation, right, names)
    if _is_literal(left):
        left, right = right, left
    if isinstance(operation, ast.Eq):
        return _call(left, names), Asserted("==", _literal(right))
    if isinstance(operation, ast.Is) and ast.unparse(right) in (
        "True",
        "False",
        "None",
    ):
        return _call(left, names), Asserted("is", _literal(right))
    raise ValueError(f"expected ==, is or <, got `{type(operation).__name__}`")


def _near(
    left: ast.expr, operation: ast.cmpop, right: ast.expr, names: dict
) -> tuple[str, Asserted]:
    """The call and condition of `abs(f() - value) < within`."""
    inner = left.args[0] if isinstance(left, ast.Call) and left.args else None
    if (
        not isinstance(inner, ast.BinOp)
        or not isinstance(inner.op, ast.Sub)
        or ast.unparse(left.func) not in ("abs", "math.fabs")
    ):
        raise ValueError("expected abs(call - number) before <")
    call, value = inner.left, inner.right
    if _is_literal(call):
        call, value = value, call
    within = _number(right)
    if isinstance(operation, ast.Lt):
        within = math.nextafter(within, -math.inf)
    return _call(call, names), Asserted("close", _number(value), absolute=within)


def _isclose(test: ast.Call, names: dict) -> tuple[str, Asserted]:
    call, value = test.args
    if _is_literal(call):
        call, value = value, call
    options = {keyword.arg: _number(keyword.value) for keyword in test.keywords}
    relative = options.pop("rel_tol", 1e-9)
    absolute = options.pop("abs_tol", 0.0)
    if options:
        raise ValueError(f"isclose has no {', '.join(map(str, options))}")
    return _call(call, names), Asserted("close", _number(value), relative, absolute)


def _call(node: ast.expr, names: dict) -> str:
    """The source of a call of one function with literals."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError(f"`{ast.unparse(node):.60}` is no call of a function")
    function = names.get(node.func.id, node.func.id)
    if hasattr(builtins, function):
        raise ValueError(f"{function} is a builtin of Python")
    for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
        if not _is_literal(argument):
            raise ValueError(f"`{ast.unparse(argument):.60}` is no literal")
    if any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("** is not supported")
    arguments = map(ast.unparse, [*node.args, *node.keywords])
    return f"{function}({', '.join(arguments)})"


def _is_literal(node: ast.expr | None) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError):
        return False
    return True


def _literal(node: ast.expr) -> Any:
    """The value of a literal after a round trip through JSON."""
    if not _is_literal(node):
        raise ValueError(f"`{ast.unparse(node):.60}` is no literal")
    try:
        return json.loads(json.dumps(ast.literal_eval(node)))
    except TypeError as error:
        raise ValueError(f"`{ast.unparse(node):.60}` is not JSON") from error


def _number(node: ast.expr) -> int | float:
    value = _literal(node)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"`{ast.unparse(node):.60}` is no number")
    return value
