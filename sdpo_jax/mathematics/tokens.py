r"""Reads an answer's text as tokens, before anything is taken for its meaning.

Numbers are read whole (`1,234`, `1{,}234`, `1\,234`, `.5`, `1e-5`), so that no letter
or mark inside one is read for something else. Spellings of one mark become one token:
`\le` and the sign of Unicode, `\dfrac` and `\frac`, `\text{or}` and `or`.
"""

import re
from typing import NamedTuple


class Token(NamedTuple):
    """A token of an answer.

    Args:
      kind: "number", "letters" (a run of them), "command" or "mark".
      text: its one spelling.
      spaced: whether space stands in front of it.
      upright: whether it stands in text style, where a run of letters is a word.
    """

    kind: str
    text: str
    spaced: bool = False
    upright: bool = False


# Styles whose content stays mathematics, where `ab` is a product.
_MATHEMATICAL = frozenset(
    "mathbf mathit mathbb mathcal mathfrak mathnormal boxed fbox boldsymbol bm".split()
)
_STYLE = (
    r"\\(?P<style>text(?:bf|it|rm|sf|tt|sc|normal|up|md)?|math(?:bf|rm|it|sf|tt|bb|cal"
    r"|frak|normal)|mbox|hbox|operatorname\*?|boxed|boldsymbol|bm|fbox)(?![a-zA-Z])\s*"
)
_SPACE = r"\s+|~|\\[,;: ]|\\(?:quad|qquad|thinspace)(?![a-zA-Z])"
_NOTHING = (
    r"\\!|\\(?:left|right)\s*\.|\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle"
    r"|limits|bf|rm|it|sf|tt|em)(?![a-zA-Z])"
)


def _reading(comma: str) -> re.Pattern:
    """What matches one token, where `comma` may group the digits of a number."""
    grouped = r"\d{1,3}(?:(?:" + comma + r")\d{3})+(?!\d)"
    decimals = r"(?:\.\d+|\.(?=\s*\\(?:overline|bar|dot)\b))?"
    number = rf"(?:(?:{grouped}|\d+){decimals}|\.\d+)(?:[eE][+-]?\d+(?![\w.]))?"
    kinds = {
        "space": _SPACE,
        "nothing": _NOTHING,
        "number": number,
        "styled": _STYLE + r"\{",
        "command": r"\\[a-zA-Z]+|\\.",
        "letters": "[a-zA-Z]+",
        "mark": r"\*\*|<=|>=|\.\.\.+|.",
    }
    alternatives = "|".join(f"(?P<{kind}>{one})" for kind, one in kinds.items())
    return re.compile(alternatives, re.DOTALL)


_CLEAR_COMMA = r"\{,\}|,\\!|\\[,; ]|~"
_READ = [_reading(_CLEAR_COMMA), _reading(_CLEAR_COMMA + "|,")]
# Commas are grouping ones only where all of them are, and none stands in brackets.
_ALL_GROUPED = re.compile(
    r"[^,(\[]*(?:(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])[^,(\[]*)+"
)
_BARE_STYLE = re.compile(_STYLE + r"(?=[^{\s]|$)")
_END = re.compile(r"(?:\s|~|\\[,;:! ]|\\$|(?<!\.)[.,])+$")


def _pairs(table: str) -> dict[str, str]:
    """A table of pairs: what is written, then the token that it becomes."""
    words = table.split()
    return dict(zip(words[::2], words[1::2], strict=True))


_SAME = _pairs(r"""
** ^   \cdot *   \times *   \ast *   \div /   \le <=   \leq <=   \leqslant <=
\ge >=   \geq >=   \geqslant >=   \lt <   \gt >   \ne !=   \neq !=   \approx \approx
\simeq \approx   \thickapprox \approx   \in \in   \notin \notin   \cup \cup
\cap \cap   \pm \pm   \mp \mp   \mid |   \vert |   \lvert |   \rvert |   \colon :
\lbrace \{   \rbrace \}   \{ \{   \} \}   \langle (   \rangle )   \lbrack [
\rbrack ]   \% %   \$ $   \# #   \\ \\   \ldots ...   \dots ...   \cdots ...
\prime '
""")
_SAME_COMMAND = _pairs(r"""
\dfrac \frac   \tfrac \frac   \cfrac \frac   \dbinom \binom   \tbinom \binom
\varnothing \emptyset   \varphi \phi   \varepsilon \epsilon   \degree \circ
\widehat \hat   \bar \overline
""")
_UNICODE = {
    "\u2212": "-",
    "\u2013": "-",
    "\u00d7": "*",
    "\u00b7": "*",
    "\u22c5": "*",
    "\u00f7": "/",
    "\u2264": "<=",
    "\u2265": ">=",
    "\u2260": "\\ne ",
    "\u2248": "\\approx ",
    "\u221a": "\\sqrt ",
    "\u221e": "\\infty ",
    "\u03c0": "\\pi ",
    "\u03b8": "\\theta ",
    "\u03b1": "\\alpha ",
    "\u03b2": "\\beta ",
    "\u03bb": "\\lambda ",
    "\u222a": "\\cup ",
    "\u2229": "\\cap ",
    "\u2208": "\\in ",
    "\u2205": "\\emptyset ",
    "\u2220": "\\angle ",
    "\u00b1": "\\pm ",
    "\u00b0": "^{\\circ}",
    "\u2026": "...",
    "\u211d": "\\mathbb{R}",
    "\u2032": "'",
    "\u2019": "'",
    "\u00a0": " ",
    "\u202f": " ",
    "\u2009": " ",
    "\u20ac": "\\euro ",
    "\u00a3": "\\pounds ",
    "\u00bd": "\\frac{1}{2}",
    "\u2153": "\\frac{1}{3}",
    "\u2154": "\\frac{2}{3}",
    "\u00bc": "\\frac{1}{4}",
    "\u00be": "\\frac{3}{4}",
}
_RAISED = "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207b"
_LOWERED = "\u2080\u2081\u2082\u2083\u2084\u2085\u2086\u2087\u2088\u2089"
_ASCII = str.maketrans(_RAISED + _LOWERED, "0123456789-0123456789")
_WRAPPERS = [
    ("\\(", "\\)"),
    ("\\[", "\\]"),
    ("$$", "$$"),
    ("$", "$"),
    ("**", "**"),
    ("*", "*"),
]


