r"""Decides whether two answers are the same mathematics; runs in the sandbox.

Only an answer that is understood completely is compared as mathematics: known LaTeX
commands, numbers, operators and letters. Lists, sets, tuples, intervals, relations and
matrices are split here, and their expressions subtracted by sympy, exactly: decimals
become fractions, and nothing is rounded. All other answers are compared as text.
"""

import re
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig

# LaTeX that affects only the layout.
_SPACING = re.compile(
    r"(?<!\\)\\(?:[,;: ]|quad\b|qquad\b|left\b|right\b|displaystyle\b)|~"
)
_SAME = {
    "\\dfrac": "\\frac",
    "\\tfrac": "\\frac",
    "\\cfrac": "\\frac",
    "\\dbinom": "\\binom",
    "\\varnothing": "\\emptyset",
    "\\!": "",
    "\u2212": "-",
    "\u00b0": "^\\circ",
    "\u03c0": "\\pi ",
}
_STYLE = re.compile(r"\\(?:mathbf|mathrm|text|textbf|textit|textrm|mbox|boxed)\s*")
_STYLED = re.compile(_STYLE.pattern + r"\{([^{}]*)\}")
_UNIT = re.compile(
    r"(?P<value>.*\S)(?:\s*\\(?:text|mathrm|textrm|mbox)\s*\{(?P<text>[^{}]*)\}"
    r"|(?<=\d)\s+(?P<bare>[a-zA-Z]{2,}(?:[\s/][a-zA-Z]+){0,2}))(?P<power>\^\{?[23]\}?)?",
    re.DOTALL,
)
_UNITS = frozenset(
    "m cm mm km nm in inch inches ft foot feet yd yard mile mi meter metre centimeter"
    " millimeter kilometer g kg mg gram kilogram lb pound oz ounce ton s sec second min"
    " minute h hr hour day week month year degree dollar cent euro usd unit mph kph"
    " km/h m/s cm/s ft/s liter litre ml milliliter newton joule watt volt"
    " square cubic per sq student people person apple marble coin ball book card page"
    " point way integer digit time step move bit byte hz mol".split()
)
_GROUPED = re.compile(r"-?\d{1,3}(?:\{?,\}?\d{3})+(?:\.\d+)?")
_DECIMAL = re.compile(r"(\d*)\.(\d+)")
_MIXED = re.compile(r"(?<![\d.)}\]])(\d+)\s*\\frac\s*(?:\{(\d+)\}\{(\d+)\}|(\d)(\d))")
# The end of a function's argument must be clear: \sin 2x is, \sin 2x y is not.
_FUNCTION = (
    r"\\(?:ln|log(?:_\d|_\{\d+\})?|exp|(?:arc)?(?:sin|cos|tan)|cot|sec|csc)(?![a-zA-Z])"
)
_UNCLEAR = re.compile(
    # Two decimal points in a number, or one at its end or after a letter or bracket.
    r"\.\d*\.|[^\d\s+\-*/(^{=,]\.\d|\d\s+\.|\.(?!\d)"
    # 1/2x, \frac123, factorials of factorials.
    r"|/\s*\d+\s*[a-zA-Z(\\]|\\frac\s*\d{3}|!\s*!"
)
_ARGUMENT = re.compile(
    _FUNCTION
    + r"(?:\^\{?-?\d+\}?)?\s*(?:\(|\\frac\{[^{}]*\}\{[^{}]*\}\s*(?=$|[+\-)\]},])"
    r"|(?:\d+|\d*\s*(?:[a-zA-Z]|\\(?:pi|theta|alpha|beta|phi)))\s*(?=$|[+\-)\]},]))"
)
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
# x=1 or x=-2
_SOLUTIONS = re.compile(
    r"\s*([a-zA-Z])\s*=[^=<>]*?(?:(?:\\text\s*\{\s*or\s*\}|\sor\s)\s*\1\s*=[^=<>]*?)+"
)
_CONNECTED = re.compile(r"\\text\s*\{\s*(?:and|or)\s*\}|\s(?:and|or)\s")


def equal(answer: str, given: str) -> bool:
    """Whether `given` is the answer."""
    (a, unit_of_a), (b, unit_of_b) = _without_unit(answer), _without_unit(given)
    if unit_of_a and unit_of_b and unit_of_a != unit_of_b:
        return False
    if "%" in (unit_of_a, unit_of_b) and unit_of_a != unit_of_b:
        # 50 % equals 0.5, and also 50 where the question asks for a percentage.
        percentage, number = (a, b) if unit_of_a else (b, a)
        if _same(_read(number), _read(f"\\frac{{{percentage}}}{{100}}")):
            return True
        if not re.fullmatch(r"\d{2,}(\.\d+)?|[2-9](\.\d+)?|1\.\d+", number):
            return False
    return _as_text(a) == _as_text(b) or _same(_read(a), _read(b))


def _without_unit(text: str) -> tuple[str, str]:
    """An answer without its unit, and the unit; empty if it has none."""
    for spelling, same in _SAME.items():
        text = text.replace(spelling, same)
    text = re.sub(r"(?<=\d)\\,(?=\d{3}(?!\d))", "", text)
    text = _SPACING.sub(" ", text).strip(" $\n\t")
    if not text.endswith(".."):
        text = text.rstrip(".,").strip()
    if re.fullmatch(r".*\d\s*\\?%", text, re.DOTALL):
        return text.rstrip("%").rstrip("\\").strip(), "%"
    if text.startswith("\\$"):
        return text[2:].strip(), "dollar"
    if degrees := re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*\^\{?\\circ\}?", text):
        return degrees[1], "degree"
    unit = _UNIT.fullmatch(text)
    if unit and not _STYLED.search(unit["value"]):
        words = (unit["text"] or unit["bare"] or "").strip().rstrip(".").casefold()
        singular = [_singular(word) for word in words.split()]
        if singular and all(word in _UNITS for word in singular):
            power = (unit["power"] or "").strip("^{}")
            return unit["value"].strip(), " ".join(singular) + power
    return text, ""


