"""Finds the modules of optional packages that an environment needs."""

import importlib.metadata
import importlib.util
import re

from packaging.requirements import Requirement


def modules(required_by: str, distribution: str, install: str) -> tuple[str, ...]:
    """The modules of an installed distribution and of all its dependencies.

    Args:
      required_by: the subject of the error message, such as "env.name=mathematics".
      distribution: its name, as pip knows it.
      install: the argument of `pip install` that installs it.

    Raises:
      ValueError: if the distribution or a dependency is missing.
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
                f'{required_by} needs the package {name}: pip install "{install}"'
            ) from error
    importable = [
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if needed & set(map(_normal, owners)) and _is_importable(module)
    ]
    return tuple(sorted(importable))


def _dependencies(distribution: str) -> list[str]:
    """The distributions that it requires on this platform, without extras."""
    required = map(Requirement, importlib.metadata.requires(distribution) or ())
    return [
        r.name for r in required if not r.marker or r.marker.evaluate({"extra": ""})
    ]


def _is_importable(module: str) -> bool:
    """Whether `module` is code; a distribution may also install folders of data."""
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    return spec is not None and spec.origin is not None


def _normal(name: str) -> str:
    """A distribution's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()