def tokens_of(text: str) -> list[Token]:
    """The tokens of an answer."""
    text = _unwrapped(text)
    for character, spelling in _UNICODE.items():
        text = text.replace(character, spelling)
    for sign, characters in (("^", _RAISED), ("_", _LOWERED)):
        run = re.compile(f"[{characters}]+")
        text = run.sub(lambda m, s=sign: f"{s}{{{m[0].translate(_ASCII)}}}", text)
    text = _BARE_STYLE.sub(" ", text)
    found = _tokens(text, _READ[_ALL_GROUPED.fullmatch(text) is not None])
    while found and found[-1].text in (".", ","):
        found.pop()
    return found


def is_plain(text: str) -> bool:
    """Whether a text is written without LaTeX, where `2^10` has the exponent 10."""
    return not re.search(r"[\\{}$]", text)


def _unwrapped(text: str) -> str:
    """Text without the marks around it: of mathematics, emphasis, and its last stop."""
    before = None
    while text != before:
        before, text = text, _END.sub("", text.lstrip())
        for start, end in _WRAPPERS:
            inside = text[len(start) : -len(end)]
            if text == start + inside + end and inside and start[-1] not in inside:
                text = inside
    return text


def _tokens(text: str, read: re.Pattern) -> list[Token]:
    found, position, spaced = [], 0, False
    while position < len(text):
        match = read.match(text, position)
        position = match.end()
        kind = match.lastgroup
        if kind == "styled":
            end = _closing(text, position)
            inside = _tokens(text[position:end], read)
            found += _styled(match["style"], inside, spaced)
            position, spaced = end + 1, True
            continue
        if kind not in ("space", "nothing"):
            found.append(_token(kind, match[0], spaced))
        spaced = kind == "space" or (spaced and kind == "nothing")
    return found


def _token(kind: str, text: str, spaced: bool) -> Token:
    if text in _SAME:
        return Token("mark", _SAME[text], spaced)
    if kind == "number":
        return Token(kind, re.sub(r"[{},;!~ \\]", "", text).upper(), spaced)
    return Token(kind, _SAME_COMMAND.get(text, text), spaced)


def _styled(style: str, inside: list[Token], spaced: bool) -> list[Token]:
    """What a style encloses: mathematics stays one group, text becomes words."""
    if style in _MATHEMATICAL:
        marks = [Token("mark", "{", spaced), Token("mark", "}")]
        if style == "mathbb":
            letters = "".join(token.text for token in inside)
            inside = [Token("command", f"\\mathbb{{{letters}}}")]
        return [marks[0], *inside, marks[1]]
    words = [token._replace(upright=True) for token in inside]
    return [words[0]._replace(spaced=True), *words[1:]] if words else []


def _closing(text: str, start: int) -> int:
    """Where the brace closes that was opened before `start`."""
    depth = 1
    for end in range(start, len(text)):
        escaped = end and text[end - 1] == "\\"
        depth += 0 if escaped else {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return end
    return len(text)


def text_of(tokens: list[Token]) -> str:
    """The tokens as text in one spelling; words are written without case."""
    pieces = []
    for before, token in zip([Token("mark", ""), *tokens], tokens, strict=False):
        both = before.text[-1:].isalnum() and token.text[:1].isalnum()
        apart = both and (token.spaced or token.kind == before.kind)
        pieces.append(" " * apart + token.text)
    text = re.sub(r"\{(\w|\\[a-z]+)\}(?!\w)", r"\1", "".join(pieces))
    words = re.fullmatch(r"[A-Za-z]{3,}(?: [A-Za-z]+)*|[A-Za-z]+ [A-Za-z ]+", text)
    is_word = text.isalpha() and not text.isupper() and tokens[0].upright
    return text.casefold() if words or is_word else text
