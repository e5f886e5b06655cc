"""METRICS.md explains what a run writes, and nothing else."""

import ast
import functools
import pathlib
import re

import pytest

from tests import metric_names

PACKAGE = pathlib.Path(__file__).parents[1] / "sdpo_jax"


@functools.cache
def texts():
    """Every string literal of the package, also within f-strings."""
    trees = [ast.parse(file.read_text()) for file in PACKAGE.rglob("*.py")]
    nodes = [n for t in trees for n in ast.walk(t) if isinstance(n, ast.Constant)]
    return {node.value for node in nodes if isinstance(node.value, str)}


@pytest.mark.parametrize("name", metric_names.names())
def test_every_name_of_the_page_is_written_somewhere(name):
    # What a run fills in is left out: a split, a number, a measurement.
    parts = [part for part in re.split("<[^>]+>/?", name) if part]

    assert parts and all(any(part in text for text in texts()) for part in parts)


def test_no_name_is_explained_twice():
    names = metric_names.names()

    assert len(names) > 30 and len(set(names)) == len(names)


def test_a_name_without_an_explanation_is_found():
    written = ["step", "loss", "heldout/pass@16", "env/mine", "rollout/lost", "lossy"]

    assert metric_names.unexplained(written) == ["rollout/lost", "lossy"]
