"""The README says where things are, as they are."""

import importlib
import re

import pytest

from tests import where

WALK = re.compile(r"`(\w+(?:\.\w+)*)\.(\w+)`")


def test_table_of_the_readme_is_that_of_the_tree():
    assert where.shown() == where.table(), "run: python -m tests.where"


def walk():
    """The functions that the README's walk of one question names."""
    _, _, rest = where.README.read_text().partition("### One question's way\n")
    section = rest.partition("\n#")[0]
    return WALK.findall(section)


@pytest.mark.parametrize("module, name", walk())
def test_walk_of_one_question_names_what_there_is(module, name):
    loaded = importlib.import_module(
        module if module.startswith("pallas_kernels") else f"sdpo_jax.{module}"
    )

    assert hasattr(loaded, name)


def test_walk_goes_from_the_command_to_the_weights():
    modules = [module for module, _ in walk()]

    assert modules[0] == "main" and len(modules) > 10
