"""The README's example of an environment of one's own, run as it stands there."""

import ast
import functools
import pathlib
import re

import jax
import pytest

from sdpo_jax import distributed, json_files, metrics

ROOT = pathlib.Path(__file__).parents[1]
FIRST_LINE = "# An environment of one's own: "


def example():
    """The code under `## From a notebook`."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    found = [block for block in blocks if block.startswith(FIRST_LINE)]
    assert len(found) == 1, f"README.md: one python block must open with {FIRST_LINE!r}"
    return found[0]


def test_environment_of_the_readme_is_about_ten_lines():
    classes = [n for n in ast.parse(example()).body if isinstance(n, ast.ClassDef)]

    (environment,) = classes

    assert environment.end_lineno - environment.lineno < 15


@pytest.mark.slow
def test_example_of_the_readme_trains(tmp_path, monkeypatch):
    one = functools.partial(distributed.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(distributed, "make_mesh", one)
    monkeypatch.chdir(ROOT)
    code = example()
    assert code.count('"runs/sums"') == 1
    scope = {}

    exec(code.replace('"runs/sums"', repr(str(tmp_path / "run"))), scope)

    assert scope["summary"]["updates"] == 2
    assert set(scope["summary"]["best"]["heldout"]) >= {"avg@16", "pass@1"}
    attempts = list(json_files.read_lines(tmp_path / "run" / metrics.ATTEMPTS))
    assert len(attempts) == 2 * 4 * 8
    wrong = [a for a in attempts if a["outcome"] == "Wrong Answer"]
    assert wrong and all(a["feedback"].startswith("Expected ") for a in wrong)
    # What the environment said is what the teacher reads.
    assert any(a["feedback"] in a["reprompt"] for a in wrong if a["reprompt"])
