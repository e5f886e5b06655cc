r"""Which option of a multiple-choice question a response marks as its answer.

A mark is an `<answer>` tag, a `\boxed{}`, a statement ("the answer is (B)", "Final
answer: B", "B is the correct option"), or a last line that is the letter alone or with
the option's text. The last mark decides, even if it names no option or several: what
stands before it was taken back.
"""

import difflib
import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from sdpo_jax.questions import boxed
from sdpo_jax.questions.options import LETTERS

_MAX_CHARS = 2000  # Of a letter with its option's text.
_MARKUP = " \t\r\n*_`\"'$\u201c\u201d"

_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.I | re.DOTALL)
_OPEN_TAG = re.compile(r"<answer>", re.I)
_BRACE = re.compile(rf"{boxed.BOX.pattern}|(?<!\\)[{{}}]")
_STATED = re.compile(
    r"\b(?:answer|option|choice|(?:correct|right)\s+(?:one|letter))[*_]*"
    r"(?:\s+(?:is|(?:would|should|must|will)\s+be)\b[*_]*\s*[:\uff1a]?|\s*[:\uff1a=]"
    r"|\s+[-\u2013\u2014]\s)[*_]*\s*(?=([^\n]{0,1000}))"
    r"|^[#*_ \t]*(?:(?:final|correct)[ \t]+)?answer[*_ \t]*\n\s*(?=([^\n]{0,1000}))",
    re.IGNORECASE | re.MULTILINE,
)
_NAMED = re.compile(
    r"(?<![\w'])(?=([(\[*_]{0,4}[A-J][)\]*_]{0,4})\s)\S+\s+is\s+"
    r"(?:(?:therefore|thus|hence|clearly)\s+)?the\s+"
    r"(?:(?:correct|right|best|final|only)\s+)*(?:answer|option|choice)\b(?!\s*\?)"
)
_OTHER_OR = re.compile(r"\b[A-J]\b\W*(?:or|and|[,/&])\W*$")

