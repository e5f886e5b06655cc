"""Packages that an environment needs and an installation may lack."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path


def folders(wanted_by: str, modules: Sequence[str], install: str) -> list[str]:
    """Where these modules lie, without importing one.

    Args:
      wanted_by: what needs them, as a message says it.
      modules: their top-level names.
      install: what `pip install` is to be given for them.

    Raises:
      ValueError: if one is missing.
    """
    specs = {name: importlib.util.find_spec(name) for name in modules}
    if missing := [name for name, spec in specs.items() if spec is None]:
        raise ValueError(
            f'{wanted_by} needs the module {missing[0]}: pip install "{install}"'
        )
    # A module that is a single file lies right in its folder.
    places = [
        Path(spec.origin).parents[bool(spec.submodule_search_locations)]
        for spec in specs.values()
    ]
    return sorted(set(map(str, places)))
