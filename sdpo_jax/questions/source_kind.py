"""A kind of source: how its rows are read, and which options its addresses have."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Address:
    """The parsed address of a source, such as "hf:NAME?split=train&where.level=3".

    Args:
      text: the address as written in the config, for messages.
      kind: a key of `sources.SOURCES`, such as "hf".
      name: the text between the kind and the question mark.
      options: the options after the question mark, without the filters.
      filters: field -> the text that it must have in a row that is used.
    """

    text: str
    kind: str
    name: str
    options: Mapping[str, str]
    filters: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class SourceKind:
    """One kind of source.

    Args:
      read: maps an address to its rows, one mapping each; raises ValueError with a
        message of one line.
      options: names of the options that an address may have, in addition to `convert`
        and `where.FIELD`.
      needs: names of the options that it must have.
      contents: maps an address to what it reads, each with a digest or a revision; a
        run that resumes refuses others. Empty where that is not known.
    """

    read: Callable[[Address], Iterable[Any]]
    options: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    contents: Callable[[Address], Mapping[str, str]] = lambda address: {}


def load_or_raise(address: Address, load: Callable[[], Any]) -> Any:
    """The result of `load()`; any error becomes a ValueError of one line."""
    try:
        return load()
    # The libraries raise many types, which differ between versions.
    except Exception as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{address.text}: {message:.1000}") from error
