"""Kinds of config fields: each holds a default, what else is allowed, and a meaning.

Numbers are allowed by sets in mathematical notation: "[0, 1)" holds 0 and not 1, and
"{-1} | [1, 2^20]" is a union. NaN lies in none of them.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

_INTERVAL = re.compile(r"([\[(])(\S+), (\S+)([\])])")
_URL = re.compile(r"https?://\S+")


@dataclasses.dataclass(frozen=True)
class Knob:
    """One field of the config.

    Args:
      default: of the type that all its values have.
      allowed: what a value must be, in words.
      meaning: what the field decides, with its unit.
      accepts: whether a value is allowed.
    """

    default: Any
    allowed: str
    meaning: str
    accepts: Callable[[Any], bool]

    def check(self, field: str, value: Any) -> None:
        """Refuse a value that is not allowed, in one line.

        Raises:
          ValueError: names field, value, what is allowed and the meaning.
        """
        if not self.accepts(value):
            raise ValueError(
                f"{field}={value!r}: must be {self.allowed}; meaning: {self.meaning}"
            )


def number(default: int | float, allowed: str, meaning: str) -> Knob:
    """A number of a set; whole when the default is."""
    accepts = lambda value: _lies_in(value, allowed)
    return Knob(default, f"in {allowed}", meaning, accepts)


def numbers(default: tuple[int, ...], allowed: str, meaning: str) -> Knob:
    """A tuple of numbers, each of them in a set."""
    accepts = lambda values: all(_lies_in(value, allowed) for value in values)
    return Knob(default, f"a tuple of numbers in {allowed}", meaning, accepts)


def choice(default: str, allowed: str, meaning: str) -> Knob:
    """One of the words in "one | other"; URL among them stands for any http(s) URL."""
    words = allowed.split(" | ")

    def accepts(value: Any) -> bool:
        is_url = "URL" in words and bool(_URL.fullmatch(str(value)))
        return is_url or (value in words and value != "URL")

    return Knob(default, f"one of {allowed}", meaning, accepts)


def flag(default: bool, meaning: str) -> Knob:
    """True or false."""
    accepts = lambda value: isinstance(value, bool)
    return Knob(default, "True or False", meaning, accepts)


def text(default: str, meaning: str) -> Knob:
    """Any text."""
    return Knob(default, "text", meaning, lambda value: isinstance(value, str))


def names(default: tuple[str, ...], meaning: str) -> Knob:
    """A tuple of words."""
    accepts = lambda values: all(isinstance(name, str) for name in values)
    return Knob(default, "a tuple of names", meaning, accepts)


def _lies_in(value: Any, allowed: str) -> bool:
    """Whether a number lies in a union of intervals and of single numbers."""
    is_number = isinstance(value, int | float)
    return is_number and any(_in_part(value, part) for part in allowed.split(" | "))


def _in_part(value: float, part: str) -> bool:
    if single := re.fullmatch(r"\{(\S+)\}", part):
        return value == _read(single[1])
    left, low, high, right = _INTERVAL.fullmatch(part).groups()
    above = value >= _read(low) if left == "[" else value > _read(low)
    below = value <= _read(high) if right == "]" else value < _read(high)
    return above and below


def _read(written: str) -> float:
    """The number written as "0.5" or "2^20"; exact for the powers of two here."""
    base, _, exponent = written.partition("^")
    return float(base) ** float(exponent or 1)
