"""Packages that an environment needs and an installation may lack."""

import importlib.metadata
import importlib.util
import re

from packaging.requirements import Requirement


def modules(wanted_by: str, distribution: str, install: str) -> tuple[str, ...]:
    """The modules of an installed distribution and of all that it depends on.

    Args:
      wanted_by: what needs it, as a message says it.
      distribution: its name, as pip knows it.
      install: what `pip install` is to be given for it.

    Raises:
      ValueError: if it, or what it depends on, is missing.
    """
    needed, waiting = set(), [distribution]
    while waiting:
        name = _normal(waiting.pop())
        if name in needed:
            continue
        needed.add(name)
        try:
            waiting += _dependencies(name)
        except importlib.metadata.PackageNotFoundError as error:
            raise ValueError(
                f'{wanted_by} needs the package {name}: pip install "{install}"'
            ) from error
    found = [
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if needed & set(map(_normal, owners)) and _is_importable(module)
    ]
    return tuple(sorted(found))


def _dependencies(distribution: str) -> list[str]:
    """What it requires here, without its extras."""
    required = map(Requirement, importlib.metadata.requires(distribution) or ())
    return [
        r.name for r in required if not r.marker or r.marker.evaluate({"extra": ""})
    ]


def _is_importable(module: str) -> bool:
    """Whether it is code; a distribution may also bring folders of other things."""
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    return spec is not None and spec.origin is not None


def _normal(name: str) -> str:
    """A distribution's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()
