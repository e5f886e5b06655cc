r"""Whether two answers are the same mathematics. Runs in the sandbox, as text.

Only what is understood whole is compared as mathematics: known LaTeX commands, numbers,
operators and letters. Lists, sets, tuples, intervals, relations and matrices are taken
apart here, and their expressions subtracted by sympy, exactly: decimals are fractions,
and nothing is rounded. Whatever else an answer holds is compared as text.
"""

import re
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig

# LaTeX that changes the look only.
_SPACING = re.compile(
    r"(?<!\\)\\(?:[,;:! ]|quad\b|qquad\b|left\b|right\b|displaystyle\b)|~"
)
_STYLE = re.compile(r"\\(?:mathbf|mathrm|text|textbf|textit|textrm|mbox|boxed)\s*")
_DRESSED = re.compile(_STYLE.pattern + r"\{([^{}]*)\}")
_UNIT = re.compile(
    r"(?P<value>.*[\d})])(?:\s*\\(?:text|mathrm|textrm|mbox)\s*\{(?P<told>[^{}]*)\}"
    r"|\s+(?P<bare>[a-zA-Z]{2,}(?:\s[a-zA-Z]+)?))(?P<power>\^\{?[23]\}?)?\s*",
    re.DOTALL,
)
_UNIT_WORDS = re.compile(r"[A-Za-z]+\.?(?:[\s/][A-Za-z]+\.?){0,2}")
_NO_UNITS = re.compile(
    r"\b(?:hundred|thousand|[mbtr]+illion|dozens?|percent|and|or|nor|not|no|is|are|if|"
    r"in|than|to|less|more|about|wrong|right|mod|pi|east|west|north|south)\b",
    re.IGNORECASE,
)
_GROUPED = re.compile(r"-?\d{1,3}(?:\{?,\}?\d{3})+(?:\.\d+)?")
_DECIMAL = re.compile(r"(\d*)\.(\d+)")
_COMMANDS = re.compile(
    r"\\(?:frac|sqrt|cdot|times|div|pi|infty|binom|theta|alpha|beta|gamma|lambda|mu|phi"
    r"|omega|Delta|delta|Phi|Omega|sigma|ln|exp|(?:arc)?(?:sin|cos|tan)|cot|sec|csc"
    r"|log(?:_\d|_\{\d+\})?)(?![a-zA-Z])"
)
_PLAIN = re.compile(r"[0-9A-Za-z+\-*/^!|.()\[\]{}\s]*")
_RELATION = re.compile(r"(\\(?:leq?|geq?|neq?|lt|gt)(?![a-zA-Z])|[<>=\u2264\u2265])")
_SIGNS = {"\\leq": "<=", "\\le": "<=", "\u2264": "<=", "\\geq": ">=", "\\ge": ">="}
_SIGNS |= {"\u2265": ">=", "\\lt": "<", "\\gt": ">", "\\neq": "!=", "\\ne": "!="}
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
_MATRIX = re.compile(r"\\begin\{([pb]?)matrix\}(.*)\\end\{\1matrix\}", re.DOTALL)
_CONNECTED = re.compile(r"\\text\s*\{\s*(?:and|or)\s*\}|\s(?:and|or)\s")


def equal(answer: str, given: str) -> bool:
    """Whether `given` is the answer."""
    (a, of_a), (b, of_b) = _measured(answer), _measured(given)
    if of_a and of_b and of_a != of_b:
        return False
    if _as_text(a) == _as_text(b):
        return True
    if "%" in (of_a, of_b) and of_a != of_b:
        # 50 % is 0.5, and the answer to "what percentage".
        whole, part = (a, b) if of_a else (b, a)
        return _same(_read(part), _read(f"\\frac{{{whole}}}{{100}}"))
    return _same(_read(a), _read(b))


