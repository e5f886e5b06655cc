r"""What a marked text says: the letter of one option, of several, or of none.

The letter may be styled and introduced ("option **B**"), and followed by the option's
own text, in LaTeX or plain.
"""

import difflib
import functools
import re
import unicodedata
from collections.abc import Mapping

from sdpo_jax.questions.options import LETTERS

_MAX_CHARS = 2000  # Of a letter with its option's text.
_MARKUP = " \t\r\n*_`\"'$\u201c\u201d"

# Words beside another letter that make it an answer too, or instead.
_PREFERS = re.compile(
    r"(?<!not )(?<!n't )(?<!would be )(?<!would be the )\b(?:correct|right|true|better"
    r"|best|answer|or|also|either|both|too(?!\s+\w)|so\s+(?:is|are|does|do)"
    r"|as\s+(?:well|is|are)|mean|rather|likewise|equally|same|together|maybe|perhaps"
    r"|possibly|could|may|might)\b",
    re.IGNORECASE,
)

_STYLE = (
    r"\\(?:boxed|fbox|text[a-z]*|math[a-z]+|mbox|operatorname|boldsymbol|underline)\s*"
)
_STYLED = re.compile(_STYLE + r"\{([^{}]*)\}")
_STYLED_ALL = re.compile(_STYLE + r"\{(.*)\}", re.DOTALL)
_INVISIBLE = re.compile(r"\\[,;:!> ()\[\]]|~|\\q?quad\b|\\(?:left|right)\b")
_INTRODUCTION = re.compile(
    r"(?:(?:the|my|final|correct|right|best|option|choice|answer|letter|is|indeed"
    r"|clearly|so|therefore|thus|hence)\b[\s:,*_]*)+",
    re.IGNORECASE,
)
_CHOICE = re.compile(
    r"(?P<open>[(\[{]?)\s*(?P<letter>[A-Ja-j])(?![\w'\u2019])(?:\s*[)\]}])?(?P<rest>.*)",
    re.DOTALL,
)
_DELIMITER = re.compile(
    r"[\s*_`\"'$]*[):\uff1a]*[.,:]?[\s*_`\"'$]*(?:[-=\u2013](?=\s)|\u2014)?"
)
# Where a remark may begin, in the line of the answer.
_REMARK = re.compile(
    r"[.!;][*_)\"'$]*\s+(?=[(\"'*_]*[A-Z])"
    r"|[*_)$]*,?\s+(?=(?:because|since|as|which|whereas|while)\b"
    r"|\(?(?:and\s+)?not\b(?! only))"
)
_REASON = re.compile(
    r"[*_)$]*,?\s+(?:(?:because|since|whereas|while)\b|\(?(?:and\s+)?not\b(?! only)"
    r"|(?P<says_what>(?:as|which)\b))(?P<is>\s+(?:it\s+)?(?:is|are))?"
)

# Spellings of one symbol.
_SYMBOLS = {"\\times": "x", "\u00d7": "x", "\\cdot": "\u00b7", "\u2212": "-"} | {
    "^\\circ": "\u00b0",
    "\\degree": "\u00b0",
    "\\mu": "\u03bc",
    "\u00b5": "\u03bc",
}
_SUPERSCRIPT = re.compile("[\u00b2\u00b3\u00b9\u2070-\u207b]+")


def letter_of(
    text: str | None, options: Mapping[str, str], is_statement: bool
) -> str | None:
    """The one letter that a mark names; None if it names none, or may name two.

    Args:
      text: None if the mark is incomplete.
      options: letter -> the text of that option.
      is_statement: whether a remark may follow, and a small letter is the article.
    """
    if text is None or (len(text) > _MAX_CHARS and not is_statement):
        return None
    choice = parts(text)
    if choice is None or (is_statement and not begins_with_letter(text)):
        return None
    letter, rest = choice["letter"].upper(), choice["rest"]
    if _is_own(rest, letter, options):
        return letter
    remarks = _REMARK.finditer(rest) if is_statement else ()
    for remark in remarks:
        if _is_own(rest[: remark.start()], letter, options):
            said = rest[remark.start() :]
            return letter if _is_remark(said, letter, options) else None
    return None


