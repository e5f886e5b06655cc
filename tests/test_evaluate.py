import dataclasses
import itertools
import operator
import threading

import jax
import numpy as np
import pytest

from sdpo_jax import components, config, evaluate
from sdpo_jax.batch import Attempts
from sdpo_jax.envs.base import GradedAttempt, Verdict
from sdpo_jax.questions.question import Question
from sdpo_jax.rollout import Sampling

QUESTIONS = {
    "train": [Question("t0", "??")],
    "validation": [Question(f"v{index}", "?" * (index + 1)) for index in range(5)],
    "heldout": [Question(f"h{index}", "?") for index in range(2)],
}
CASES = [(n, c, k) for n in (1, 4, 6) for c in range(n + 1) for k in range(1, n + 1)]


@pytest.mark.parametrize("n, c, k", CASES)
def test_pass_at_k_equals_enumeration(n, c, k):
    draws = list(itertools.combinations([1] * c + [0] * (n - c), k))
    expected = sum(any(draw) for draw in draws) / len(draws)
    assert evaluate.pass_at_k(n, c, k) == pytest.approx(expected)


def test_pass_at_more_than_the_attempts_is_rejected():
    with pytest.raises(ValueError, match=r"pass@5 needs at least 5 .*, got 4; raise"):
        evaluate.pass_at_k(4, 4, 5)


def settings(**changes):
    c = config.default()
    c.eval.attempts, c.eval.pass_at = 3, (1, 2)
    c.rollout.max_response = 6
    c.eval.update(changes)
    return c


def graded(score, num_tokens=2, truncated=False):
    verdict = None if score is None else Verdict(score, "so")
    question = Question("q", "?")
    return GradedAttempt(question, "text", num_tokens, truncated, verdict)


def test_summary_of_attempts_made_by_hand():
    solved, partly, failed = graded(1.0), graded(0.5, 9), graded(0.0, 3, True)
    unknown = graded(None)
    attempts = [
        *[solved, partly, failed],
        *[failed, solved, solved],
        *[unknown, failed, partly],
    ]

    found = evaluate.summarise(settings(), attempts)

    # One, two and none of three solve; of two draws 2/3, 1 and 0 hold a success.
    assert found == {
        "avg@3": pytest.approx((3 * 1.0 + 2 * 0.5) / 9),
        "pass@1": pytest.approx((1 / 3 + 2 / 3 + 0) / 3),
        "pass@2": pytest.approx((2 / 3 + 1 + 0) / 3),
        "length_mean": pytest.approx((4 * 2 + 2 * 9 + 3 * 3) / 9),
        "truncated": pytest.approx(3 / 9),
        "grader_failures": 1.0,
    }


def test_success_score_says_what_is_solved():
    c = settings()
    c.reprompt.success_score = 0.5
    found = evaluate.summarise(c, [graded(0.5), graded(0.4), graded(0.0)])
    assert found["pass@1"] == pytest.approx(1 / 3)
    assert found["avg@3"] == pytest.approx(0.3)


class Characters:
    """A tokenizer whose tokens are characters; an exclamation mark stops."""

    stop_ids = (ord("!"),)

    def encode_chat(self, system, user):
        return [ord(letter) for letter in system + user]

    def decode(self, ids):
        return "".join(chr(i) for i in ids if i != ord("!"))


class Digits:
    """An engine that writes the policy's letter and the digits it draws."""

    def __init__(self):
        self.calls = []

    def sample(self, params, prompts, ids, sampling, key, each):
        self.calls.append((prompts, list(ids), sampling))
        fold = lambda i: jax.random.fold_in(key, i)
        shape = (sampling.attempts, 4)
        digits = [np.asarray(jax.random.randint(fold(i), shape, 48, 58)) for i in ids]
        response_BR = np.concatenate(digits)
        response_BR = np.insert(response_BR, 0, ord(params), axis=1)
        response_BR = np.insert(response_BR, 5, ord("!"), axis=1)
        attempts = Attempts(None, response_BR, response_BR >= 0, None)
        each(slice(len(response_BR)), attempts)
        return attempts


