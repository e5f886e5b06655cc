"""Kinds of config fields, each with a default, its allowed values and a meaning.

Allowed numbers are sets in mathematical notation: "[0, 1)" contains 0 but not 1, and
"{-1} | [1, 2^20]" is a union. No set contains NaN.
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
      default: has the type that all values must have.
      allowed: a description of the allowed values.
      meaning: what the field controls, with its unit.
      accepts: returns whether a value is allowed.
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
    """A number in a set; an integer if the default is one."""
    accepts = lambda value: _lies_in(value, allowed)
    return Knob(default, f"in {allowed}", meaning, accepts)


def numbers(default: tuple[int, ...], allowed: str, meaning: str) -> Knob:
    """A tuple of numbers in a set."""
    accepts = lambda values: all(_lies_in(value, allowed) for value in values)
    return Knob(default, f"a tuple of numbers in {allowed}", meaning, accepts)


def choice(default: str, allowed: str, meaning: str) -> Knob:
    """One of the words in "a | b | URL", where URL stands for any http(s) URL."""
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
    """A tuple of names."""
    accepts = lambda values: all(isinstance(name, str) for name in values)
    return Knob(default, "a tuple of names", meaning, accepts)


def _lies_in(value: Any, allowed: str) -> bool:
    """Whether a number is in a union of intervals and single numbers."""
    is_number = isinstance(value, int | float)
    return is_number and any(_in_set(value, part) for part in allowed.split(" | "))


def _in_set(value: float, allowed: str) -> bool:
    """Whether a number is in one interval, or is the single number of "{-1}"."""
    if single := re.fullmatch(r"\{(\S+)\}", allowed):
        return value == _read(single[1])
    left, low, high, right = _INTERVAL.fullmatch(allowed).groups()
    above = value >= _read(low) if left == "[" else value > _read(low)
    below = value <= _read(high) if right == "]" else value < _read(high)
    return above and below


def _read(text: str) -> float:
    """The number in a text such as "0.5" or "2^20"; exact for the powers used here."""
    base, _, exponent = text.partition("^")
    return float(base) ** float(exponent or 1)
