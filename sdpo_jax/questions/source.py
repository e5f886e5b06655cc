"""What a kind of source is: how its rows are read, and which options it takes."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Address:
    """Where questions are, as the config says it, taken apart.

    Args:
      text: as it stands in the config, for messages.
      kind: of source, as in `sources.SOURCES`.
      name: what stands between the kind and the question mark.
      options: what follows the question mark.
      wanted: field -> the text that a row must hold there to be used.
    """

    text: str
    kind: str
    name: str
    options: Mapping[str, str]
    wanted: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Source:
    """One kind of source.

    Args:
      read: an address to its rows, one mapping each; raises ValueError in one line.
      options: names of options that an address may give, beside `convert` and `where.`.
      needs: names of options that it must give.
    """

    read: Callable[[Address], Iterable[Any]]
    options: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()


def in_one_line(address: Address, load: Callable[[], Any]) -> Any:
    """What `load` returns; whatever it raises becomes a ValueError of one line."""
    try:
        return load()
    # Of many types, which differ with the library's version.
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{address.text}: {message:.1000}") from error
