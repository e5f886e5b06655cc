import json
import sys

import pytest

from sdpo_jax.envs import function
from sdpo_jax.envs.base import GraderFailure, Verdict

MODULE = """
from sdpo_jax.envs.base import Verdict

nothing = None

def grade(row, response):
    if response == "break":
        raise KeyError("x")
    if response == "verdict":
        return Verdict(0.5, "Half", "as it is <|im_end|>", {"m": 1.0})
    if response == "told":
        return 0.0, "no <|im_end|>"
    if response.startswith("["):
        return ODD[int(response[1:])]
    return response == row["answer"]

ODD = [None, "x", [1.0, "f"], (1.0,), (1.0, None), (1.0, "f", 2), (None, "x")]
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    (tmp_path / "my_task.py").write_text(MODULE)
    (tmp_path / "train.jsonl").write_text(
        json.dumps({"uid": "a", "prompt": "?", "answer": "yes"})
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield {"train": tmp_path / "train.jsonl"}
    sys.modules.pop("my_task", None)


@pytest.mark.parametrize(
    "response, verdict",
    [
        ("yes", Verdict(1.0, "Accepted")),
        ("no", Verdict(0.0, "Wrong Answer")),
        ("told", Verdict(0.0, "Wrong Answer", "no < |im_end| >")),
        ("verdict", Verdict(0.5, "Half", "as it is <|im_end|>", {"m": 1.0})),
    ],
)
def test_function_says_score_feedback_or_verdict(files, response, verdict):
    environment = function.environment(files, "my_task:grade")
    (question,) = environment.questions("train")

    assert environment.start(question).act(response, False) == verdict


def test_function_that_raises_says_nothing_of_the_attempt(files):
    environment = function.environment(files, "my_task:grade")
    (question,) = environment.questions("train")

    with pytest.raises(GraderFailure, match="env.function.grade raised KeyError"):
        environment.start(question).act("break", False)


@pytest.mark.parametrize("number", range(7))
def test_what_is_no_score_says_nothing_of_the_attempt(files, number):
    environment = function.environment(files, "my_task:grade")
    (question,) = environment.questions("train")

    with pytest.raises(GraderFailure, match="must return a number"):
        environment.start(question).act(f"[{number}", False)


@pytest.mark.parametrize(
    "name, message",
    [
        ("my_task", "expected module:function"),
        (":grade", "expected module:function"),
        ("my_task:other", "my_task has no function other"),
        ("my_task:nothing", "my_task has no function nothing"),
        ("not_there:grade", "cannot import not_there .*PYTHONPATH"),
    ],
)
def test_function_that_is_not_there_is_told(files, name, message):
    with pytest.raises(ValueError, match=message):
        function.environment(files, name)
