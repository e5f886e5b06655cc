r"""Parses the tokens of an answer: lists, sets, intervals, relations, matrices, values.

An answer is a tuple: its kind, then its parts.

  ("value", tree, unit)     ("text", text)              ("matrix", rows)
  ("list" or "set", members)                            ("union", members)
  ("tuple", brackets, members), which is an interval too
  ("or" or "and", members), of relations
  ("labelled", letter of an option, what the option says)
  ("relation", signs, sides), where a side is an answer, with what it names

What is not understood completely is text, and equals only the same text.
"""

import itertools
import re
from collections.abc import Callable, Sequence

from sdpo_jax.mathematics import expression, names, trees, units
from sdpo_jax.mathematics.tokens import Token, is_plain, text_of, tokens_of

Answer = tuple

_OPENING = frozenset(("(", "[", "{", "\\{", "\\begin"))
_CLOSING = frozenset((")", "]", "}", "\\}", "\\end"))
SIGNS = frozenset(("=", "<", ">", "<=", ">=", "!=", "\\approx", "\\in", "\\notin"))
_CONNECTED = ("and", "or")
_INFINITY = ("value", ("constant", "infinity"), ())
_MINUS_INFINITY = ("value", ("product", trees.MINUS_ONE, _INFINITY[1]), ())


def parse(text: str) -> Answer:
    """The answer that a text writes."""
    tokens = tokens_of(text)
    if _depth(tokens) > expression.MAX_DEPTH:
        return ("text", text_of(tokens))
    return _Parser(is_plain(text)).answer(tokens)


class _Parser:
    """Parses the pieces of one text."""

    def __init__(self, plain: bool):
        self._plain = plain

    def answer(self, tokens: Sequence[Token]) -> Answer:
        tokens = names.without_introduction(_without_braces(tokens))
        if connected := self._connected(tokens):
            return connected
        pieces = [names.assigned(x) for x in _split(tokens, lambda t: t.text == ",")]
        if len(pieces) > 1:
            return _joined("list", [self._piece(piece) for piece in pieces])
        return self._labelled(tokens) or self._piece(pieces[0])

    def _labelled(self, tokens: Sequence[Token]) -> Answer | None:
        r"""An option's letter with what the option says: \textbf{(C)} 12."""
        label, rest = tokens[:3], tokens[3:]
        is_upright = all(token.upright for token in label)
        # In italics, a letter in brackets is a factor, but not before a number.
        if not rest or not (is_upright or rest[0].kind == "number"):
            return None
        if not re.fullmatch(r"\([A-J]\)", "".join(token.text for token in label)):
            return None
        said = self._piece(rest)
        if said[0] == "text" or rest[0].text == "(" and rest[0].upright:
            return None
        return ("labelled", self._piece(label), said)

    def _connected(self, tokens: Sequence[Token]) -> Answer | None:
        """A list written with `and` or `or`, or several relations."""
        words = {token.text.casefold() for token in tokens if _is_connection(token)}
        # A comma before `and` belongs to it: 19, 46, and 82.
        pieces = [
            piece[:-1] if piece[-1:] and piece[-1].text == "," else piece
            for piece in _split(tokens, _is_connection)
        ]
        if len(pieces) == 1:
            return None
        if not all(pieces):
            return ("text", text_of(tokens))
        members = [self.answer(piece) for piece in pieces]
        flat = [x for m in members for x in (m[1] if m[0] == "list" else [m])]
        if any(m[0] == "relation" and not is_equation(m) for m in flat):
            if len(words) > 1 or len(flat) > len(members):
                return ("text", text_of(tokens))
            return (words.pop(), flat)
        return ("list", flat)

    def _piece(self, tokens: Sequence[Token]) -> Answer:
        """An answer without commas or connections of its own."""
        tokens = _without_braces(tokens)
        if sum(token.text == "\\pm" for token in tokens) == 1:
            return ("list", [self._piece(_signed(tokens, sign)) for sign in "+-"])
        sides = _split(tokens, lambda token: token.text in SIGNS)
        if len(sides) > 1:
            return self._relation(tokens, sides)
        parts = _split(tokens, lambda token: token.text == "\\cup")
        if len(parts) > 1:
            return ("union", [self._piece(part) for part in parts])
        return self._simple(tokens)

    def _relation(self, tokens: Sequence[Token], sides: list) -> Answer:
        signs, depth = [], 0
        for token in tokens:
            depth += (token.text in _OPENING) - (token.text in _CLOSING)
            if depth == 0 and token.text in SIGNS:
                signs.append(token.text)
        found = [(self._piece(side), names.side_of(side)) for side in sides]
        return ("relation", signs, found)

    def _simple(self, tokens: Sequence[Token]) -> Answer:
        """A matrix, a set, a tuple, an interval, or a value with its unit."""
        texts = [token.text for token in tokens]
        if texts == ["\\mathbb{R}"] or " ".join(texts) == "all real numbers":
            return ("tuple", "()", [_MINUS_INFINITY, _INFINITY])
        if texts in (["\\emptyset"], ["\\{", "\\}"]):
            return ("set", [])
        if texts[:1] == ["\\begin"]:
            return self._matrix(tokens)
        if len(texts) > 1 and _encloses(tokens):
            ends = (texts[0], texts[-1])
            if ends in (("(", ")"), ("[", "]")) and texts[1] == "\\begin":
                return self._matrix(tokens[1:-1])
            if ends == ("\\{", "\\}"):
                return self._set(tokens[1:-1])
            if ends[0] in ("(", "[") and ends[1] in (")", "]"):
                pieces = _split(tokens[1:-1], lambda token: token.text == ",")
                if len(pieces) > 1:
                    members = [self._piece(piece) for piece in pieces]
                    return ("tuple", "".join(ends), members)
                if ends == ("(", ")"):
                    return self.answer(tokens[1:-1])
        return self._value(tokens)

    def _value(self, tokens: Sequence[Token]) -> Answer:
        number, unit = units.without_unit(tokens)
        try:
            tree = expression.parse(number, self._plain)
        except (expression.UnclearError, RecursionError):
            return ("text", text_of(tokens))
        # An angle in degrees is no argument of a function: \sin 30^\circ.
        parts = [("call",), ("constant", "pi")]
        if unit == units.DEGREE and any(trees.contains(tree, *x) for x in parts):
            return ("text", text_of(tokens))
        return ("value", tree, unit)

    def _set(self, tokens: Sequence[Token]) -> Answer:
        parts = _split(tokens, lambda token: token.text in ("|", ":"))
        if len(parts) == 2:
            found = self._range(self.answer(parts[1]), text_of(parts[0]))
            return found or ("text", text_of(tokens))
        pieces = _split(tokens, lambda token: token.text == ",")
        return ("set", [self._piece(piece) for piece in pieces])

    def _range(self, condition: Answer, variable: str) -> Answer | None:
        """The interval in which the variable of a set lies, or the union of some."""
        if condition[0] == "or":
            parts = [self._range(member, variable) for member in condition[1]]
            return ("union", parts) if all(parts) else None
        if condition[0] != "relation":
            return None
        _, signs, sides = condition
        sides = [side for side, _ in sides]
        name = ("value", ("symbol", variable.removesuffix("\\in\\mathbb{R}")), ())
        if signs == ["\\in"] and sides[0] == name:
            return sides[1]
        if any(sign[0] != ">" for sign in signs):
            signs, sides = [_FLIPPED.get(sign) for sign in signs[::-1]], sides[::-1]
        if any((sign or "=")[0] != ">" for sign in signs) or sides.count(name) != 1:
            return None
        where, last = sides.index(name), len(sides) - 1
        if len(sides) == 3 and where != 1:
            return None
        low = sides[last] if where < last else _MINUS_INFINITY
        high = sides[0] if where else _INFINITY
        left = "[" if where < last and signs[where] == ">=" else "("
        right = "]" if where and signs[where - 1] == ">=" else ")"
        return ("tuple", left + right, [low, high])

    def _matrix(self, tokens: Sequence[Token]) -> Answer:
        whole = " ".join(token.text for token in tokens)
        # A system of equations is a list of them.
        match = _MATRIX.fullmatch(whole)
        if not match:
            return ("text", text_of(tokens))
        inside = tokens[match[2].count(" ") + 4 : -4]
        rows = _split(inside, lambda token: token.text == "\\\\")
        if match[1] == "cases" and "&" not in whole:
            return _joined("list", [self._piece(row) for row in rows if row])
        cells = [_split(row, lambda token: token.text == "&") for row in rows if row]
        return ("matrix", [[self._piece(cell) for cell in row] for row in cells])


