"""Runs that are stopped, spoiled, made longer or started with another config."""

import functools
import itertools
import math
import os
import shutil
import signal
import time

import pytest

from experiments.quickstart import task
from sdpo_jax import interrupt, metrics, train
from sdpo_jax.checkpoint import Checkpoints
from sdpo_jax.questions import order
from sdpo_jax.questions.question import Question
from sdpo_jax.rollout import sampler
from tests.runs import (
    CLOCK,
    WRITTEN,
    Words,
    assert_same_run,
    base,
    done,
    finished,
    lines_of,
    one_device,
    restored,
    saved_updates,
    tiny,
)

__all__ = ["base", "finished", "one_device"]


def test_changed_config_is_refused_field_by_field(base, finished):
    c = tiny(base, seed=3, sdpo__keep_tail=False, train__updates=5)
    kept = (finished / "config.json").read_bytes()

    with pytest.raises(ValueError) as told:
        train.run(c, finished, environment=Words(), may_change=["seed"])

    assert str(told.value).splitlines() == [
        f"{finished} holds a run with another config:",
        "  sdpo.keep_tail: True saved, False now",
        "  train.updates: 4 saved, 5 now",
        "Give another --workdir, or --may_change=sdpo.keep_tail,train.updates to "
        "continue anyway",
    ]
    assert (finished / "config.json").read_bytes() == kept


class Edited(Words):
    """Of another held-out question."""

    def questions(self, split):
        questions = super().questions(split)
        if split == "heldout":
            questions[0] = Question(questions[0].uid, questions[1].prompt)
        return questions


def test_another_content_is_refused_until_it_is_allowed(
    base, finished, tmp_path, one_device
):
    folder, model = tmp_path / "run", tmp_path / "base"
    shutil.copytree(base, model)
    c = tiny(model, train__updates=1)
    train.run(c, folder, environment=Words())
    # A finished run only tells what it came to.
    assert train.run(c, folder, environment=Edited())["updates"] == 1
    (model / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
    c.train.updates = 2

    with pytest.raises(ValueError) as told:
        train.run(c, folder, Edited(), ["train.updates", "env.heldout"])

    first, second, advice = str(told.value).splitlines()
    assert first == f"{folder} holds a run that began with another content:"
    assert second.startswith("  model.path: chat_template.jinja: absent recorded, sha2")
    assert "--may_change=model.path to continue" in advice
    may_change = ["train.updates", "env.heldout", "model.path"]
    assert train.run(c, folder, Edited(), may_change)["updates"] == 2


def test_run_may_be_made_longer(base, finished, tmp_path, one_device):
    folder, c = tmp_path / "longer", tiny(base, train__updates=6)
    shutil.copytree(finished, folder)

    summary = train.run(c, folder, Words(), may_change=["train.updates"])

    undisturbed = train.run(c, tmp_path / "undisturbed", Words())
    # Its fourth update was the last, so held-out questions were asked then.
    lines = lines_of(folder, metrics.METRICS)
    extra = [name for name in lines[4] if name.startswith("heldout/")]
    assert extra and all(lines[4].pop(name) is not None for name in extra)
    assert lines == lines_of(tmp_path / "undisturbed", metrics.METRICS)
    assert summary | {CLOCK: 0} == undisturbed | {CLOCK: 0}


def test_longer_run_that_is_stopped_is_not_finished(
    base, finished, tmp_path, one_device
):
    folder, c = tmp_path / "longer", tiny(base, train__updates=6)
    shutil.copytree(finished, folder)
    once = iter([True])
    stop = lambda split: next(once, False) and os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(interrupt.Interrupted):
        train.run(c, folder, Words(stop), may_change=["train.updates"])

    summary = train.run(c, folder, Words())

    assert summary["updates"] == 6


def test_run_is_not_made_shorter_than_it_is(base, finished, tmp_path, one_device):
    shutil.copytree(finished, tmp_path / "run")
    c = tiny(base, train__updates=3)

    with pytest.raises(ValueError, match="train.updates=3, but .* after update 4"):
        train.run(c, tmp_path / "run", Words(), may_change=["train.updates"])


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


class Stuck(Words):
    """Signals the run from a grading of `split` after `update`, which takes 30 s."""

    def __init__(self, folder, split, update):
        self._folder, self._asked, self._update = folder, split, update
        self._once = iter([True])
        self.asked_s = None
        super().__init__(self._signal)

    def _signal(self, split):
        is_due = split == self._asked and done(self._folder) == self._update
        if is_due and next(self._once, False):
            self.asked_s = time.monotonic()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)


@pytest.mark.parametrize(
    "split, update, message, saved",
    [
        slow("validation", -1, "stopped by a signal", []),
        slow("train", 1, "stopped after update 1, saved", [1]),
        ("validation", 1, "stopped after update 2, saved", [2]),
        # Of the best checkpoint, once all lines are written.
        slow("heldout", 4, "stopped after update 4, saved", [2, 3, 4]),
    ],
)
def test_signal_in_a_slow_grading_is_heard_and_costs_no_update(
    split, update, message, saved, base, finished, tmp_path, one_device
):
    folder = tmp_path / "run"
    environment = Stuck(folder, split, update)

    with pytest.raises(interrupt.Interrupted, match=message):
        train.run(tiny(base), folder, environment=environment)

    assert time.monotonic() - environment.asked_s < 10
    assert len(lines_of(folder, metrics.METRICS)) == update + 1
    assert (saved_updates(folder) if saved else []) == saved
    train.run(tiny(base), folder, environment=Words())
    assert_same_run(tiny(base), folder, finished)


class Killed(BaseException):
    """Ends a run as a kill would: nothing is saved on the way out."""