# Words in a clause after which a statement gives no answer.
_DENIES = re.compile(
    r"\b(?:wrong|incorrect|not|never|least\s+(?:likely|probable|plausible)|unlikely"
    r"|eliminated?|false|cannot|if|whether|nobody|no\s+one|rather\s+than|instead\s+of"
    r"|mistaken\w*|tempt\w+|(?<!no )(?<!without )(?<!without a )doubt)\b|n['\u2019]t\b"
    r"|\b(?:suppose|assum\w+)\s+(?:\w+\s+){0,3}$",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[\n.!?]")
_CLAUSE_END = re.compile(r"[,;]|\b(?:so|then|therefore|thus|hence)\b", re.IGNORECASE)
# Such a clause is part of what the sentence before it denies.
_DEPENDS = re.compile(r"\b(?:that|whether|if)\s+(?:\w+\s+){0,2}$", re.IGNORECASE)
_NOT_BEFORE = re.compile(
    r"(?:\b(?:not|never|than|instead\s+of|neither|nor)|n['\u2019]t)"
    r"(?:\s+(?:be|in|the))?[\s$*_(]*$",
    re.IGNORECASE,
)
_WRONG = (
    r"(?:wrong|incorrect|false|ruled\s+out|eliminated"
    r"|not\s+(?:(?:the|a)\s+)?(?:right|correct|true|answer|valid|possible))\b"
)
_WRONG_AFTER = re.compile(rf"[\s$*_)]*(?:is|was|would\s+be)\s+{_WRONG}", re.IGNORECASE)
_I_WAS_WRONG = re.compile(
    r"\bthat(?:\s+is|\s+was|['\u2019]s)\s+(?:wrong|not\s+right)\b"
    r"|\bI\s+(?:was\s+wrong|made\s+a\s+mistake)\b",
    re.IGNORECASE,
)
# A sentence that may name another option instead.
_TAKES_BACK = re.compile(
    r"(?:^|[.!?;\n])\W*(?:actually|wait|no|nope|hmm+|sorry|correction|scratch\s+that"
    r"|on\s+second\s+thought)\b(?=\s*[,.!:;\u2026\u2014-]|\s+[a-z])",
    re.IGNORECASE,
)
_PREFERS = re.compile(
    r"(?<!not )(?<!n't )\b(?:correct|right|true|better|best|answer|or|also|either|maybe"
    r"|perhaps|possibly|could|may|might)\b",
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
    r"|clearly|therefore|thus|hence)\b[\s:*_]*)+",
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
    r"[.!;][*_)\"'$]*\s+(?=[(\"'*_]*[A-Z])|,?\s+(?=(?:because|since|as|which)\b)"
)
_REASON = re.compile(r",?\s+(?:because|since|as|which)\b(?:\s+(?:it\s+)?(?:is|are))?")

# Spellings of one symbol.
_SYMBOLS = {"\\times": "x", "\u00d7": "x", "\\cdot": "\u00b7", "\u2212": "-"} | {
    "^\\circ": "\u00b0",
    "\\degree": "\u00b0",
    "\\mu": "\u03bc",
    "\u00b5": "\u03bc",
}
_SUPERSCRIPT = re.compile("[\u00b2\u00b3\u00b9\u2070-\u207b]+")


class _Mark(NamedTuple):
    """A mark's place, and its text; None where the mark is incomplete.

    A statement may be followed by a remark, and is none if it begins with no letter.
    """

    start: int
    end: int
    text: str | None
    is_statement: bool = False


def chosen_letter(
    response: str,
    options: Mapping[str, str],
    asked: str = "",
    truncated: bool = False,
) -> str | None:
    """The letter that a response marks as its answer, or None if there is none.

    Args:
      response: what the policy wrote.
      options: letter -> the text of that option, for options listed in the prompt.
      asked: system and user message; a mark that only quotes them is none.
      truncated: whether the response was cut off, and so perhaps its last mark.
    """
    asked, named = " ".join(asked.split()), None
    marks = sorted(_marks(response, options, truncated), key=lambda mark: mark.start)
    for mark in reversed(marks):
        if _is_quoted(response, mark, asked):
            continue
        if letter := _letter(mark, options):
            # An option's text without its letter may repeat an answer.
            agrees = named in (None, letter)
            taken_back = _is_taken_back(letter, response[mark.start :])
            return letter if agrees and not taken_back else None
        option = _option_of(mark.text or "", options)
        if option and named in (None, option):
            named = option
        elif not mark.is_statement or option or _begins_with_letter(mark.text):
            return None
    return None


def _marks(
    response: str, options: Mapping[str, str], truncated: bool
) -> Iterator[_Mark]:
    """All marks that are not denied, in any order."""
    spans = [*_tags(response, truncated), *_boxes(response)]
    rest = list(response)
    for start, end, text in spans:
        # Not read again as part of a statement.
        rest[start:end] = "\0" * (end - start)
        denied = _NOT_BEFORE.search(response, max(start - 40, 0), start)
        if not denied and not _WRONG_AFTER.match(response, end):
            yield _Mark(start, end, text)
    rest = "".join(rest)
    for stated in _STATED.finditer(rest):
        if not _is_denied(rest[max(stated.start() - 200, 0) : stated.start()]):
            text = stated[1] if stated[1] is not None else stated[2]
            end = stated.end() + len(text)
            is_cut = truncated and end == len(rest)
            yield _Mark(stated.end(), end, None if is_cut else text, True)
    for match in _NAMED.finditer(rest):
        before = rest[max(match.start() - 200, 0) : match.start()]
        if not _is_denied(before):
            text = None if _OTHER_OR.search(before) else match[1]
            yield _Mark(match.start(), match.end(), text)
    if not truncated and (last := _last_line(rest, options)):
        yield last


def _tags(response: str, truncated: bool) -> Iterator[tuple[int, int, str | None]]:
    """The spans of answer tags and what is in them; of an open one without others."""
    closed = False
    for match in _TAG.finditer(response):
        closed = True
        yield match.start(), match.end(), match[1]
    opened = None if closed else [*_OPEN_TAG.finditer(response)][-1:]
    for match in opened or ():
        text = None if truncated else response[match.end() :]
        yield match.start(), len(response), text


def _boxes(response: str) -> Iterator[tuple[int, int, str | None]]:
    """The spans of outermost boxes and what is in them, None if one never closes."""
    opened, boxes = [], 0
    for brace in _BRACE.finditer(response):
        if brace[0] != "}":
            opened.append(brace)
            boxes += brace[0] != "{"
        elif opened and (start := opened.pop())[0] != "{":
            boxes -= 1
            if not boxes:
                yield start.start(), brace.end(), response[start.end() : brace.start()]
    for start in opened:
        if start[0] != "{":
            yield start.start(), start.end(), None


def _last_line(text: str, options: Mapping[str, str]) -> _Mark | None:
    """The last line, if it is an option and no part of a list of them."""
    *_, before, last = ["", "", *(line for line in text.split("\n") if line.strip())]
    start = text.rfind(last)
    mark = _Mark(start, start + len(last), last)
    choice = _CHOICE.fullmatch(_plain(last[:_MAX_CHARS]))
    if not choice or not _letter(mark, options):
        return None
    if before and choice["letter"].islower() and not choice["open"]:
        return None
    other = _CHOICE.fullmatch(_plain(before[:_MAX_CHARS]))
    is_list = other and bool(_bare(other["rest"])) == bool(_bare(choice["rest"]))
    return None if is_list else mark


def _is_denied(before: str) -> bool:
    """Whether what stands before a statement says that it gives no answer."""
    sentence = _SENTENCE_END.split(before)[-1]
    if not _DEPENDS.search(sentence):
        sentence = _CLAUSE_END.split(sentence)[-1]
    return bool(_DENIES.search(sentence))


def _is_quoted(response: str, mark: _Mark, asked: str) -> bool:
    """Whether the mark and what stands before it are words of the question."""
    quote = response[max(mark.start - 30, 0) : mark.end]
    return mark.start > 12 and " ".join(quote.split()) in asked


def _is_taken_back(letter: str, rest: str) -> bool:
    """Whether a response, from its answer on, says that this is not the answer."""
    is_wrong = rf"\b{letter}\b\W{{0,3}}\s*(?:is|was)\s+{_WRONG}"
    is_not = rf"\b[Nn]ot\s+(?:option\s+|choice\s+)?[(*]*{letter}\b"
    if re.search(rf"{is_wrong}|{is_not}", rest):
        return True
    others = rf"(?<![\w'$\\])[{LETTERS.replace(letter, '')}](?![\w'])"
    other = re.search(others, rest)
    that = _I_WAS_WRONG.search(rest)
    if that and not (other and other.start() < that.start()):
        return True
    backs = _TAKES_BACK.finditer(rest)
    return any(re.search(others, rest[m.end() : m.end() + 200]) for m in backs)


def _letter(mark: _Mark, options: Mapping[str, str]) -> str | None:
    """The one letter that a mark names; None if it names none, or may name two."""
    if mark.text is None or (len(mark.text) > _MAX_CHARS and not mark.is_statement):
        return None
    choice = _CHOICE.fullmatch(_plain(mark.text[:_MAX_CHARS]))
    if choice is None or (mark.is_statement and not _begins_with_letter(mark.text)):
        return None
    letter, rest = choice["letter"].upper(), choice["rest"]
    if _is_own(rest, letter, options):
        return letter
    remarks = _REMARK.finditer(rest) if mark.is_statement else ()
    for remark in remarks:
        if _is_own(rest[: remark.start()], letter, options):
            said = rest[remark.start() :]
            return letter if _is_remark(said, letter, options) else None
    return None


def _begins_with_letter(text: str | None) -> bool:
    """Whether a statement may name an option; a small letter may be the article."""
    if text is None:
        return True
    choice = _CHOICE.fullmatch(_plain(text[:_MAX_CHARS]))
    return bool(choice and (choice["open"] or choice["letter"].isupper()))


def _is_own(rest: str, letter: str, options: Mapping[str, str]) -> bool:
    """Whether what follows a letter is nothing, or the text of its option."""
    if not _bare(rest):
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
    names_other = re.search(rf"(?<![\w'$\\])[{others}](?![\w'])", said)
    reason = _REASON.match(said)
    words = said[reason.end() :] if reason else said.lstrip(".!; *_")
    first = re.split(r"[.!?](?:\s|$)", words)[0]
    if any(_is_like(first, options.get(other, "")) for other in others):
        return False
    if reason:
        return not names_other
    # One or two words may be a text that is put otherwise than in the question.
    return len(first.split()) > 2 and not (names_other and _PREFERS.search(said))


def _is_like(said: str, option: str) -> bool:
    """Whether a sentence may be an option's text, or begins with it."""
    said, option = (_key(text).casefold()[:200] for text in (said, option))
    likeness = difflib.SequenceMatcher(None, said, option, autojunk=False)
    # White space is gone, so few letters may be the beginning of a longer word.
    return likeness.ratio() > 0.75 or (len(option) > 3 and said.startswith(option))


def _option_of(text: str, options: Mapping[str, str]) -> str | None:
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


def _bare(rest: str) -> str:
    """What follows a letter, without marks."""
    return rest.strip(_MARKUP + ".,;:!)]}-\u2013\uff1a")


@functools.lru_cache(maxsize=256)
def _key(text: str) -> str:
    """The text of an option without styling and white space, to compare by."""
    text = re.sub(_STYLE, "", _INVISIBLE.sub("", text))
    for spelling, symbol in _SYMBOLS.items():
        text = text.replace(spelling, symbol)
    text = _SUPERSCRIPT.sub(lambda match: "^" + match[0], text)
    text = unicodedata.normalize("NFKC", text)
    return re.sub(r"[\s${}]", "", text).strip(_MARKUP).rstrip(".,;" + _MARKUP)
