"""Fields of a config.json, read with their types checked and remembered as read."""

import math
from collections.abc import Mapping
from typing import Any


class Fields:
    """One object of a config.json. A field that is null counts as missing.

    Args:
      values: the object.
      prefix: of its fields' names in messages, like "rope_scaling.".
    """

    def __init__(self, values: Mapping[str, Any], prefix: str = ""):
        self._values, self._prefix = values, prefix
        self._read: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """The field's value as it stands; `default` if it is missing."""
        self._read.add(name)
        value = self._values.get(name)
        return default if value is None else value

    def unread(self) -> dict[str, Any]:
        """The fields that are given and that nothing has asked for, by full name."""
        return {
            self.name(name): value
            for name, value in self._values.items()
            if name not in self._read and value is not None
        }

    def name(self, name: str) -> str:
        """A field's name as messages have it."""
        return self._prefix + name

    def positive(self, name: str, default: int | None = None) -> int:
        """A positive integer; without a default the field must be there."""
        value = self._present(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(name, "is no positive integer")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite number; without a default the field must be there."""
        value = self._present(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, "is no number")
        if not 0 < value < math.inf:
            raise self.error(name, "is no positive number")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        """True or false; `default` if the field is missing."""
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "is neither true nor false")
        return value

    def object(self, name: str) -> "Fields | None":
        """An object with fields of its own; None if it is missing or empty."""
        value = self.get(name, {})
        if not isinstance(value, dict):
            raise self.error(name, "is no object with fields")
        return Fields(value, f"{self.name(name)}.") if value else None

    def only(self, name: str, supported: Any) -> None:
        """Refuse every value but the supported one, which is also meant by none."""
        value = self.get(name, supported)
        if value != supported:
            only = "" if supported is None else f", only {supported!r}"
            raise self.error(name, f"is not supported{only}")

    def error(self, name: str, fault: str) -> ValueError:
        """What to raise about a field's value."""
        value = self._values.get(name)
        quoted = isinstance(value, str) and fault.startswith("is no")
        hint = "; write it without quotes" if quoted and _is_number(value) else ""
        shown = repr(value) if len(repr(value)) <= 80 else f"{value!r:.77}..."
        return ValueError(f"config.json: {self.name(name)}={shown} {fault}{hint}")

    def _present(self, name: str, default: Any) -> Any:
        value = self.get(name, default)
        if value is None:
            raise ValueError(f"config.json: the field {self.name(name)!r} is missing")
        return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
