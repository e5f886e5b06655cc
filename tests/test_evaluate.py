import contextlib
import dataclasses
import itertools
import json
import operator
import re
import signal
import threading

import jax
import numpy as np
import pytest

from sdpo_jax import (
    answers,
    components,
    config,
    evaluate,
    feedback,
    inputs,
    interrupt,
    json_files,
)
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


def test_signal_is_heard_after_each_group_and_while_grading():
    begun, go_on, looks = threading.Semaphore(0), threading.Event(), []

    class Stop(Exception):
        pass

    class Slow(Sums):
        def act(self, response, truncated):
            begun.release()
            go_on.wait(30)
            return super().act(response, truncated)

    def check_stop():
        looks.append(len(looks))
        if len(looks) > rows:
            raise Stop

    c = make_components()
    rows = len(QUESTIONS["validation"]) * c.config.eval.attempts
    slow = dataclasses.replace(c, environment=Slow(), engine=OneByOne(begun))

    with pytest.raises(Stop):
        evaluate.on_split(slow, "a", "validation", check_stop=check_stop)

    # Once for each group of one row, and once for the grading that goes on.
    assert len(looks) == rows + 1
    go_on.set()


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


@pytest.fixture
def built(monkeypatch):
    """What `evaluate.run` builds: fakes; and the calls that it made."""
    one, calls = make_components(), []

    class Build:
        def __init__(self, c, environment, trains, check_stop):
            assert not trains
            one.engine.check_stop = check_stop
            calls.append((c, environment))

        def __enter__(self):
            c, environment = calls[0]
            return dataclasses.replace(one, config=c, environment=environment)

        def __exit__(self, *_):
            calls.append("closed")

    monkeypatch.setattr(evaluate, "build", Build)
    monkeypatch.setattr(components.Components, "load_params", lambda self: "a")
    return one, calls


def test_run_evaluates_every_split_of_an_environment_of_ones_own(built):
    one, calls = built
    c = settings()
    c.model.path = "anything"

    found = evaluate.run(c, one.environment)

    assert calls == [(c, one.environment), "closed"]
    assert found == {
        split: evaluate.on_split(one, "a", split)[0]
        for split in ("train", "validation", "heldout")
    }


def test_without_held_out_questions_nothing_of_them_is_measured(built, monkeypatch):
    one, _ = built
    monkeypatch.setitem(QUESTIONS, "heldout", [])

    values = evaluate.on_splits(one, "a", ("validation", "heldout"), "base")

    assert values and all(name.startswith("validation/") for name in values)
    assert list(evaluate.run(one.config, one.environment)) == ["train", "validation"]


def test_every_answer_and_question_is_written(built, tmp_path):
    one, _ = built
    c = settings()

    found = evaluate.run(c, one.environment, path=tmp_path / "evaluation")

    read = lambda name: list(json_files.read_lines(tmp_path / "evaluation" / name))
    for split, questions in QUESTIONS.items():
        metrics, graded = evaluate.on_split(one, "a", split)
        lines = read(f"{split}.jsonl")
        assert len(lines) == 3 * len(questions)
        for line, g in zip(lines, graded, strict=True):
            assert line.pop("measurements") == {}
            assert line == {"update": 0, **feedback.record(g)}
        lines = read(f"{split}_questions.jsonl")
        assert [line["question"] for line in lines] == [q.uid for q in questions]
        for name in ("avg@3", "pass@1", "pass@2"):
            mean = np.mean([line[name] for line in lines])
            assert found[split][name] == metrics[name] == pytest.approx(mean)
    results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    assert (results["update"], results["checkpoint"]) == (0, None)
    assert results["results"] == found and results["config"]["eval.attempts"] == 3


def test_evaluation_shows_how_many_answers_there_are(built, capsys):
    one, _ = built

    evaluate.run(settings(), one.environment)

    first, *_, last = capsys.readouterr().err.splitlines()
    assert re.match(r"3/24 answers \[00:0.*, evaluating train, sampling 3/3", first)
    assert last.startswith("24/24 answers [00:0")


def test_answers_are_on_file_as_they_come(built, tmp_path):
    one, _ = built
    folder = tmp_path / "evaluation"

    class Stopped(Digits):
        def sample(self, params, prompts, ids, sampling, key, each):
            attempts = super().sample(params, prompts, ids, sampling, key, each)
            # A grader's thread may need a moment.
            while not folder.joinpath("train.jsonl").exists():
                each(slice(3, 3), jax.tree.map(lambda x: x[:0], attempts))
            raise KeyboardInterrupt

    stopped = dataclasses.replace(one, engine=Stopped())
    with pytest.raises(KeyboardInterrupt), answers.Files(folder, 7) as files:
        each = lambda graded: files.write("train", graded)
        evaluate.on_split(stopped, "a", "train", each=each)

    lines = list(json_files.read_lines(folder / "train.jsonl"))
    assert lines and {line["update"] for line in lines} == {7}


