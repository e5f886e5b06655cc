"""Whole runs: what they learn and write."""

import itertools
import json
import math
import threading
import time

import jax
import numpy as np
import pytest

from sdpo_jax import (
    components,
    distributed,
    evaluate,
    export,
    learner,
    metrics,
    optimizer,
    train,
)
from sdpo_jax.checkpoint import Checkpoints
from sdpo_jax.envs import grading_pool
from sdpo_jax.envs.base import Verdict
from sdpo_jax.model import huggingface
from sdpo_jax.questions.question import Question
from tests import metric_names
from tests.runs import (
    CLOCK,
    Words,
    assert_same_run,
    base,
    finished,
    lines_of,
    one_device,
    state_of,
    tiny,
)
from tests.test_tracker import installed

__all__ = ["base", "finished", "installed", "one_device"]


def test_prompt_that_is_too_long_is_refused_at_the_start(base, tmp_path, one_device):
    class Longer(Words):
        def questions(self, split):
            questions = super().questions(split)
            long = Question("long", "x" * 99)
            return [*questions, long] if split == "train" else questions

    with pytest.raises(ValueError, match="question long takes .* rollout.max_prompt=3"):
        train.run(tiny(base), tmp_path, environment=Longer())
    assert not (tmp_path / metrics.METRICS).exists()


def test_prompts_that_are_too_long_are_dropped_and_counted_when_asked(
    base, tmp_path, one_device
):
    class Longer(Words):
        def questions(self, split):
            return [Question("long", "x" * 99), *super().questions(split)]

    c = tiny(base, rollout__long_prompts="drop", train__updates=1)
    train.run(c, tmp_path, environment=Longer())

    first, last = lines_of(tmp_path, metrics.METRICS)
    assert metric_names.unexplained(first) == []
    splits = ("train", "validation", "heldout")
    assert [first[f"{split}/dropped_questions"] for split in splits] == [1, 1, 1]
    assert last["heldout/dropped_questions"] == 1
    asked = {line["question"] for line in lines_of(tmp_path, metrics.ATTEMPTS)}
    assert "long" not in asked


@pytest.mark.slow
def test_run_without_held_out_questions_reports_validation_alone(
    base, tmp_path, one_device
):
    class NoneHeldOut(Words):
        def questions(self, split):
            return [] if split == "heldout" else super().questions(split)

    c = tiny(base, train__updates=2, train__evaluate_every=1)
    summary = train.run(c, tmp_path, environment=NoneHeldOut())

    for checkpoint in ("base", "last", "best"):
        assert summary[checkpoint]["validation"] and not summary[checkpoint]["heldout"]
    logged = {name for line in lines_of(tmp_path, metrics.METRICS) for name in line}
    assert not [name for name in logged if name.startswith("heldout")]