def parts(text: str) -> re.Match | None:
    """The groups "open", a bracket, "letter" and "rest" of a text; None without one."""
    return _CHOICE.fullmatch(_plain(text[:_MAX_CHARS]))


def begins_with_letter(text: str) -> bool:
    """Whether a statement may name an option; a small letter may be the article."""
    choice = parts(text)
    return bool(choice and (choice["open"] or choice["letter"].isupper()))


def _is_own(rest: str, letter: str, options: Mapping[str, str]) -> bool:
    """Whether what follows a letter is nothing, or the text of its option."""
    if not bare(rest):
        return True
    given = _key(rest[_DELIMITER.match(rest).end() :])
    own = _key(options.get(letter, ""))
    if own in (given, given.removeprefix("(").removesuffix(")")):
        return True
    others = {_key(text) for text in options.values()}
    return given not in others and given.casefold() == own.casefold()


def _is_remark(said: str, letter: str, options: Mapping[str, str]) -> bool:
    """Whether words after an answer in its line leave it the only answer."""
    others = "".join(options or LETTERS).replace(letter, "")
    reason = _REASON.match(said)
    words = said[reason.end() :] if reason else said.lstrip(".!; *_")
    first = re.split(r"[.!?](?:\s|$)", words)[0]
    says_what = not reason or reason["says_what"] or reason["is"]
    if any(_is_like(first, options.get(x, ""), not says_what) for x in others):
        return False
    # One or two words may be a text that is put otherwise than in the question.
    return bool(reason or len(first.split()) > 2) and not adds(said, others)


def adds(said: str, others: str) -> bool:
    """Whether words after an answer may make one of the other letters an answer too."""
    names_other = re.search(rf"(?<![\w'$\\])[{others}](?![\w'])", said)
    return bool(names_other and _PREFERS.search(said))


def _is_like(said: str, option: str, is_clause: bool) -> bool:
    """Whether words may be an option's text, or begin with it if they are no clause."""
    said, option = (_key(text).casefold()[:200] for text in (said, option))
    likeness = difflib.SequenceMatcher(None, said, option, autojunk=False)
    # White space is gone, so few letters may be the beginning of a longer word.
    begins = not is_clause and len(option) > 3 and said.startswith(option)
    return begins or likeness.ratio() > (0.9 if is_clause else 0.75)


def option_of(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the only option that has this text, in any case."""
    if len(text) > 3 * max(map(len, options.values()), default=0) + 20:
        return None
    key = _key(text).casefold()
    having = [letter for letter, own in options.items() if _key(own).casefold() == key]
    return having[0] if key and len(having) == 1 else None


@functools.lru_cache(maxsize=256)
def _plain(text: str) -> str:
    """A marked text without styling and introduction, such as "option"."""
    text, before = _INVISIBLE.sub(" ", text), ""
    while text != before:
        before, text = text, _STYLED.sub(r"\1", text).strip(_MARKUP)
    if styled := _STYLED_ALL.fullmatch(text):
        text = styled[1].strip(_MARKUP)
    introduction = _INTRODUCTION.match(text)
    return text[introduction.end() :].strip(_MARKUP) if introduction else text


def bare(rest: str) -> str:
    """What follows a letter, without marks."""
    return rest.strip(_MARKUP + ".,;:!)]}-\u2013\uff1a")


@functools.lru_cache(maxsize=256)
def _key(text: str) -> str:
    """The text of an option without styling and white space, to compare by."""
    text = re.sub(_STYLE, "", _INVISIBLE.sub("", text))
    text = re.sub(r"[\s${}]", "", text)
    for spelling, symbol in _SYMBOLS.items():
        text = text.replace(spelling, symbol)
    text = _SUPERSCRIPT.sub(lambda match: "^" + match[0], text)
    text = unicodedata.normalize("NFKC", text)
    return text.strip(_MARKUP).rstrip(".,;" + _MARKUP)