@pytest.mark.parametrize(
    "place", ["set_score", slow("write_metrics"), slow("write_timings")]
)
def test_kill_between_saving_and_the_end_of_an_evaluation_loses_nothing(
    place, base, finished, tmp_path, one_device
):
    folder = tmp_path / "run"
    owner = Checkpoints if place == "set_score" else metrics.RunLog

    def die(self, step, *_):
        if step == 2:
            raise Killed
        return original(self, step, *_)

    original = getattr(owner, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, place, die)
        with pytest.raises(Killed):
            train.run(tiny(base), folder, environment=Words())

    train.run(tiny(base), folder, environment=Words())

    assert_same_run(tiny(base), folder, finished)


class Many(Words):
    """More training questions than a batch holds."""

    def questions(self, split):
        if split != "train":
            return super().questions(split)
        prompts = [task.prompt([a, b]) for a in task.MADE_UP[4:7] for b in "xy"]
        return [Question(f"train-{n}", p) for n, p in enumerate(prompts)]


def test_run_goes_on_with_batches_of_another_size(base, tmp_path, one_device):
    c = tiny(base, train__updates=1, optimizer__warmup_updates=3)
    train.run(c, tmp_path, environment=Many())
    c.train.updates, c.rollout.questions = 2, 4

    may_change = ["train.updates", "rollout.questions"]
    summary = train.run(c, tmp_path, Many(), may_change)

    attempts = lines_of(tmp_path, metrics.ATTEMPTS)
    assert summary["generations"] == len(attempts) == 2 * 4 + 4 * 4
    # Nothing is asked twice or left out of the first pass.
    asked = [line["question"] for line in attempts[:: c.rollout.attempts]]
    in_order = order.from_place(Many().questions("train"), 0, c.seed)
    assert asked == [q.uid for q in itertools.islice(in_order, 6)]
    rates = [line["learning_rate"] for line in lines_of(tmp_path, metrics.METRICS)[1:]]
    assert rates == pytest.approx([1e-2 / 4, 1e-2 / 2])


@pytest.mark.slow
def test_curriculum_passes_questions_over_and_resumes_to_the_bit(
    base, tmp_path, one_device
):
    # Of four attempts none solves in two visits of five.
    c = tiny(base, train__updates=6, curriculum__min_pass_rate=0.1)
    train.run(c, tmp_path / "whole", environment=Many())
    folder, once = tmp_path / "run", iter([True])

    def stop(split):
        # In the middle of an update: its turns have not passed yet.
        if split == "train" and done(folder) == 4 and next(once, False):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(interrupt.Interrupted, match="stopped after update 4, saved"):
        train.run(c, folder, environment=Many(stop))
    train.run(c, folder, environment=Many())

    assert_same_run(c, folder, tmp_path / "whole")
    lines = [line for line in lines_of(folder, WRITTEN[0]) if "loss" in line]
    assert lines[0]["curriculum/kept"] == 1
    assert min(line["curriculum/kept"] for line in lines) < 1
    assert sum(line["curriculum/sat_out"] for line in lines) > 0
    (_, extra), (_, other) = (restored(c, f) for f in (folder, tmp_path / "whole"))
    assert extra == other and extra["curriculum"]["sat_out"]


def test_curriculum_that_leaves_no_question_stops_and_loses_nothing(
    base, tmp_path, one_device
):
    # None of the two questions is solved by all four attempts of its first visit.
    c = tiny(base, curriculum__min_pass_rate=0.99)

    for _ in range(2):
        with pytest.raises(ValueError, match="none of the 2 training questions has a"):
            train.run(c, tmp_path, environment=Words())

    assert saved_updates(tmp_path) == [1]
    assert [line["step"] for line in lines_of(tmp_path, metrics.METRICS)] == [0, 1]


def spoil(monkeypatch, update, row):
    """Make the sampler of `update` report NaN for the first token of one row."""
    sample, calls = sampler.Sampler.sample, iter(range(1, 99))

    def spoiled(self, *arguments):
        attempts = sample(self, *arguments)
        # Two evaluated splits come first, and the second update evaluates one more.
        if next(calls) == 3 + update:
            attempts.sampler_logp_BR[row, 0] = math.nan
        return attempts

    monkeypatch.setattr(sampler.Sampler, "sample", spoiled)


@pytest.mark.parametrize(
    "step_questions, row, optimiser_step",
    [(2, 5, 1), pytest.param(1, 5, 2, marks=pytest.mark.slow)],
)
def test_loss_that_is_not_finite_stops_and_loses_nothing(
    step_questions, row, optimiser_step, base, finished, tmp_path, one_device
):
    c, undisturbed = tiny(base, step__questions=step_questions), finished
    if step_questions == 1:
        undisturbed = tmp_path / "undisturbed"
        train.run(c, undisturbed, environment=Words())
    folder = tmp_path / "run"

    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, 3, row)
        with pytest.raises(FloatingPointError) as told:
            train.run(c, folder, environment=Words())

    named = f"update 3, optimiser step {optimiser_step} of it, is not finite: loss=nan"
    assert str(told.value).startswith(f"{named}, gradient of ")
    assert f"after update 2 is kept in {folder}" in str(told.value)
    # The rows to look at are there, and were drawn as in the undisturbed run.
    written = (folder / metrics.ATTEMPTS).read_bytes()
    assert lines_of(folder, metrics.ATTEMPTS)[-1]["step"] == 3
    assert (undisturbed / metrics.ATTEMPTS).read_bytes().startswith(written)
    train.run(c, folder, environment=Words())
    assert_same_run(c, folder, undisturbed)