class Sums:
    """An environment that scores the sum of an attempt's digits."""

    def questions(self, split):
        return QUESTIONS[split]

    def start(self, question):
        return self

    def act(self, response, truncated):
        return Verdict(sum(map(int, response[1:])) / 36, response[0])


def make_components(**changes):
    return components.Components(
        settings(**changes), None, None, Characters(), Sums(), Digits()
    )


class OneByOne(Digits):
    """An engine that goes on when someone has begun to grade what it wrote."""

    def __init__(self, waits_for):
        super().__init__()
        self.waits_for = waits_for

    def sample(self, params, prompts, ids, sampling, key, each):
        whole = super().sample(params, prompts, ids, sampling, key, lambda *_: None)
        for row in range(len(whole.response_BR)):
            rows = slice(row, row + 1)
            each(rows, jax.tree.map(operator.itemgetter(rows), whole))
            assert self.waits_for.acquire(timeout=30)
        return whole


def test_attempts_are_graded_while_others_are_sampled():
    begun = threading.Semaphore(0)

    class Watched(Sums):
        def act(self, response, truncated):
            begun.release()
            return super().act(response, truncated)

    together = make_components()
    apart = dataclasses.replace(together, environment=Watched(), engine=OneByOne(begun))

    found = evaluate.on_split(apart, "a", "validation")

    assert found == evaluate.on_split(together, "a", "validation")


def responses(graded):
    return [g.response[1:] for g in graded]


def test_two_policies_are_compared_on_the_same_random_numbers():
    one = make_components()
    metrics, attempts = evaluate.on_split(one, "a", "validation")
    metrics_again, again = evaluate.on_split(make_components(), "a", "validation")
    other_metrics, other = evaluate.on_split(one, "b", "validation")

    assert (metrics, attempts) == (metrics_again, again)
    assert {g.verdict.outcome for g in other} == {"b"}
    assert responses(other) == responses(attempts)
    assert other_metrics == metrics
    assert len(set(responses(attempts))) == 15


def test_every_split_and_seed_has_its_own_random_numbers():
    seeded = make_components()
    seeded.config.seed = 1

    _, attempts = evaluate.on_split(make_components(), "a", "validation")
    _, other_seed = evaluate.on_split(seeded, "a", "validation")
    _, other_split = evaluate.on_split(make_components(), "a", "heldout")

    assert len(other_split) == 6
    assert not set(responses(attempts)) & set(responses(other_seed))
    assert not set(responses(attempts)) & set(responses(other_split))


def test_attempts_are_sampled_and_graded_as_the_config_says():
    one = make_components(temperature=0.3, top_p=0.9, top_k=7)

    metrics, attempts = evaluate.on_split(one, "a", "validation")

    [(prompts, ids, sampling)] = one.engine.calls
    assert sampling == Sampling(3, 0.3, 0.9, 7, max_response=6)
    assert ids == [0, 1, 2, 3, 4]
    assert prompts == [[ord("?")] * n for n in (1, 2, 3, 4, 5)]
    assert [g.question.uid for g in attempts] == [f"v{i // 3}" for i in range(15)]
    assert metrics == evaluate.summarise(one.config, attempts)
    assert metrics["length_mean"] == 6


@pytest.mark.parametrize("most, count", [(0, 5), (2, 2), (9, 5)])
def test_the_first_questions_are_drawn_as_among_all(most, count):
    _, everything = evaluate.on_split(make_components(), "a", "validation")
    _, first = evaluate.on_split(make_components(max_questions=most), "a", "validation")
    assert first == everything[: 3 * count]


def test_run_evaluates_every_split_of_an_environment_of_ones_own(monkeypatch):
    one, built = make_components(), []

    class Build:
        def __init__(self, c, environment, *, trains):
            built.append((c, environment, trains))

        def __enter__(self):
            return dataclasses.replace(one, config=built[0][0])

        def __exit__(self, *_):
            built.append("closed")

    monkeypatch.setattr(evaluate, "build", Build)
    monkeypatch.setattr(components.Components, "load_params", lambda self: "a")
    c = settings()
    c.model.path = "anything"

    found = evaluate.run(c, one.environment)

    assert built == [(c, one.environment, False), "closed"]
    assert found == {
        split: evaluate.on_split(one, "a", split)[0]
        for split in ("train", "validation", "heldout")
    }
