"""Parses the tokens of one expression as a tree; refuses whatever is not clear."""

from collections.abc import Sequence
from fractions import Fraction

from sdpo_jax.mathematics.tokens import Token, text_of
from sdpo_jax.mathematics.trees import (
    MINUS_ONE,
    Tree,
    joined,
    negative,
    number,
    root,
    symbol,
)

_GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma"
    " tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega"
    " ell hbar".split()
)
_CONSTANTS = {"pi": "pi", "infty": "infinity"}
_INVERSE = {name: f"arc{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc")}
_FUNCTIONS = frozenset(
    [*_INVERSE, *_INVERSE.values(), "ln", "exp", "sinh", "cosh", "tanh", "log"]
)
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_OF_MANY = frozenset(("gcd", "lcm", "max", "min"))
# Commands that make a name of what they stand over or before.
_NAMING = frozenset(
    "overline vec hat tilde overrightarrow overleftrightarrow underline angle triangle"
    " measuredangle".split()
)
_CLOSING = {"(": ")", "{": "}", "|": "|", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
_ENDS = ("+", "-", ")", "]", "}", "|", "\\rfloor", "\\rceil", "")
MAX_DEPTH = 40  # Of brackets, fractions and roots within each other.
_END = Token("end", "")


class UnclearError(ValueError):
    """An expression that could be read in more than one way, or in none."""


def parse(tokens: Sequence[Token], plain: bool) -> Tree:
    """The tree of an expression.

    Args:
      tokens: all of the expression.
      plain: whether its answer is written without LaTeX.

    Raises:
      UnclearError: if any part of it is not understood.
    """
    reader = _Reader(list(tokens), plain)
    tree = reader.whole()
    reader.expect(None)
    return tree


class _Reader:
    """Reads an expression from left to right."""

    def __init__(self, tokens: list[Token], plain: bool):
        self._left, self._plain, self._depth = tokens[::-1], plain, 0
        self._before = _END
        # How many bars are open: the next one closes the last of them.
        self._bars = 0

    def _next(self) -> Token:
        return self._left[-1] if self._left else _END

    def _take(self) -> Token:
        self._before = self._left.pop() if self._left else _END
        return self._before

    def _is(self, *texts: str) -> bool:
        return self._next().kind != "letters" and self._next().text in texts

    def expect(self, text: str | None) -> None:
        """Take the mark; None for the end."""
        token = self._take()
        if token.text != (text or ""):
            raise UnclearError(f"{token.text!r} where {text!r} is expected")

    def whole(self) -> Tree:
        r"""All in a bracket: a sum, or a binomial coefficient as {n \choose k}."""
        tree = self.sum()
        if not self._is("\\choose"):
            return tree
        self._take()
        return ("call", "binomial", tree, self.sum())

    def sum(self) -> Tree:
        """An expression up to a mark that ends it."""
        terms = []
        while not terms or self._is("+", "-"):
            sign = self._take().text if self._is("+", "-") else "+"
            term = self._term()
            terms.append(negative(term) if sign == "-" else term)
        return joined("sum", terms)

    def _term(self) -> Tree:
        """A product of signs, factors and quotients."""
        tree, over = self._signed(), False
        while True:
            if self._is("*"):
                self._take()
                tree, over = joined("product", [tree, self._signed()]), False
            elif self._is("/"):
                self._take()
                tree, over = ("quotient", tree, self._signed()), True
            elif self._starts_factor():
                # 1/2x is unclear, and so is x2, but 3!4! is not.
                is_number = self._next().kind == "number"
                if over or (is_number and self._before.text != "!"):
                    raise UnclearError("a factor without a sign of multiplication")
                is_braced, factor = self._is("{"), self._power()
                if is_braced and factor[0] == "number":
                    raise UnclearError("{7}{8}, which is printed as 78")
                tree = joined("product", [tree, factor])
            else:
                return tree

    def _signed(self) -> Tree:
        is_negative = False
        while self._is("-", "+"):
            is_negative ^= self._take().text == "-"
        tree = self._power()
        return negative(tree) if is_negative else tree

    def _starts_factor(self) -> bool:
        token = self._next()
        if token.kind == "mark":
            return token.text in "({" or (token.text == "|" and not self._bars)
        ends = token.text in ("\\rfloor", "\\rceil", "\\choose")
        return token.kind != "end" and not ends

    def _power(self) -> Tree:
        first = self._next()
        tree = self._atom()
        capital = first.kind == "letters" and first.text.isupper()
        if self._is("!"):
            self._take()
            tree = ("call", "factorial", tree)
        if self._is("^"):
            self._take()
            exponent = self._exponent()
            # The inverse of a matrix or a function; products of those do not commute.
            if capital and exponent == MINUS_ONE:
                raise UnclearError("an inverse")
            tree = ("power", tree, exponent)
        if self._is("!", "^", "_", "'"):
            raise UnclearError(f"{self._next().text} after a power or factorial")
        return tree

    def _exponent(self) -> Tree:
        read = self._atom if self._plain else self._argument
        if self._is("-"):
            self._take()
            return negative(read())
        tree = read()
        if tree[0] == "symbol" and tree[1][0].isupper():
            raise UnclearError("a name as exponent")
        return tree

    def _argument(self) -> Tree:
        """What LaTeX takes as argument: a group, a digit, a letter or a command."""
        token = self._next()
        if token.kind == "number" and len(token.text) > 1:
            if not token.text.isdigit():
                raise UnclearError("a number without braces")
            self._left[-1] = token._replace(text=token.text[1:], spaced=False)
            return ("number", Fraction(int(token.text[0])))
        if token.kind == "letters" and len(token.text) > 1:
            self._left[-1] = token._replace(text=token.text[1:])
            return symbol(token.text[0])
        if token.kind == "letters" or token.kind == "number":
            token = self._take()
            return symbol(token.text) if token.kind == "letters" else number(token.text)
        if self._is("{") or token.kind == "command":
            return self._atom()
        raise UnclearError("no argument")

    def _atom(self) -> Tree:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnclearError("too many brackets")
        token = self._take()
        if token.kind == "number":
            tree = self._number(token)
        elif token.kind == "letters":
            tree = self._letters(token)
        elif token.text in _CLOSING:
            tree = self._bracketed(token.text)
        elif token.kind == "command":
            tree = self._command(token.text[1:])
        elif token.text == "[" and self._next().text.isupper():
            tree = ("symbol", f"[{self._take().text}]")
            self.expect("]")
        else:
            raise UnclearError(f"{token.text!r} begins nothing")
        self._depth -= 1
        return tree

    def _bracketed(self, start: str) -> Tree:
        self._bars += start == "|"
        bars = self._bars
        if start != "|":
            self._bars = 0
        tree = self.whole()
        self._bars = bars - (start == "|")
        self.expect(_CLOSING[start])
        names = {"|": "abs", "\\lfloor": "floor", "\\lceil": "ceiling"}
        return ("call", names[start], tree) if start in names else tree

    def _number(self, token: Token) -> Tree:
        if self._is("\\overline", "\\dot"):
            return self._repeating(token.text)
        if self._is("_"):
            self._take()
            return ("symbol", f"{token.text} in base {text_of(self._group())}")
        tree = number(token.text)
        if self._next().kind == "letters" and self._next().text in _SCALES:
            scale = number(f"1E{_SCALES[self._take().text]}")
            return joined("product", [tree, scale])
        if not token.text.isdigit():
            return tree
        part = self._part_of_mixed()
        return ("sum", tree, part) if part else tree

    def _part_of_mixed(self) -> Tree | None:
        r"""The fraction of a mixed number, as in 2\frac12 or 2 1/2, if one follows."""
        kept = list(self._left)
        if self._is("\\frac"):
            part = self._atom()
            numbers = all(x[0] == "number" for x in part[1:])
            if numbers and part[1][1] < part[2][1] and part[1][1] > 0:
                return part
        elif self._next().kind == "number" and self._next().spaced:
            top, slash, bottom = (self._take().text for _ in range(3))
            if slash == "/" and top.isdigit() and bottom.isdigit():
                if 0 < int(top) < int(bottom):
                    return ("quotient", number(top), number(bottom))
        self._left = kept
        return None

    def _repeating(self, start: str) -> Tree:
        """A decimal whose last digits, under a bar, repeat."""
        self._take()
        digits = "".join(token.text for token in self._group())
        if "." not in start or not digits.isdigit():
            raise UnclearError("a bar over what is not the end of a decimal")
        decimals = len(start.partition(".")[2])
        tail = Fraction(int(digits), 10**decimals * (10 ** len(digits) - 1))
        return ("number", Fraction(start.rstrip(".")) + tail)

    def _group(self) -> list[Token]:
        """The tokens of an argument that makes up a name."""
        if not self._is("{"):
            token = self._take()
            if token.kind in ("letters", "number") and len(token.text) > 1:
                if not self._plain and not token.upright:
                    self._left.append(token._replace(text=token.text[1:]))
                    return [token._replace(text=token.text[0])]
            return [token]
        return self._inside("{", "}")

    def _inside(self, start: str, end: str) -> list[Token]:
        """The tokens in a bracket."""
        self.expect(start)
        inside, depth = [], 1
        while True:
            token = self._take()
            depth += (token.text == start) - (token.text == end)
            if token is _END:
                raise UnclearError("a bracket never closes")
            if depth == 0:
                return inside
            inside.append(token)

    def _letters(self, token: Token) -> Tree:
        text = token.text
        if text in _FUNCTIONS or text in _OF_MANY:
            return self._function(text)
        if text == "sqrt" and self._is("(", "{"):
            return root(self._atom())
        if text == "pi" and self._plain:
            return ("constant", "pi")
        if len(text) == 1:
            return self._named(text)
        if len(text) == 2 and text.islower() and not token.upright:
            self._left.append(token._replace(text=text[1]))
            return self._named(text[0]) if self._plain else symbol(text[0])
        if len(text) == 2 and text.isupper():
            return self._named(text)
        raise UnclearError(f"{text} is no product")

    def _named(self, name: str) -> Tree:
        """A symbol with its subscript and its primes."""
        whole = name
        if self._is("_"):
            self._take()
            whole += f"_{text_of(self._group())}"
        while self._is("'"):
            whole += self._take().text
        # f(x) is no product, in which f(2) would be half of f(4).
        if name in ("f", "g") and self._is("("):
            whole += f"({text_of(self._inside('(', ')'))})"
        return symbol(whole)

    def _command(self, name: str) -> Tree:
        if name in _GREEK:
            return self._named(f"\\{name}")
        if name in _CONSTANTS:
            return ("constant", _CONSTANTS[name])
        if name == "frac":
            return ("quotient", self._argument(), self._argument())
        if name == "binom":
            return ("call", "binomial", self._argument(), self._argument())
        if name == "sqrt":
            return self._root_of()
        if name in _FUNCTIONS or name in _OF_MANY:
            return self._function(name)
        if name in _NAMING:
            return ("symbol", f"\\{name} {text_of(self._group())}")
        raise UnclearError(f"\\{name} is not known")

    def _root_of(self) -> Tree:
        degree = None
        if self._is("["):
            self._take()
            degree = self.sum()
            self.expect("]")
        return root(self._argument(), degree)

    def _function(self, name: str) -> Tree:
        base, exponent = (), None
        if name in _OF_MANY:
            return ("call", name, *self._arguments())
        if name == "log" and self._is("_"):
            self._take()
            base = (self._argument(),)
        if self._is("^"):
            self._take()
            exponent = self._exponent()
            if exponent == MINUS_ONE and name in _INVERSE:
                name, exponent = _INVERSE[name], None
            elif exponent[0] != "number" or exponent[1] < 1:
                raise UnclearError("the exponent of a function")
        tree = ("call", name, self._operand(), *base)
        return ("power", tree, exponent) if exponent else tree

    def _arguments(self) -> list[Tree]:
        self.expect("(")
        found = [self.sum()]
        while self._is(","):
            self._take()
            found.append(self.sum())
        self.expect(")")
        return found

    def _operand(self) -> Tree:
        r"""What a function is of: \sin 2x is clear, \sin 2x y and \ln 2 \cdot 3 not."""
        if self._is("(", "|"):
            return self._atom()
        factors = []
        if self._next().kind == "number":
            factors.append(number(self._take().text))
        is_group = self._is("\\frac", "\\sqrt") or (self._is("{") and not factors)
        is_letter = self._next().kind == "letters" and len(self._next().text) == 1
        if is_group or is_letter:
            factors.append(self._atom())
        if self._next().kind == "command" and self._next().text[1:] in _GREEK | {"pi"}:
            factors.append(self._atom())
        following = self._next().text.lstrip("\\")
        if not factors or (following not in _FUNCTIONS and not self._is(*_ENDS)):
            raise UnclearError("where the argument of a function ends")
        return joined("product", factors)
