"""Attempts at two questions, what grades them, and graders that fail."""

import itertools
import random
import threading

import numpy as np
import pytest

from sdpo_jax import config
from sdpo_jax.batch import PAD, Attempts
from sdpo_jax.collect import Grading
from sdpo_jax.data.tokenizer import Tokenizer
from sdpo_jax.envs.base import GraderFailure, Verdict
from sdpo_jax.questions.question import Question
from tests.data.test_tokenizer import OPENS, byte_level, write

GROUP = 4
QUESTIONS = [Question("add", "Add 1 and 2.", system="Be brief."), Question("b", "Two?")]
# Two questions' attempts: one solved twice, the other once.
TEXTS = [
    *["right<|im_end|>", "<think>hm</think>\nright too<|im_end|>", "bad", "<|im_end|>"],
    *["bad<|im_end|>", "right<|im_end|>", "worse<|im_end|>", "broken grader<|im_end|>"],
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(write(tmp_path_factory.mktemp("byte_level"), byte_level()))


@pytest.fixture(scope="module")
def reasoner(tmp_path_factory):
    """A tokenizer whose chat template opens the reasoning."""
    folder = tmp_path_factory.mktemp("reasoner")
    write(folder, byte_level(), chat_template=OPENS)
    return Tokenizer(folder, enable_thinking=True)


def settings(**fields):
    c = config.default()
    c.rollout.attempts, c.rollout.max_prompt = GROUP, 200
    c.reprompt.max_length = 1000
    c.update_from_flattened_dict(
        {k.replace("__", "."): value for k, value in fields.items()}
    )
    return c


def attempts_of(rows, width=64):
    """Attempts whose responses are these token ids."""
    response_BR = np.full((len(rows), width), PAD, np.int32)
    for row, ids in zip(response_BR, rows, strict=True):
        row[: len(ids)] = ids
    logp_BR = np.where(response_BR >= 0, np.float32(-1.5), 0)
    prompt_BP = np.full((len(rows), 8), 1, np.int32)
    return Attempts(
        prompt_BP, response_BR, response_BR >= 0, logp_BR, rows_per_prompt=GROUP
    )


def grade(environment, tokenizer, questions, attempts):
    """Grade attempts that are all there."""
    with Grading(environment, tokenizer, questions) as grading:
        grading.add(slice(len(questions)), attempts)
        return grading.finish()


def written(tokenizer, texts=TEXTS, width=64):
    """Attempts that hold these texts, special tokens as such."""
    encode = lambda text: tokenizer._tokenizer.encode(text, add_special_tokens=False)
    return attempts_of([encode(text) for text in texts], width)


def judge(question, response, truncated):
    if response == "broken grader":
        raise GraderFailure("out of disk")
    solved = response.endswith(("right", "right too"))
    return Verdict(
        score=float(solved),
        outcome="Accepted" if solved else "Wrong Answer",
        feedback="" if solved else f"{response!r} is wrong",
        measurements={"tests": 1.0 if solved else 0.5},
    )


class Judges:
    """An environment that answers by a function."""

    def __init__(self, judge=judge):
        self._judge = judge

    def start(self, question):
        environment = self

        class Episode:
            def act(self, response, truncated):
                return environment._judge(question, response, truncated)

        return Episode()


def repeated(questions=QUESTIONS):
    return [question for question in questions for _ in range(GROUP)]


def hang():
    threading.Event().wait()


def crash(error):
    raise error


FAULTS = [
    lambda: crash(GraderFailure("out of disk")),
    lambda: crash(ZeroDivisionError("a bug")),
    lambda: crash(SystemExit(0)),
    hang,
    lambda: None,
    lambda: 1.0,
    lambda: Verdict(float("nan"), "Odd"),
    lambda: Verdict(2.0, "Odd"),
    lambda: Verdict(0.0, "Odd", feedback=None),
    lambda: Verdict(0.0, "Odd", measurements={"lock": threading.Lock()}),
]


def faulty(tokenizer, failing):
    """A thousand attempts, some of which the grader fails at, in every way in turn."""
    rng, questions = random.Random(0), QUESTIONS[:1] * 1000
    texts = [f"{n} {rng.choice(['right', 'wrong'])}" for n in range(1000)]
    failed = rng.sample(range(1000), failing)
    faults = dict(
        zip([texts[n] for n in failed], itertools.cycle(FAULTS), strict=False)
    )

    def judge_or_fail(question, response, truncated):
        fault = faults.get(response)
        return fault() if fault else judge(question, response, truncated)

    attempts = written(tokenizer, [f"{text}<|im_end|>" for text in texts])
    run = lambda: grade(Judges(judge_or_fail), tokenizer, questions, attempts)
    return attempts, np.isin(np.arange(1000), failed), run
