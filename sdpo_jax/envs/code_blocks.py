"""Finds the blocks of fenced code in a response, and which of them is the program.

Fences pair as in CommonMark, and also as models write them: an opening fence may follow
text, code may be indented with its fence, and a closing fence may follow code or have
text after it. A fence inside a string or comment of the code is part of the code.
"""

import builtins
import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence

from sdpo_jax.thinking import answer_of

# A line that opens a block: with anything but backticks after a fence at its start, or
# one word after a fence that follows text.
_OPENING = re.compile(
    r"([ \t>*+\-\ufeff\u200b]*(?:\d+[.)][ \t]+)?)(`{3,}|~{3,})([^`\n]*)\n"
    r"|(?:(?!```)[^\n])*(`{3,})([\w+#.-]*)[ \t]*\n"
)
_FENCE_LINE = re.compile(r"^[ \t]*`{3,}([^`\n]*)$", re.MULTILINE)
_STRING = r'"(?:\\.|[^"\\\n])*"' + r"|'(?:\\.|[^'\\\n])*'"
_TOKEN = re.compile(rf"#[^\n]*|\"\"\"|'''|{_STRING}|`{{3,}}", re.DOTALL)
_LITERAL = re.compile(rf"#[^\n]*|\"\"\".*?\"\"\"|'''.*?'''|{_STRING}", re.DOTALL)

# python3, {.python}, language-py, solution.py; but not python-repl or pycon.
_PYTHON = re.compile(
    r"(?:^|[\s{.:/=]|\blang(?:uage)?-)(?:[ci]?python|pypy|py)[-_]?[\d.]*(?![\w+-])",
    re.IGNORECASE,
)
_LANGUAGE = re.compile(r"[\w.{][^\s*<]*[ \t]*")
_MOST_BLOCKS = 100  # A response that repeats itself may hold thousands.
_PROMPTS = (">>>", "$ ", "% ", "In [", "C:\\")
_READS = re.compile(
    r"\b(?:input|stdin|fileinput)\b"
    r"|\b(?:open|fdopen|read|FileIO|mmap)\(\s*(?:0\b|[\"']/dev/)"
)
_PRINTS = re.compile(r"\bprint\b|\bstdout\b|\bwrite\b")
_TESTS = re.compile(
    r"\b(?:unittest|pytest|doctest|subprocess|monkeypatch)\b|\bpatch\("
    r"|\bstdin\s*=\s*(?:io\.)?StringIO\("
)
# A line that stands for left out code.
_ELISION = re.compile(
    r"^[ \t]*(?:\.\.\.|…)[ \t]*(?:#|$)|^[^#\n]*#[ \t]*(?:\.\.\.|…)|^[^#\n]*#.*"
    r"\b(?:rest of the (?:code|program|function)|same as (?:before|above))\b",
    re.MULTILINE | re.IGNORECASE,
)
_STUB = re.compile(r"^(?:async )?def .*:\s*(?:pass|\.\.\.)\Z", re.MULTILINE)
_DEFINITION = re.compile(r"\b(?:def|class)\s+(\w+)")
_CALL = re.compile(r"(?<![\w.])(\w+)\s*\(")
_OTHER_USE = re.compile(r"(?<![\w.])(\w+)\b(?!\s*\()")


@dataclasses.dataclass(frozen=True)
class Block:
    """A closed block of fenced code.

    Args:
      info: what follows the opening fence, such as "python".
      text: the code, as indented in the response.
      margin: the number of characters before the opening fence.
    """

    info: str
    text: str
    margin: int

    @property
    def is_python(self) -> bool:
        """Whether the block says that it holds a Python program."""
        return _is_python(self.info)


def longest(response: str) -> str | None:
    """The longest block of any language; None without one."""
    texts = [_unindented(block.text, block.margin) for block in _blocks(response)]
    return max(texts, key=len, default=None)


def program(response: str, functions: Sequence[str] = ()) -> str | None:
    """The Python program of a response; None without a closed block.

    A block that defines one of the functions, or else reads and prints, precedes one
    that does not, such as an example, a test or an output. Python precedes a block that
    names no language, and that one every other language. Among several programs the
    last one counts, as the corrected version of a draft, unless it repeats a part of
    another or depends on it. Without any program the longest block counts.

    Args:
      response: what the policy wrote.
      functions: that a program must define; empty for a script.
    """
    blocks = list(_blocks(response))[-_MOST_BLOCKS:]
    candidates = [_Candidate(block, functions) for block in blocks]
    if not candidates:
        return None
    ranks = [
        candidate.rank(candidates[:index] + candidates[index + 1 :], index)
        for index, candidate in enumerate(candidates)
    ]
    text = candidates[ranks.index(max(ranks))].block.text
    first = next(line for line in text.split("\n") if line.strip())
    return _unindented(text, len(first) - len(first.lstrip(" \t")))


