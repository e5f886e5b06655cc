"""Checks an answer: JSON, Python, and text against a pattern; runs in the sandbox.

The sandbox has none of this project's modules, so this file imports none. Each check
returns a description of the fault, or None.
"""

import ast
import json
import math
import re

MOST_DEPTH = 50  # Nesting of JSON.
MOST_DIGITS = 4300  # Of an integer in JSON: Python's own limit, which programs lose.


def pattern_fault(pattern, match, text):
    """The fault of text that does not match; `match` is "full" or "search"."""
    find = {"full": re.fullmatch, "search": re.search}[match]
    return None if find(pattern, text) else "it does not have the form asked for"


def json_fault(schema, text):
    """The fault of text that is not JSON or breaks the schema; reveals no answer."""
    import jsonschema

    try:
        value = read_json(text)
    except ValueError as error:
        return f"it is not JSON ({error})"
    errors = jsonschema.validators.validator_for(schema)(schema).iter_errors(value)
    first = min(errors, key=lambda error: error.json_path, default=None)
    if first is None:
        return None
    return f'the value at {first.json_path} breaks "{first.validator}" of the schema'


def read_json(text):
    """The value of strict JSON text.

    Raises:
      ValueError: if it is not JSON, repeats a name in an object, holds a number that is
        not finite or too long, or is nested too deep.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unrepeated,
            parse_constant=_finite,
            parse_float=_finite,
            parse_int=_short,
        )
        if _depth(value) <= MOST_DEPTH:
            return value
    except RecursionError:
        pass
    raise ValueError(f"nested deeper than {MOST_DEPTH} levels")


def _unrepeated(pairs):
    names = dict(pairs)
    if len(names) < len(pairs):
        raise ValueError("an object has a name twice")
    return names


def _finite(text):
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is not finite")
    return number


def _short(text):
    if len(text) > MOST_DIGITS:
        raise ValueError(f"an integer has more than {MOST_DIGITS} digits")
    return int(text)


def _depth(value):
    inner = value.values() if isinstance(value, dict) else value
    nested = isinstance(value, (dict, list))
    return 1 + max(map(_depth, inner), default=0) if nested else 0


def function_fault(name, source):
    """The fault of source that does not compile or define `name` at its top level."""
    try:
        # Python accepts a byte-order mark in front of a file only.
        tree = ast.parse(source.removeprefix("\ufeff"))
        compile(tree, "answer", "exec")
    except SyntaxError as error:
        return f"it is not Python ({error.msg}, line {error.lineno})"
    except (ValueError, RecursionError) as error:
        return f"it is not Python ({error})"
    binding = [node for node in tree.body if _binds(node, name)]
    if binding and isinstance(binding[-1], ast.FunctionDef):
        return None
    return f"it defines no function {name} at its top level"


def _binds(node, name):
    """Whether a top-level statement binds or deletes `name`."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return node.name == name
    return any(
        isinstance(inner, ast.Name)
        and inner.id == name
        and not isinstance(inner.ctx, ast.Load)
        for inner in ast.walk(node)
    )