def _singular(word: str) -> str:
    return word if word in _UNITS else word.removesuffix("s")


def _as_text(text: str) -> str:
    """`text` without styles and needless spaces and braces; words also without case."""
    before = None
    while text != before:
        before, text = text, _STYLED.sub(r" \1 ", text)
    text = " ".join(text.split())
    text = re.sub(r"(?<![0-9A-Za-z])\s|\s(?![0-9A-Za-z])", "", text)
    text = re.sub(r"([_^])\{(\w)\}(?!\w)", r"\1\2", text)
    is_words = re.fullmatch(
        r"[A-Za-z]{3,}(?:\s[A-Za-z]+)*|[A-Za-z]+\s[A-Za-z\s]+", text
    )
    return text.casefold() if is_words else text


def _read(text: str) -> tuple:
    """A text parsed as a tuple: the kind of answer, then its members."""
    text = _without_braces(text.strip())
    if _GROUPED.fullmatch(text):
        return ("expression", re.sub(r"[{},]", "", text))
    if matrix := _MATRIX.fullmatch(text):
        rows = [
            row.split("&") for row in matrix[2].strip().split("\\\\") if row.strip()
        ]
        return ("matrix", [[_read(cell) for cell in row] for row in rows])
    if _CONNECTED.search(text):
        if _RELATION.search(text) and not re.fullmatch(_SOLUTIONS, text):
            return ("text", text)
        text = _CONNECTED.sub(",", text)
    pieces = _split(text, ",")
    if len(pieces) > 1:
        members = [_read(piece) for piece in pieces]
        flat = lambda member: member[1] if member[0] == "list" else [member]
        return ("list", [x for member in members for x in flat(member)])
    if text.count("\\pm") == 1:
        plus, minus = text.replace("\\pm", "+"), text.replace("\\pm", "-")
        return ("list", [_read(plus.strip().lstrip("+")), _read(minus)])
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
    """Text without styles and braces that enclose all of it."""
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
    """The pieces of `text` between marks that are in no bracket."""
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


def _members(collection: tuple) -> list[tuple]:
    """Members of a list or set; those of "x=1,2" and "x=1,x=2" are 1 and 2."""
    first, *others = collection[1] or [()]
    if not others or first[0] != "relation" or not _is_assignment(first):
        return collection[1]
    same_name = lambda x: (
        x[0] == "relation" and _is_assignment(x) and x[2][0] == first[2][0]
    )
    if all(map(same_name, others)):
        return [member[2][1] for member in collection[1]]
    if all(other[0] == "expression" for other in others):
        return [first[2][1], *others]
    return collection[1]


def _same_members(a: list[tuple], b: list[tuple], are_sets: bool) -> bool:
    """Whether the members are equal in any order; sets ignore repeated members."""
    contains = lambda members, x: any(_identical(x, member) for member in members)
    if are_sets:
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
    is_name = re.fullmatch(r"[A-Za-z]{1,2}(_\{?\w\}?)?(\([A-Za-z0-9]\))?", name.strip())
    return signs == ["="] and is_name is not None


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
    """The sympy expression of `text`; None if any part of it is not understood."""
    left = _COMMANDS.sub("+", text)
    words = re.search(r"[A-Za-z]{3,}|[A-Z][A-Za-z]|[a-z][A-Z]|\d\s+\d|\^\{?[A-Z]", left)
    if not text or words or not _PLAIN.fullmatch(left) or _UNCLEAR.search(text):
        return None
    if len(re.findall(_FUNCTION, text)) != len(_ARGUMENT.findall(text)):
        return None
    exact = _MIXED.sub(_sum_of_mixed, text.replace("**", "^"))
    # latex2sympy reads 2(3) as a mixed number, so write the product.
    exact = re.sub(r"\\log_(\d)", r"\\log_{\1}", exact)
    exact = re.sub(r"(?<=[\d)\]])\s*(?=\(|\\frac)", r"\\cdot ", exact)
    exact = _DECIMAL.sub(
        lambda m: f"(\\frac{{{m[1]}{m[2]}}}{{{10 ** len(m[2])}}})", exact
    )
    try:
        expression = latex2sympy(
            exact,
            normalization_config=NormalizationConfig(
                malformed_operators=True, boxed="none"
            ),
            conversion_config=ConversionConfig(
                lowercase_symbols=False, interpret_as_mixed_fractions=False
            ),
        )
    # The parser raises many kinds of errors; all mean that it does not understand.
    except Exception:
        return None
    if not isinstance(expression, sympy.Expr) or expression.has(*_NOT_UNDERSTOOD):
        return None
    if not expression.is_commutative:
        return None
    return expression.subs(sympy.Symbol("i"), sympy.I)


_NOT_UNDERSTOOD = (sympy.Float, sympy.Derivative, sympy.Integral, sympy.zoo, sympy.nan)


def _sum_of_mixed(match: re.Match) -> str:
    """A mixed number as a sum; unchanged if its fraction is not below 1."""
    integer, numerator, denominator = (
        match[1],
        match[2] or match[4],
        match[3] or match[5],
    )
    if int(numerator) >= int(denominator):
        return match[0]
    return f"({integer}+\\frac{{{numerator}}}{{{denominator}}})"
