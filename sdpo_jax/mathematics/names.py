"""Says which side of an equation only names its result: `x`, `f(3)`, `Area`."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from sdpo_jax.mathematics.tokens import Token, text_of


class Side(NamedTuple):
    r"""What a side of an equation is apart from its value.

    Args:
      kind: "name" for one name (a letter, a function of something, an angle, a length,
        words); "names" for several that are added, subtracted, multiplied or divided
        (m+n, \frac{m}{n}); "computed" for a sum, limit or integral, whose value is not
        checked; "" for anything else.
      key: its text, the same for every spelling of one name.
      letters: the names in it.
      coordinates: the names in order where it is a point, (x, y).
    """

    kind: str
    key: str
    letters: frozenset[str] = frozenset()
    coordinates: tuple[str, ...] = ()


# What stands in the text of tokens with a space between any two.
_AFTER = r"(?: _ (?:\{ [^{}]* \}|\S+))?(?: ')*"
_GREEK = (
    r"\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|rho|sigma|tau|phi|psi|omega"
    r"|kappa|xi|eta|ell|Delta|Omega|Gamma|Phi|Psi|Sigma|Theta|Lambda)"
)
_ONE = rf"(?:[A-Z]{{2,6}}|[A-Za-z]|{_GREEK}){_AFTER}"
_OVER = (
    r"\\(?:overline|vec|hat|tilde|overrightarrow|overleftrightarrow|underline|mathbf)"
    r" (?:\{ [^{}]* \}|[A-Za-z]+)"
)
_ANGLE = r"(?:m )?\\(?:angle|measuredangle|triangle) (?:\{ )?[A-Za-z0-9]+(?: \})?"
_CAPITALS = r"[A-Z]{1,6}(?: \\(?:cap|cup) [A-Z])*"
_MEMBERS = r"[A-Za-z0-9]+(?: (?:,|\\cap|\\cup) [A-Za-z0-9]+)*"
_MEASURED = rf"\[ (?:\\triangle )?[A-Z]{{2,6}} \]|\| (?:{_CAPITALS}|z|{_OVER}) \|"
_MEASURED += rf"|\\\| (?:[A-Za-z]|{_OVER}) \\\|"
_INSIDE = r"(?:[^()\[\]]|[(\[][^()\[\]]*[)\]])*"
# Letters that name functions stand before any argument, others before one letter.
_FUNCTION = (
    r"(?:[A-Zfgh]|\\(?:phi|psi|Gamma|Phi|Pr|mathbb\{[A-Z]\}|det|dim|deg)|[A-Z][a-z]+"
    r"|(?!(?:sqrt|log|exp|abs|arc...|sin|cos|tan|cot|sec|csc|floor|ceil) )[a-z]{3,})"
)
_APPLIED = (
    rf"{_FUNCTION}{_AFTER}(?: \^ \{{ - 1 \}})? [(\[] {_INSIDE} [)\]]"
    rf"|{_ONE} \( {_MEMBERS} \)"
    rf"|\\(?:gcd|max|min) \( {_INSIDE} \)"
)
_POINT = re.compile(rf"[A-Z]{_AFTER} \( {_INSIDE} , {_INSIDE} \)")
_ANGLES = rf"(?:\d )?(?:{_ANGLE}|[A-Z]{{1,3}}|{_GREEK})"
_OF_ANGLE = (
    r"\\?(?:sin|cos|tan|cot|sec|csc)(?: \^ \d)?"
    rf" (?:{_ANGLES}|\( {_ANGLES}(?: [+\-] {_ANGLES})* \))"
)
_SQUARE = r"[A-Z]{2} \^ 2"
_DERIVATIVE = r"\\frac (?:d|\{ d [a-z] \}) \{ d [a-z] \}"
_INVERSE = r"[A-Z] \^ (?:\{ - 1 \}|T)"
_PROPERTY = r"\\?(?:deg|dim|det|rank|ker) [A-Za-z]|# [A-Z]|tr \( [A-Z] \)"
_WHOLE = r"\\lfloor (?:\d+ )?[A-Z] \\rfloor"
_NAME = (
    rf"(?:{_APPLIED}|{_OF_ANGLE}|{_SQUARE}|{_ANGLE}|{_OVER}|{_MEASURED}|{_DERIVATIVE}"
    rf"|{_INVERSE}|{_PROPERTY}|{_WHOLE}|{_ONE})"
)
_JOINED = rf"{_NAME}(?: (?:[+\-*/] )?{_NAME})+"
_QUOTIENT = r"\\frac" + rf" (?:{_NAME}|\{{ {_NAME} \}})" * 2
_NO_LETTERS = r"(?:[^a-zA-Z\\]|\\[a-zA-Z]+)*"
_COMPUTED = re.compile(
    r"\\(?:sum|prod|int|iint|oint|lim|max|min|sup|inf|gcd|det)(?![a-zA-Z]).*"
    rf"|{_NO_LETTERS} \.\.\.{_NO_LETTERS}"
)
_COORDINATES = re.compile(rf"\( {_ONE}(?: , {_ONE})+ \)")
# Words that turn what is said of a result into its contrary, or blur it; and functions,
# since sqrt(x)=3 names nothing.
_DENYING = frozenset(
    """
