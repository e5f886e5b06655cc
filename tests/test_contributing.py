"""The examples of CONTRIBUTING.md, put where they belong in a copy of the package."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from sdpo_jax import json_files
from tests import compiling

ROOT = pathlib.Path(__file__).parents[1]
# Example -> the table that its entry goes into, and how the table begins.
TABLES = {
    "reinforce": ("methods/__init__.py", "METHODS: dict[str, Method] = {\n"),
    "word_count": ("envs/__init__.py", "TASKS = {\n"),
    "counted": ("questions/sources.py", "SOURCES: Mapping[str, SourceKind] = {\n"),
}
KNOBS = ("config.py", "METHODS = {\n")


def blocks():
    return re.findall(
        r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S
    )


@pytest.fixture
def package(tmp_path):
    """A copy of the packages with the three files, their entries and their imports."""
    for name in ("sdpo_jax", "pallas_kernels"):
        shutil.copytree(ROOT / name, tmp_path / name)
    files = [block for block in blocks() if block.startswith("# sdpo_jax/")]
    entries = [block for block in blocks() if block.startswith('    "')]
    for text in files:
        path, _, code = text.removeprefix("# ").partition("\n")
        assert not (tmp_path / path).exists()
        (tmp_path / path).write_text(code)
    for name, (path, table) in TABLES.items():
        (entry,) = [
            e for e in entries if f"{name}.{name and ''}" in e or f" {name}." in e
        ]
        add(tmp_path / "sdpo_jax" / path, table, entry)
        folder = path.split("/")[0]
        text = (tmp_path / "sdpo_jax" / path).read_text()
        line = f"from sdpo_jax.{folder} import {name}\n"
        first = re.search(r"^from sdpo_jax", text, re.M).start()
        (tmp_path / "sdpo_jax" / path).write_text(text[:first] + line + text[first:])
    (knobs,) = [e for e in entries if "number(" in e]
    add(tmp_path / "sdpo_jax" / KNOBS[0], KNOBS[1], knobs)
    return tmp_path


def add(file, table, entry):
    text = file.read_text()
    assert text.count(table) == 1, file
    file.write_text(text.replace(table, table + entry))


def command():
    """The command that CONTRIBUTING.md shows."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (shown,) = re.findall(r"^    (python -m (?:.*\\\n)*.*)", text, re.MULTILINE)
    return [sys.executable, *shlex.split(shown.replace("\\\n", " "))[1:]]


def test_method_task_and_source_of_the_examples_train(package):
    shutil.copytree(ROOT / "configs", package / "configs")
    for folder in ("base", "questions"):
        path = pathlib.Path("experiments", "quickstart", folder)
        shutil.copytree(ROOT / path, package / path)

    done = subprocess.run(
        [*command(), "--config.train.updates=2", "--json"],
        cwd=package,
        env=os.environ | {"PYTHONPATH": str(package), "XLA_FLAGS": compiling.flags(1)},
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["updates"] == 2
    attempts = list(json_files.read_lines(package / "runs/mine/attempts.jsonl"))
    assert len(attempts) == 2 * 8 * 8
    wrong = [a for a in attempts if a["outcome"] == "Wrong Answer"]
    assert all(a["feedback"].startswith("Expected 2 words, got") for a in wrong)
    lines = list(json_files.read_lines(package / "runs/mine/metrics.jsonl"))
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert all("entropy" in line and "sampler_gap" not in line for line in lines[1:])
