"""Config fields that are templates: texts in which `str.format` replaces names.

A misspelt name or a lone brace would otherwise end a run at its first batch.
"""

import dataclasses
import string
from collections.abc import Mapping
from typing import Any

from sdpo_jax.knobs import Knob


@dataclasses.dataclass(frozen=True)
class Template(Knob):
    """A text in which `str.format` replaces names in braces.

    Args:
      placeholders: the names that it may hold; it must hold the first.
    """

    placeholders: tuple[str, ...]

    def check(self, field: str, value: Any) -> None:
        """Refuse a text that cannot be filled in, before anything is compiled.

        Raises:
          ValueError: names the field, what is wrong in the text, and what is allowed.
        """
        super().check(field, value)
        if fault := self._fault(value):
            raise ValueError(f"{field}: {fault}; must be {self.allowed}")

    def _fault(self, value: str) -> str:
        """What is wrong in a template; empty if nothing is."""
        try:
            replaced = _replaced(value)
        except ValueError as error:
            return str(error)
        allowed = [f"{{{name}}}" for name in self.placeholders]
        if unknown := [part for part in replaced if part not in allowed]:
            return f"{unknown[0]} is no placeholder"
        return "" if allowed[0] in replaced else f"{allowed[0]} is missing"


def _replaced(template: str) -> list[str]:
    """What `str.format` would replace, braces included; raises for a lone brace."""
    return [
        "{" + name + f"!{conversion}" * bool(conversion) + f":{spec}" * bool(spec) + "}"
        for _, name, spec, conversion in string.Formatter().parse(template)
        if name is not None
    ]


def template(default: str, placeholders: tuple[str, ...], meaning: str) -> Template:
    """A text with placeholders, of which the first is required."""
    first, *others = (f"{{{name}}}" for name in placeholders)
    allowed = f"a text with {first}" + f" and {', '.join(others)}" * bool(others)
    allowed += "; a brace that stands for itself is written twice: {{ or }}"
    accepts = lambda value: isinstance(value, str)
    return Template(default, allowed, meaning, accepts, placeholders)


def check_shown(reprompt: Mapping[str, Any]) -> None:
    """Refuse a template without a place for what the other fields show.

    Args:
      reprompt: the config's subtree of that name, with valid fields.

    Raises:
      ValueError: names the placeholder and the field that shows it.
    """
    # Placeholder -> the field that shows it, and the value with which it is unused.
    uses = {
        "solution": ("demonstration_from", "nobody"),
        "attempt": ("show_attempt", False),
        "feedback": ("show_feedback", "never"),
    }
    placeholders = _replaced(reprompt["template"])
    for name, (field, unused) in uses.items():
        if reprompt[field] != unused and f"{{{name}}}" not in placeholders:
            raise ValueError(
                f"reprompt.template has no {{{name}}}, which reprompt.{field}="
                f"{reprompt[field]} shows; add it, or set reprompt.{field}={unused}"
            )