def test_signal_ends_an_evaluation_between_groups(built, tmp_path, caplog):
    folder = tmp_path / "evaluation"

    once = threading.Lock()

    class Signalled(Sums):
        def act(self, response, truncated):
            # All of the first split is written before the second begins.
            is_second = (folder / "train_questions.jsonl").exists()
            if is_second and once.acquire(blocking=False):
                signal.raise_signal(signal.SIGTERM)
            return super().act(response, truncated)

    with pytest.raises(interrupt.Interrupted):
        evaluate.run(settings(), Signalled(), path=folder)

    told = "SIGTERM: stopping as soon as this is done (evaluating validation, "
    assert told in caplog.text and "answers written so far are kept" in caplog.text
    assert len(list(json_files.read_lines(folder / "train.jsonl"))) == 3
    assert not (folder / "results.json").exists()


class Signalled(Digits):
    """An engine that is signalled in the middle of its first response."""

    def sample(self, params, prompts, ids, sampling, key, each):
        signal.raise_signal(signal.SIGTERM)
        self.check_stop()
        raise AssertionError("the signal was not heard")


def test_signal_ends_an_evaluation_within_a_response(built, tmp_path):
    one, _ = built
    one.__dict__["engine"] = Signalled()

    with pytest.raises(interrupt.Interrupted):
        evaluate.run(settings(), one.environment, path=tmp_path / "evaluation")


def test_signal_while_weights_are_loaded_ends_an_evaluation(
    built, tmp_path, monkeypatch
):
    one, _ = built
    load = lambda self: signal.raise_signal(signal.SIGTERM)
    monkeypatch.setattr(components.Components, "load_params", load)

    with pytest.raises(interrupt.Interrupted):
        evaluate.run(settings(), one.environment, path=tmp_path / "evaluation")

    assert not (tmp_path / "evaluation").exists() and not one.engine.calls


def test_signal_during_an_update_is_heard_before_the_evaluation_begins():
    one = make_components()

    def stop():
        raise interrupt.Interrupted

    with pytest.raises(interrupt.Interrupted):
        evaluate.after_update(one, "a", 0, contextlib.nullcontext, stop)

    assert not one.engine.calls


def test_run_whose_base_was_replaced_is_not_evaluated(built, tmp_path):
    one, _ = built
    run, base = tmp_path / "run", tmp_path / "base"
    for folder in (run, base):
        folder.mkdir()
    (base / "config.json").write_text("{}")
    c = settings()
    c.model.path = str(base)
    json_files.write_json_atomically(run / "inputs.json", inputs.contents(c, Sums()))
    (base / "chat_template.jinja").write_text("replaced")

    with pytest.raises(ValueError, match="another content:\n  model.path: chat_templ"):
        evaluate.run(c, one.environment, run)

    assert not (run / "evaluation").exists()


def test_questions_that_are_not_those_of_the_run_are_named(
    built, tmp_path, monkeypatch, caplog
):
    one, c = built[0], settings()
    c.model.path = str(tmp_path)
    monkeypatch.setattr(evaluate, "_policy", lambda *_: ("a", 3))
    recorded = inputs.contents(c, one.environment)["env.heldout"]
    json_files.write_json_atomically(
        tmp_path / "inputs.json", {"env.heldout": recorded}
    )

    evaluate.run(c, one.environment, tmp_path)
    assert "another content" not in caplog.text
    monkeypatch.setitem(QUESTIONS, "heldout", QUESTIONS["heldout"][1:])
    evaluate.run(c, one.environment, tmp_path)

    [told] = [m for m in caplog.messages if "another content" in m]
    assert "env.heldout: its questions: sha256:" in told


def test_an_earlier_evaluation_is_not_written_over(built, tmp_path):
    one, _ = built

    paths = []
    for _ in range(3):
        paths.append(answers.new_folder(tmp_path))
        evaluate.run(settings(), one.environment, path=paths[-1])

    names = ["evaluation", "evaluation_2", "evaluation_3"]
    assert paths == [tmp_path / name for name in names]
    with pytest.raises(ValueError, match="evaluation_2 exists; move it away"):
        evaluate.run(settings(), one.environment, path=paths[1])


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"checkpoint": "best"}, "--checkpoint=best: only a run has these; give its "),
        ({"checkpoint": "8"}, "--checkpoint=8: must be one of last | best"),
    ],
)
def test_checkpoint_that_is_not_there_is_refused(asked, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate.run(settings(), **asked)


def test_an_evaluation_ends_with_a_table(tmp_path):
    found = {"train": {"pass@1": 0.25}, "heldout": {"pass@1": 1 / 3, "dropped": 2.0}}

    table, _, rest = evaluate.describe(found, tmp_path).partition("\n\n")

    assert [line.split() for line in table.splitlines()] == [
        ["train", "heldout"],
        ["pass@1", "0.25", "0.3333"],
        ["dropped", "-", "2"],
    ]
    assert f"{tmp_path}/<split>.jsonl" in rest