def _measured(text: str) -> tuple[str, str]:
    """An answer without its unit, and the unit; empty if it has none."""
    text = _SPACING.sub(" ", text).strip(" $\n\t").rstrip(".,").strip()
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac")
    text = text.replace("\\varnothing", "\\emptyset")
    if text.endswith("%"):
        return text.rstrip("%").rstrip("\\").strip(), "%"
    if text.startswith("\\$"):
        return text[2:].strip(), "$"
    for degrees in ("^\\circ", "^{\\circ}"):
        if text.endswith(degrees):
            return text.removesuffix(degrees).strip(), "degrees"
    unit = _UNIT.fullmatch(text)
    if unit and not _DRESSED.search(unit["value"]):
        words = (unit["told"] or unit["bare"] or "").strip()
        if _UNIT_WORDS.fullmatch(words) and not _NO_UNITS.search(words):
            power = (unit["power"] or "").strip("^{}")
            return unit["value"].strip(), f"{words.rstrip('.')}{power}".casefold()
    return text, ""


def _as_text(text: str) -> str:
    """Text without what only changes its look; words also without case."""
    before = None
    while text != before:
        before, text = text, _DRESSED.sub(r"\1", text)
    text = " ".join(text.split())
    text = re.sub(r"(?<![0-9A-Za-z])\s|\s(?![0-9A-Za-z])", "", text)
    text = re.sub(r"([_^])\{(\w)\}", r"\1\2", text)
    is_words = re.fullmatch(r"[A-Za-z]{2,}(?:\s+[A-Za-z]+)*", text)
    return text.casefold() if is_words else text


def _read(text: str) -> tuple:
    """What kind of answer a text is, and its parts."""
    text = _without_braces(text.strip())
    if _GROUPED.fullmatch(text):
        return ("expression", re.sub(r"[{},]", "", text))
    if matrix := _MATRIX.fullmatch(text):
        rows = [
            row.split("&") for row in matrix[2].strip().split("\\\\") if row.strip()
        ]
        return ("matrix", [[_read(cell) for cell in row] for row in rows])
    if _RELATION.search(text):
        if _CONNECTED.search(text):
            return ("text", text)
    else:
        text = _CONNECTED.sub(",", text)
    if text.count("\\pm") == 1:
        plus, minus = text.replace("\\pm", "+"), text.replace("\\pm", "-")
        return ("list", [_read(plus.strip().lstrip("+")), _read(minus)])
    pieces = _split(text, ",")
    if len(pieces) > 1:
        return ("list", [_read(piece) for piece in pieces])
    sides = _RELATION.split(text)
    if len(sides) in (3, 5):
        signs = [_SIGNS.get(sign, sign) for sign in sides[1::2]]
        return ("relation", signs, [_read(side) for side in sides[::2]])
    if "\\cup" in text:
        return ("union", [_read(part) for part in text.split("\\cup")])
    return _read_bracketed(text)


def _read_bracketed(text: str) -> tuple:
    if text.startswith("\\{") and text.endswith("\\}"):
        inner = text[2:-2].strip()
        return ("set", [_read(piece) for piece in _split(inner, ",")] if inner else [])
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and _encloses(text):
        pieces = _split(text[1:-1], ",")
        if len(pieces) > 1:
            return ("tuple", text[0] + text[-1], [_read(piece) for piece in pieces])
        if text[0] + text[-1] == "()":
            return _read(text[1:-1])
    return ("expression", text)


def _without_braces(text: str) -> str:
    """Text without styles around all of it, and braces."""
    before = None
    while text != before:
        before = text
        styled = _STYLE.match(text)
        inner = text[styled.end() :] if styled else text
        if inner.startswith("{") and inner.endswith("}") and _encloses(inner):
            text = inner[1:-1].strip()
    return text


def _encloses(text: str) -> bool:
    """Whether the first bracket closes with the last character, and not before."""
    depths, depth = [], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        depths.append(depth)
    return depth == 0 and all(d > 0 for d in depths[:-1])


