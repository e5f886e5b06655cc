"""The worked example of sdpo_jax/envs/README.md, run as it stands there."""

import functools
import pathlib
import re

import jax
import pytest

from sdpo_jax import distributed, json_files, metrics
from sdpo_jax.envs.base import GraderFailure
from sdpo_jax.questions import rows
from sdpo_jax.questions.question import Question

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def example():
    text = (ROOT / "sdpo_jax" / "envs" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    scope = {}
    exec(code, scope)
    return scope


@pytest.mark.parametrize(
    "response, score, feedback",
    [
        ("silent", 1, ""),
        (" silent\n", 1, ""),
        ("tinsel", 0.5, "Unused letters: none"),
        ("sile", 0.5 * 4 / 6, "Unused letters: t n"),
        ("<|im_end|>", 0.5 * 3 / 6, "You wrote < |im_end| >"),
    ],
)
def test_example_grades_and_explains(example, tmp_path, response, score, feedback):
    splits = rows.load_splits(example["write"](tmp_path), example["data"])
    environment = example["SingleTurn"](splits, example["grade"])
    question = environment.questions("train")[0]

    verdict = environment.start(question).act(response, False)

    assert verdict.score == pytest.approx(score)
    assert feedback in verdict.feedback


def test_example_says_nothing_of_what_it_cannot_grade(example):
    with pytest.raises(GraderFailure):
        example["grade"](Question("1", "?", data={"word": "zzz"}), "x", False)


@pytest.mark.slow
def test_example_trains(example, tmp_path, monkeypatch):
    one = functools.partial(distributed.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(distributed, "make_mesh", one)

    example["main"](str(ROOT / "experiments" / "quickstart" / "base"), tmp_path)

    attempts = list(json_files.read_lines(tmp_path / "run" / metrics.ATTEMPTS))
    told = [a for a in attempts if a["outcome"] == "Wrong Answer" and a["reprompt"]]
    assert told and all(a["feedback"] in a["reprompt"] for a in told)