not no nothing never neither nor none cannot isn aren doesn except other otherwise than
wrong incorrect false least most about approximately roughly nearly almost more less
greater smaller fewer over under above below without unless if or and either maybe minus
negative plus divided squared cubed guess hundred thousand million billion dozen
opposite reciprocal inverse twice half double sqrt log exp abs sin cos tan cot
sec csc floor ceil arcsin arccos arctan factorial
""".split()
)

_CONCLUDING = frozenset(
    r"= \rightarrow \implies \therefore so thus hence therefore".split()
)


def side_of(tokens: Sequence[Token]) -> Side:
    """What a side of an equation is apart from its value."""
    text = re.sub(r"\{ (\S+) \}", r"\1", " ".join(_spelled(tokens)))
    key = text_of([token._replace(spaced=False) for token in tokens])
    if re.fullmatch(_NAME, text):
        return Side("name", key, frozenset([text]))
    if _COORDINATES.fullmatch(text):
        letters = re.findall(_ONE, text)
        # (y, x) = (1, 2) is another point than (x, y) = (1, 2).
        kind = "name" if letters == sorted(letters, key=order) else ""
        return Side(kind, key, coordinates=tuple(x.replace(" ", "") for x in letters))
    letters = re.findall(_NAME, text)
    joined = rf"{_JOINED}|{_QUOTIENT}|\( {_JOINED} \)|\| {_JOINED} \|"
    if re.fullmatch(joined, text) and len(set(letters)) == len(letters):
        return Side("names", key, frozenset(letters))
    if _are_words(tokens):
        return Side("name", key)
    return Side("computed" if _COMPUTED.fullmatch(text) else "", key)


def _spelled(tokens: Sequence[Token]) -> list[str]:
    """Texts of the tokens; `mn` in italics is two names."""
    found = []
    for token in tokens:
        run = token.kind == "letters" and token.text.islower() and len(token.text) == 2
        found += list(token.text) if run and not token.upright else [token.text]
    return found


def order(name: str) -> tuple[bool, str]:
    """The key that sorts the names of coordinates: Greek letters come last."""
    return name.startswith("\\"), name


def _are_words(tokens: Sequence[Token]) -> bool:
    r"""Whether words name a result: \text{Area of }\triangle ABC."""
    words = [token.text.casefold() for token in tokens if token.kind == "letters"]
    others = {token.text for token in tokens if token.kind != "letters"}
    begins = bool(tokens) and tokens[0].kind == "letters" and len(tokens[0].text) > 2
    allowed = {"\\triangle", "\\angle", "\\overline", "(", ")", "{", "}", "_"}
    return begins and others <= allowed and not _DENYING.intersection(words)


def without_introduction(tokens: Sequence[Token]) -> list[Token]:
    """The tokens after words that only introduce them: the answer is 5; Domain: x>3."""
    tokens = list(tokens)
    while len(tokens) > 1 and tokens[0].text.casefold() in _CONCLUDING:
        tokens = tokens[1:]
    for end, token in enumerate(tokens):
        if token.kind == "letters":
            is_end = token.text.casefold() in ("is", "are", "equals") and end > 0
        else:
            is_end = token.text == ":"
            if not is_end:
                return tokens
        if is_end and end + 1 < len(tokens):
            return tokens[end + 1 :] if _are_words(tokens[:end]) else tokens
    return tokens


def assigned(tokens: Sequence[Token]) -> list[Token]:
    """The tokens with the sign that the name of a point lacks: A=(1,2) for A(1,2)."""
    texts = [token.text for token in tokens]
    if not _POINT.fullmatch(" ".join(texts)):
        return list(tokens)
    start = texts.index("(")
    return [*tokens[:start], Token("mark", "="), *tokens[start:]]