def _split(text: str, mark: str) -> list[str]:
    """Parts between marks that stand in no bracket."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _same(a: tuple, b: tuple) -> bool:
    kinds = {a[0], b[0]}
    if kinds <= {"list", "set"}:
        return _same_members(_members(a), _members(b), "set" in kinds)
    if kinds == {"relation", "expression"}:
        relation, other = (a, b) if a[0] == "relation" else (b, a)
        return _is_assignment(relation) and _same(relation[2][1], other)
    if len(kinds) > 1:
        return False
    if a[0] == "text":
        return _as_text(a[1]) == _as_text(b[1])
    if a[0] == "expression":
        return _same_expressions(a[1], b[1])
    if a[0] == "relation":
        return _same_relations(a, b)
    if a[0] == "union":
        return _same_members(a[1], b[1], False)
    if a[0] == "matrix":
        same_row = lambda x, y: len(x) == len(y) and all(map(_same, x, y))
        return len(a[1]) == len(b[1]) and all(map(same_row, a[1], b[1]))
    return a[1] == b[1] and len(a[2]) == len(b[2]) and all(map(_same, a[2], b[2]))


def _members(of: tuple) -> list[tuple]:
    """Members of a list or set; "x=1,2" are 1 and 2."""
    first, *others = of[1] or [()]
    if first and first[0] == "relation" and _is_assignment(first):
        if others and all(other[0] == "expression" for other in others):
            return [first[2][1], *others]
    return of[1]


def _same_members(a: list[tuple], b: list[tuple], once: bool) -> bool:
    """Whether each member has its equal; in sets, repeated ones count once."""
    contains = lambda members, x: any(_identical(x, member) for member in members)
    if once:
        return all(contains(b, x) for x in a) and all(contains(a, x) for x in b)
    left = list(b)
    for member in a:
        equal_to = next((x for x in left if _identical(member, x)), None)
        if equal_to is None:
            return False
        left.remove(equal_to)
    return not left


def _identical(a: tuple, b: tuple) -> bool:
    """Equality of members, where x=1 is not 1."""
    return a[0] == b[0] and _same(a, b)


def _is_assignment(relation: tuple) -> bool:
    _, signs, sides = relation
    name = sides[0][1] if sides[0][0] == "expression" else ""
    return signs == ["="] and re.fullmatch(r"[A-Za-z](\([a-z]\))?", name) is not None


def _same_relations(a: tuple, b: tuple) -> bool:
    (_, signs, sides), (_, others, their_sides) = a, b
    flipped = [_FLIPPED[sign] for sign in reversed(others)]
    for their_signs, theirs in ((others, their_sides), (flipped, their_sides[::-1])):
        if signs == their_signs and all(map(_same, sides, theirs)):
            return True
    kinds = {side[0] for side in (*sides, *their_sides)}
    if signs != ["="] or others != ["="] or kinds != {"expression"}:
        return False
    left, right = (f"({s[0][1]})-({s[1][1]})" for s in (sides, their_sides))
    return _same_expressions(left, right) or _same_expressions(left, f"-({right})")


def _same_expressions(a: str, b: str) -> bool:
    if _as_text(a) == _as_text(b):
        return True
    first, second = _expression(a), _expression(b)
    if first is None or second is None:
        return False
    return bool(first == second or sympy.simplify(first - second) == 0)


def _expression(text: str) -> Any:
    """A sympy expression of all of `text`; None if some of it is not understood."""
    left = _COMMANDS.sub("+", text)
    words = re.search(r"[A-Za-z]{3,}|[A-Z][A-Za-z]|[a-z][A-Z]|\d\s+\d|\^\{?[A-Z]", left)
    if not text or words or not _PLAIN.fullmatch(left):
        return None
    exact = _DECIMAL.sub(
        lambda m: f"(\\frac{{{m[1]}{m[2]}}}{{{10 ** len(m[2])}}})",
        text.replace("**", "^"),
    )
    try:
        found = latex2sympy(
            exact,
            normalization_config=NormalizationConfig(
                malformed_operators=True, boxed="none"
            ),
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    # Whatever goes wrong in reading, the text is not understood.
    except Exception:
        return None
    is_whole = isinstance(found, sympy.Expr) and not found.has(sympy.Float)
    return found if is_whole and found.is_commutative else None