class _Candidate:
    """A block that may be the program."""

    def __init__(self, block: Block, functions: Sequence[str]):
        self.block, self.functions = block, functions
        self.language = 2 if block.is_python else 0 if block.info.strip() else 1
        lines = (re.sub(r"#.*", "", line).strip() for line in block.text.split("\n"))
        self.code = "\n".join(line for line in lines if line)
        self.defined = set(_DEFINITION.findall(self.code))

    def rank(self, others: Sequence["_Candidate"], index: int) -> tuple:
        """Greater for what is more likely the program."""
        is_whole = not (
            self._is_fragment()
            or any(map(self._is_part_of, others))
            or self._depends_on(others)
        )
        length = 0 if self.is_program else len(self.block.text)
        known = self.language > 0
        return known, self.is_program, is_whole, self.language, length, index

    @functools.cached_property
    def is_program(self) -> bool:
        """Whether the block does what a program must do."""
        if self.code.startswith(_PROMPTS):
            return False
        if not self.functions:
            does_both = _READS.search(self.code) and _PRINTS.search(self.code)
            return bool(does_both and not _TESTS.search(self.code))
        names = "|".join(map(re.escape, self.functions))
        defines = rf"\bdef\s+(?:{names})\s*\(|^(?:{names})\s*(?::[^=\n]*)?=(?!=)"
        return bool(re.search(defines, self.code, re.MULTILINE))

    def _is_fragment(self) -> bool:
        """Whether code is left out, as in a signature or a changed part."""
        return bool(
            self.code.endswith((":", ",", "(", "[", "{", "\\"))
            or _STUB.search(self.code)
            or _ELISION.search(self.block.text)
        )

    def _is_part_of(self, other: "_Candidate") -> bool:
        """Whether the block repeats a part of another, as explanations do."""
        part, whole = f"\n{self.code}\n", f"\n{other.code}\n"
        if len(part) >= len(whole) or part not in whole:
            return False
        # A session may show all of the program.
        if other.language < self.language:
            return False
        # A script that loses its last lines, such as an example, is a new version.
        is_shorter_script = self.is_program and not self.functions
        return not (is_shorter_script and whole.startswith(part))

    def _depends_on(self, others: Sequence["_Candidate"]) -> bool:
        """Whether the block calls what only another block defines."""
        bare = _LITERAL.sub(" ", self.block.text)
        called = set(_CALL.findall(self.code)) - set(_OTHER_USE.findall(bare))
        called -= self.defined | set(dir(builtins))
        return any(called & other.defined for other in others)


def _blocks(response: str) -> Iterator[Block]:
    """The closed blocks of the answer in a response that are not empty, in order."""
    text = re.sub(r"\r\n?", "\n", answer_of(response))
    position = 0
    while position < len(text):
        opening = _OPENING.match(text, position)
        if not opening:
            position = text.find("\n", position) + 1 or len(text)
            continue
        margin, mark, info, late_mark, late_info = opening.groups()
        margin, mark, info = margin or "", mark or late_mark, info or late_info or ""
        position = opening.end()
        closing = _closing(text, position, mark, info)
        if closing is None:
            continue
        content, position = text[position : closing[0]], closing[1]
        if ">" in margin:
            content = re.sub(r"^[ \t]*> ?", "", content, flags=re.MULTILINE)
            margin = ""
        code, _, indent = content.rpartition("\n")
        content = code + "\n" if code and not indent.strip() else content
        if content.strip():
            yield Block(info, content, len(margin))


def _closing(text: str, start: int, mark: str, info: str) -> tuple[int, int] | None:
    """Where a block ends and where the text goes on after it; None if it is open.

    Args:
      text: the answer.
      start: where the block's code starts.
      mark: the opening fence.
      info: what follows the opening fence.
    """
    if mark[0] == "~":  # Also an operator of Python.
        pattern = re.compile(rf"^[ \t]*~{{{len(mark)},}}[ \t]*$", re.MULTILINE)
        found = pattern.search(text, start)
        return found and found.span()
    position = start
    while token := _TOKEN.search(text, position):
        position = token.end()
        if token[0] in ('"""', "'''"):
            end = text.find(token[0], position)
            if end >= 0 and not _leaves_block(text[position:end]):
                position = end + 3
        elif token[0][0] == "`":
            line = text.rfind("\n", 0, token.start()) + 1
            inner = _inner_info(text, line)
            is_inner = _is_python(inner) and not _is_python(info)
            if len(token[0]) >= len(mark) or is_inner:
                return token.start(), line if inner else position
    return None


def _leaves_block(string: str) -> bool:
    """Whether what looks like a string goes from one block of code to another one."""
    infos = _FENCE_LINE.findall(string)
    return len(infos) % 2 == 1 or bool(infos and infos[-1].strip())


def _inner_info(text: str, line: int) -> str:
    """The info string if a line in a block opens another one; empty if it does not."""
    opening = _OPENING.match(text, line)
    info = (opening and opening[3]) or ""
    return info if _is_python(info) or _LANGUAGE.fullmatch(info) else ""


def _is_python(info: str) -> bool:
    """Whether the first word after a fence, or all in braces, names Python."""
    info = info.strip()
    return bool(_PYTHON.search(info if info[:1] == "{" else info.split(" ")[0]))


def _unindented(text: str, margin: int) -> str:
    """Text whose lines lose up to `margin` spaces or tabs."""
    lines = text.split("\n")
    return "\n".join(line[:margin].lstrip(" \t") + line[margin:] for line in lines)
