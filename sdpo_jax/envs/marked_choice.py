r"""Which option of a multiple-choice question a response marks as its answer.

A mark is an `<answer>` tag, a `\boxed{}`, a statement ("the answer is (B)", "Final
answer: B", "B is the correct option"), or a last line that is the letter alone or with
the option's text. The last mark decides, even if it names no option or several: what
stands before it was taken back.
"""

import collections
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from sdpo_jax.envs import choice_text
from sdpo_jax.questions import boxed
from sdpo_jax.questions.options import LETTERS

_TAG = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.I | re.DOTALL)
_OPEN_TAG = re.compile(r"<answer>", re.I)
_BRACE = re.compile(rf"{boxed.BOX.pattern}|(?<!\\)[{{}}]")
_STATED = re.compile(
    r"\b(?:ans(?:wer)?|option|choice|(?:correct|right)\s+(?:one|letter))[*_\"']*"
    r"(?:\s+(?:is|(?:would|should|must|will)\s+be)\b[*_]*\s*[:\uff1a]?|\s*[:\uff1a=]"
    r"|\s+[-\u2013\u2014]\s)[*_]*\s*(?=([^\n]{0,1000}))"
    r"|\b(?:I|we)(?:['\u2019](?:ll|d)|\s+w(?:ill|ould))?\s+(?:choose|select|pick|go\s+with)"
    r"\s+(?=([^\n]{0,1000}))"
    r"|^[#*_ \t]*(?:(?:final|correct)[ \t]+)?answer[*_ \t]*\n\s*(?=([^\n]{0,1000}))",
    re.IGNORECASE | re.MULTILINE,
)
_NAMED = re.compile(
    r"(?<![\w'])(?=([(\[*_]{0,4}[A-J][)\]*_]{0,4})\s)\S+\s+is\s+"
    r"(?:(?:therefore|thus|hence|clearly)\s+)?the\s+"
    r"(?:(?:correct|right|best|final|only)\s+)*(?:answer|option|choice)\b"
    r"(?!\s*\?|\s+(?:only|if|unless|except|to\s+another)\b)"
    r"|\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer|(?:[Tt]herefore|[Tt]hus|[Hh]ence|[Ss]o),?)"
    r"\s+([(\[*_]{0,4}[A-J][)\]*_]{0,4})\s+is\s+"
    r"(?:(?:therefore|thus|hence|clearly)\s+)?(?:correct|right)"
    r"(?=[*_]*(?:[.,;!\n]|$|\s+(?:because|since|as|while|whereas)\b))"
)
_OTHER_OR = re.compile(r"\b[A-J]\b\W*(?:or|and|[,/&])\W*$")

# Words in a clause after which a statement gives no answer.
_DENIES = re.compile(
    r"\b(?:wrong|incorrect|not|never|least\s+(?:likely|probable|plausible)|unlikely"
    r"|eliminated?|false|cannot|if|unless|pretend|whether|nobody|no\s+one|rather\s+than|instead\s+of"
    r"|mistaken\w*|tempt\w+|(?<!no )(?<!without )(?<!without a )doubt)\b|n['\u2019]t\b"
    r"|\b(?:suppose|assum\w+)\s+(?:\w+\s+){0,3}$"
    r"|\b(?:says|claims|thinks|believes|argues|guesses)\b"
    r"|\b(?:some|many|most|people|students|they)\s+(?:say|claim|think|believe|argue)\b"
    r"|\b(?:might|may|could)\s+(?:\w+\s+)?(?:think|say|guess|believe|expect)\b",
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
    r"(?:^|[.!?;\n])\W{0,9}(?:actually|wait|no|nope|hmm+|sorry|correction|scratch\s+that"
    r"|on\s+(?:second\s+thought|reflection))\b(?=\s*[,.!:;\u2026\u2014-]|\s+[a-z])",
    re.IGNORECASE,
)
_MOST_STATEMENTS = 100


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
    for before, mark in reversed([*itertools.pairwise([None, *marks])]):
        if _is_quoted(response, mark, asked):
            continue
        if letter := choice_text.letter_of(mark.text, options, mark.is_statement):
            # An option's text without its letter may repeat an answer.
            agrees = named in (None, letter)
            is_one_of_two = before and _joins(before, mark, letter, response)
            taken_back = _is_taken_back(letter, response[mark.start :])
            return letter if agrees and not is_one_of_two and not taken_back else None
        option = choice_text.option_of(mark.text or "", options)
        if option and named in (None, option):
            named = option
        elif option or not mark.is_statement or mark.text is None:
            return None
        elif choice_text.begins_with_letter(mark.text):
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
    for stated in _last(_STATED.finditer(rest)):
        if not _is_denied(rest[max(stated.start() - 200, 0) : stated.start()]):
            text = next(group for group in stated.groups() if group is not None)
            end = stated.end() + len(text)
            is_cut = truncated and end == len(rest)
            yield _Mark(stated.end(), end, None if is_cut else text, True)
    for match in _last(_NAMED.finditer(rest)):
        before = rest[max(match.start() - 200, 0) : match.start()]
        if not _is_denied(before):
            text = match[1] or match[2]
            after = _SENTENCE_END.split(rest[match.end() : match.end() + 200])[0]
            others = LETTERS.replace(text.strip("()[]*_"), "")
            is_one_of_two = _OTHER_OR.search(before) or choice_text.adds(after, others)
            yield _Mark(match.start(), match.end(), None if is_one_of_two else text)
    if not truncated and (last := _last_line(rest, options)):
        yield last


def _last(matches: Iterator[re.Match]) -> Iterable[re.Match]:
    """The last matches: a response that repeats itself may hold thousands."""
    return collections.deque(matches, maxlen=_MOST_STATEMENTS)


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
    choice = choice_text.parts(last)
    if not choice or not choice_text.letter_of(mark.text, options, mark.is_statement):
        return None
    if before and choice["letter"].islower() and not choice["open"]:
        return None
    other = choice_text.parts(before)
    has_text = lambda found: bool(choice_text.bare(found["rest"]))
    is_list = other and has_text(other) == has_text(choice)
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


def _joins(before: _Mark, mark: _Mark, letter: str, response: str) -> bool:
    """Whether one sentence gives another letter too: "the answer is A or it is B"."""
    other = choice_text.parts(before.text or "")
    if not other or other["letter"].upper() == letter:
        return False
    if before.end > mark.start:
        between = response[before.start : mark.start]
        return not re.search(r"[.!?\n]|\b(?:no|wait|actually|but)\b", between)
    between = response[before.end : mark.start]
    return bool(re.fullmatch(r"\W{0,9}(?:\b(?:and|or)\b|[,/&])\W{0,9}", between))


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
