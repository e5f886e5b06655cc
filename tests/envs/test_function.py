import decimal
import fractions
import json
import sys

import jax.numpy as jnp
import numpy as np
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


class Tensor:
    """A scalar as torch has them: no number of Python's, but it holds one."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def __repr__(self):
        return f"tensor{self.numbers}"

    def item(self):
        if len(self.numbers) > 1:
            raise RuntimeError("a Tensor with 2 elements cannot be converted")
        return self.numbers[0]


class Mpf:
    """A number as mpmath has them."""

    def __repr__(self):
        return "mpf"

    def __float__(self):
        return 0.5


HALVES = [
    np.float32(0.5),
    np.float16(0.5),
    np.array(0.5),
    np.array([0.5]),
    jnp.float32(0.5),
    jnp.bfloat16(0.5),
    fractions.Fraction(1, 2),
    decimal.Decimal("0.5"),
    Tensor(0.5),
    Mpf(),
]
ONES = [True, 1, np.bool_(True), np.int64(1), np.uint8(1), jnp.array(True), Tensor(1)]


@pytest.mark.parametrize(
    "score, verdict",
    [(score, Verdict(0.5, "Wrong Answer")) for score in HALVES]
    + [(score, Verdict(1.0, "Accepted")) for score in ONES],
    ids=repr,
)
def test_score_is_any_real_number(files, score, verdict, monkeypatch):
    environment = function.environment(files, "my_task:grade")
    (question,) = environment.questions("train")
    for result in (score, (score, "")):
        monkeypatch.setattr(sys.modules["my_task"], "ODD", [result])

        graded = environment.start(question).act("[0", False)

        assert graded == verdict and type(graded.score) is float


@pytest.mark.parametrize(
    "score",
    [
        float("nan"),
        float("inf"),
        np.float32("nan"),
        jnp.float32(jnp.nan),
        decimal.Decimal("NaN"),
        10**400,
        0.5 + 0j,
        np.complex64(1),
        np.array([0.5, 0.5]),
        Tensor(0.5, 0.5),
        "0.5",
        b"1",
        np.str_("0.5"),
        [0.5],
    ],
    ids=repr,
)
def test_score_is_a_single_finite_real_number(files, score, monkeypatch):
    environment = function.environment(files, "my_task:grade")
    (question,) = environment.questions("train")
    monkeypatch.setattr(sys.modules["my_task"], "ODD", [score])

    with pytest.raises(GraderFailure, match="must return a number"):
        environment.start(question).act("[0", False)


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