VARIANTS = {
    "grpo": dict(method="grpo", grpo__normalize_std=True),
    "grpo in several steps": dict(
        method="grpo", step__questions=1, step__micro_batch=1
    ),
    "live teacher, full forward KL": dict(
        teacher__mode="live", sdpo__support="full", sdpo__divergence="forward_kl"
    ),
    "frozen teacher, reverse KL of samples": dict(
        teacher__mode="frozen",
        sdpo__support="sampled_token",
        sdpo__divergence="reverse_kl",
    ),
    "trust region, several steps of micro-batches": dict(
        teacher__mode="trust_region",
        teacher__update_per="optimizer_step",
        step__questions=1,
        step__micro_batch=2,
        sdpo__keep_tail=False,
    ),
    "every row counts, own solution, feedback always": dict(
        step__aggregation="sequence_mean_all_rows",
        reprompt__demonstration_from="any_attempt",
        reprompt__show_feedback="always",
        reprompt__show_attempt=True,
        model__remat="layer",
        optimizer__schedule="cosine",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_every_method_and_teacher_trains(fields, base, tmp_path, one_device):
    c = tiny(base, train__updates=2, **fields)

    summary = train.run(c, tmp_path, environment=Words())

    assert summary["method"] == c.method and summary["generations"] == 16
    lines = lines_of(tmp_path, metrics.METRICS)
    for line in lines + lines_of(tmp_path, metrics.TIMINGS):
        assert metric_names.unexplained(line) == []
    for line in lines[1:]:
        assert all(math.isfinite(value) for value in line.values())
        assert line["gradient_norm"] > 0
    state = state_of(c, tmp_path)
    assert state[".step"] == 2 * optimizer.steps_per_batch(c)
    assert_teacher(c, state, base)


def assert_teacher(c, state, base):
    """The teacher's weights are where its mode puts them."""
    with jax.default_device(jax.devices()[0]):
        mesh = distributed.make_mesh(c.mesh, devices=jax.devices()[:1])
        start = huggingface.load(base, huggingface.architecture(base), mesh)
    start = np.asarray(start["embed"]["table_VD"])
    student = state[".student['embed']['table_VD']"]
    teacher = state.get(".teacher['embed']['table_VD']")
    assert not np.array_equal(student, start)
    if c.method == "grpo" or c.teacher.mode == "live":
        assert teacher is None
    elif c.teacher.mode == "ema":
        assert 0 < np.abs(teacher - start).max() < np.abs(student - start).max()
    else:
        np.testing.assert_array_equal(teacher, start)


class Scripted(Words):
    """Validation scores as scripted, evaluation by evaluation."""

    def __init__(self, validation):
        super().__init__()
        self._scores = iter(validation)
        self._lock = threading.Lock()

    def start(self, question):
        if question.uid.startswith("validation"):
            return self
        return super().start(question)

    def act(self, response, truncated):
        with self._lock:
            return Verdict(next(self._scores), "Scripted")


def test_what_a_run_writes_is_explained(finished):
    for name in (metrics.METRICS, metrics.TIMINGS):
        for line in lines_of(finished, name):
            assert metric_names.unexplained(line) == []


def test_updates_without_an_evaluation_have_no_seconds_of_one(finished):
    lines = lines_of(finished, metrics.TIMINGS)

    # The base, then every second of four updates.
    assert ["evaluate" in line for line in lines] == [True, False, True, False, True]
    assert all({"sample", "grade", "train"} <= line.keys() for line in lines[1:])


def test_summary_follows_from_the_metrics_and_validation_chooses_the_best(
    base, tmp_path, one_device
):
    # Two questions, four attempts at each, after updates 0, 2, 4 and 6.
    scores = [s for s in (0.5, 0.25, 1.0, 0.75) for _ in range(8)]
    c = tiny(base, train__updates=6, seed=1)

    summary = train.run(c, tmp_path, environment=Scripted(scores))

    lines = {line["step"]: line for line in lines_of(tmp_path, metrics.METRICS)}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert list(summary) == [
        *("method", "updates", "generations", "seconds", "base", "last", "best"),
    ]
    assert summary["method"] == "sdpo"
    assert summary["updates"] == 6
    assert summary["generations"] == 6 * 2 * 4
    assert summary["generations"] == len(lines_of(tmp_path, metrics.ATTEMPTS))
    timed = sum(
        v
        for t in lines_of(tmp_path, metrics.TIMINGS)
        for k, v in t.items()
        if k != "step"
    )
    assert summary["seconds"] == round(timed, 1)
    of = lambda update, split: {
        name.removeprefix(f"{split}/"): value
        for name, value in lines[update].items()
        if name.startswith(f"{split}/")
    }
    for name, update in (("base", 0), ("last", 6)):
        expected = {split: of(update, split) for split in ("validation", "heldout")}
        assert summary[name] == expected
        assert expected["heldout"]["pass@1"] is not None
    best = summary["best"]
    assert list(best) == ["update", "validation", "heldout"]
    assert best["update"] == 4
    assert best["validation"] == of(4, "validation")
    assert best["validation"]["avg@4"] == best["validation"]["pass@2"] == 1
    # Held-out questions were never asked between the first and the last evaluation.
    assert [n for n in lines if of(n, "heldout")] == [0, 6]
    assert best["heldout"] == heldout_of(c, tmp_path, 4)


def test_run_whose_tracker_fails_is_the_run_without_one(
    base, finished, tmp_path, one_device, installed, caplog
):
    wandb = installed(failing=["log", "finish"])
    c, folder = tiny(base), tmp_path / "run"

    train.run(c, folder, environment=Words(), wandb_project="sdpo")

    assert_same_run(c, folder, finished)
    assert wandb.started[0]["config"]["optimizer.learning_rate"] == 1e-2
    # Metrics and timings of the base and of every update.
    assert [name for name, *_ in wandb.calls].count("log") == 2 * 5
    assert sum("wandb failed" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("checkpoint", ["last", "best"])
def test_evaluation_of_a_run_is_that_of_its_log(
    checkpoint, base, finished, tmp_path, one_device
):
    summary = json.loads((finished / "summary.json").read_text())
    update = {"last": 4, "best": summary["best"]["update"]}[checkpoint]

    found = evaluate.run(
        tiny(base), Words(), finished, checkpoint=checkpoint, path=tmp_path / "new"
    )

    for split in ("validation", "heldout"):
        assert found[split] == summary[checkpoint][split]
        lines = lines_of(tmp_path / "new", f"{split}.jsonl")
        assert {line["update"] for line in lines} == {update}
        mean = np.mean([line["score"] for line in lines])
        assert mean == pytest.approx(found[split]["avg@4"])


class Failing(Words):
    """One grading of every training batch fails, each time in another way."""

    def __init__(self, batch):
        faults = [ZeroDivisionError, SystemExit, time.sleep]
        batches = ([fault] + [None] * (batch - 1) for fault in faults)
        self._fates = itertools.chain(*batches)
        self._lock = threading.Lock()
        super().__init__(self._fail)

    def _fail(self, split):
        with self._lock:
            fault = next(self._fates) if split == "train" else None
        if fault is time.sleep:
            time.sleep(60)
        elif fault:
            raise fault


def test_grader_that_fails_now_and_then_is_trained_past(
    base, tmp_path, one_device, monkeypatch
):
    monkeypatch.setattr(grading_pool, "LIMIT_S", 5.0)
    c = tiny(base, train__updates=3)

    summary = train.run(c, tmp_path, environment=Failing(8))

    assert summary["updates"] == 3
    lines = lines_of(tmp_path, metrics.METRICS)[1:]
    assert [line["rollout/grader_failures"] for line in lines] == [1, 1, 1]
    assert all(math.isfinite(line["loss"]) for line in lines)
    records = lines_of(tmp_path, metrics.ATTEMPTS)
    unknown = [r for r in records if r["outcome"] == "Grader Failure"]
    assert sorted(r["step"] for r in unknown) == [1, 2, 3]
    assert not any(r["has_target"] or r["advantage"] for r in unknown)


def heldout_of(c, folder, update):
    """What the weights of a checkpoint do on the held-out questions."""
    with components.build(c, Words()) as built:
        abstract = learner.trained_shapes(*built.model).student
        checkpoints = Checkpoints(folder / "checkpoints")
        student = checkpoints.restore_part("student", abstract, update)
        checkpoints.close()
        return evaluate.on_split(built, student, "heldout")[0]


@pytest.mark.slow
def test_adapters_are_trained_resumed_and_exported(base, tmp_path, one_device):
    fields = dict(lora__rank=2, rollout__questions=2, step__questions=1)
    c = tiny(base, train__updates=4, **fields)
    whole = train.run(c, tmp_path / "whole", environment=Words())
    evaluated = evaluate.run(c, Words(), tmp_path / "whole")
    assert evaluated["heldout"] == whole["last"]["heldout"]
    export.run(c, tmp_path / "whole")
    shorter = tiny(base, train__updates=2, **fields)
    train.run(shorter, tmp_path / "parts", environment=Words())

    resumed = train.run(
        c, tmp_path / "parts", environment=Words(), may_change=["train.updates"]
    )

    assert resumed | {CLOCK: 0} == whole | {CLOCK: 0}
    state, other = (state_of(c, tmp_path / name) for name in ("whole", "parts"))
    assert state.keys() == other.keys()
    assert all(np.array_equal(state[name], other[name]) for name in state)
    assert not any("embed" in name for name in state)
    arch = huggingface.architecture(base)
    mesh = distributed.make_mesh(c.mesh)
    start, merged = (
        huggingface.load(folder, arch, mesh)
        for folder in (base, tmp_path / "whole" / "export")
    )
    moved = lambda module, name: np.abs(
        merged["layers"][0][module][name] - start["layers"][0][module][name]
    ).max()
    assert moved("attention", "query_DHE") > 1e-2 and moved("mlp", "down_FD") > 1e-2
    # Rounded to bfloat16, and otherwise as it was.
    table = start["embed"]["table_VD"]
    np.testing.assert_allclose(merged["embed"]["table_VD"], table, rtol=2**-8)


@pytest.mark.slow
def test_mesh_of_eight_devices_changes_nothing_but_rounding(base, finished, tmp_path):
    c = tiny(base)
    c.mesh.update({"data": 2, "fsdp": 2, "tensor": 2})

    train.run(c, tmp_path, environment=Words())

    ours = lines_of(tmp_path, metrics.ATTEMPTS)
    assert ours == lines_of(finished, metrics.ATTEMPTS)
    pairs = zip(
        lines_of(tmp_path, metrics.METRICS),
        lines_of(finished, metrics.METRICS),
        strict=True,
    )
    for line, alone in pairs:
        assert line.keys() == alone.keys()
        for name, value in line.items():
            # Float32 sums in another order, through four updates of AdamW.
            assert value == pytest.approx(alone[name], rel=1e-4, abs=1e-6), name