_MATRIX = re.compile(
    r"\\begin \{ ([pb]?matrix|smallmatrix|array|cases) \}((?: \{ [clr|]+ \})?) .*"
    r" \\end \{ \1 \}"
)
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}


def flipped(signs: Sequence[str]) -> list[str]:
    """The signs of a relation that is read from right to left."""
    return [_FLIPPED.get(sign, "") for sign in reversed(signs)]


def is_equation(relation: Answer) -> bool:
    """Whether a relation only says what something is."""
    return set(relation[1]) <= {"=", "\\in", "\\approx"}


def _is_connection(token: Token) -> bool:
    return token.kind == "letters" and token.text.casefold() in _CONNECTED


def _depth(tokens: Sequence[Token]) -> int:
    """How many brackets are open at most."""
    steps = ((t.text in _OPENING) - (t.text in _CLOSING) for t in tokens)
    return max(itertools.accumulate(steps), default=0)


def _joined(kind: str, members: list[Answer]) -> Answer:
    return (kind, [x for m in members for x in (m[1] if m[0] == kind else [m])])


def _signed(tokens: Sequence[Token], sign: str) -> list[Token]:
    return [t._replace(text=sign) if t.text == "\\pm" else t for t in tokens]


def _without_braces(tokens: Sequence[Token]) -> list[Token]:
    tokens = list(tokens)
    while len(tokens) > 2 and tokens[0].text == "{" and tokens[-1].text == "}":
        if not _encloses(tokens):
            break
        tokens = tokens[1:-1]
    return tokens


def _encloses(tokens: Sequence[Token]) -> bool:
    """Whether the first bracket closes with the last token, and not before."""
    depth = 0
    for position, token in enumerate(tokens):
        depth += (token.text in _OPENING) - (token.text in _CLOSING)
        if depth <= 0:
            return position == len(tokens) - 1 and depth == 0 and position > 0
    return False


def _split(
    tokens: Sequence[Token], is_mark: Callable[[Token], bool]
) -> list[list[Token]]:
    """The pieces between marks that are in no bracket."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token.text in _OPENING) - (token.text in _CLOSING)
        if depth == 0 and is_mark(token):
            parts.append([])
        else:
            parts[-1].append(token)
    return parts
