"""Whole runs: what they learn, write and survive."""

import dataclasses
import functools
import itertools
import json
import math
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments.quickstart import make_base, task, tokenizer
from sdpo_jax import (
    components,
    config,
    distributed,
    evaluate,
    export,
    interrupt,
    json_files,
    learner,
    metrics,
    optimizer,
    train,
    train_state,
)
from sdpo_jax.checkpoint import Checkpoints
from sdpo_jax.envs import grading_pool
from sdpo_jax.envs.base import Verdict
from sdpo_jax.model import decoder, huggingface, huggingface_export
from sdpo_jax.questions import openthoughts
from sdpo_jax.questions.question import Question
from sdpo_jax.rollout import sampler

ROOT = pathlib.Path(__file__).parents[1]
QUICKSTART = ROOT / "experiments" / "quickstart"
WRITTEN = (metrics.METRICS, metrics.ATTEMPTS)
# Of the clock, not of the seed.
CLOCK = "seconds"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """One folder of compiled programs for all runs here; it changes no bit of them."""
    folder = tmp_path_factory.mktemp("cache")
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield folder
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of random weights, too small to learn and quick to compile."""
    folder = tmp_path_factory.mktemp("model") / "base"
    small = dict(width=16, mlp_width=24, layers=1, heads=4, kv_heads=2, head_width=8)
    arch = dataclasses.replace(make_base.ARCHITECTURE, **small)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: decoder.init(arch, jax.random.key(0)))
    # Large enough that what is drawn depends on the weights.
    params = jax.tree.map(lambda s: rng.normal(0, 0.5, s.shape).astype(s.dtype), shapes)
    huggingface_export.save(folder, arch, params, source=None, dtype="float32")
    tokenizer.save(folder)
    return folder


@pytest.fixture
def one_device(monkeypatch):
    one = functools.partial(distributed.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(distributed, "make_mesh", one)


class Words:
    """Scores a response by its text in a way that no model can foresee.

    Args:
      before: called with the split of every attempt, before it is scored.
    """

    def __init__(self, before=lambda split: None):
        self._before = before

    def questions(self, split):
        # Prompts of one length in tokens, so that one shape is compiled.
        last = task.MADE_UP[config.SPLITS.index(split)]
        prompts = [task.prompt([word, last]) for word in task.MADE_UP[4:6]]
        return [Question(f"{split}-{n}", p) for n, p in enumerate(prompts)]

    def start(self, question):
        return Attempt(question, self._before)

    def close(self):
        raise AssertionError("an environment of the caller's own was closed")


@dataclasses.dataclass
class Attempt:
    question: Question
    before: object

    def act(self, response, truncated):
        self.before(self.question.uid.partition("-")[0])
        score = zlib.crc32(response.encode()) % 5 / 4
        if score == 1:
            return Verdict(score, "Accepted")
        return Verdict(score, "Wrong Answer", f"\nExpected\n{score}", {"share": score})


def tiny(base, **fields):
    """A run of a few seconds in `Words`."""
    c = config.default()
    c.model.path = str(base)
    c.rollout.questions = 2
    c.rollout.attempts = 4
    c.rollout.max_prompt = 32
    c.rollout.max_response = 8
    c.reprompt.max_length = 96
    c.step.questions = 2
    c.sdpo.top_k = 20
    c.optimizer.learning_rate = 1e-2
    c.optimizer.warmup_updates = 1
    c.train.updates = 4
    c.train.evaluate_every = 2
    c.train.save_every = 3
    # As the rollouts, so that one program samples both.
    c.eval.attempts = 4
    c.eval.temperature = 1.0
    c.eval.top_p = 1.0
    c.eval.pass_at = (1, 2)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return c


def restored(c, folder, update=None):
    """The state of a checkpoint, and what was saved beside it."""
    mesh = distributed.make_mesh(c.mesh, devices=jax.devices()[:1])
    arch = huggingface.architecture(c.model.path)
    checkpoints = Checkpoints(folder / "checkpoints")
    abstract = train_state.abstract_state(c, arch, mesh).replace(base=None)
    state, extra, _ = checkpoints.restore(abstract, update)
    checkpoints.close()
    return state, extra


def state_of(c, folder, update=None):
    """The arrays of a checkpoint, by name."""
    state, _ = restored(c, folder, update)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def saved_updates(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def assert_same_run(c, folder, other):
    """Two finished runs differ in nothing but what the clock decides."""
    for name in WRITTEN:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert summary_of(folder) == summary_of(other)
    assert saved_updates(folder) == saved_updates(other)
    for update in saved_updates(folder):
        ours, theirs = state_of(c, folder, update), state_of(c, other, update)
        assert ours.keys() == theirs.keys()
        for name, leaf in ours.items():
            assert leaf.tobytes() == theirs[name].tobytes(), name


def summary_of(folder):
    summary = json.loads((folder / "summary.json").read_text())
    assert summary.pop(CLOCK) > 0
    return summary


def lines_of(folder, name):
    return list(json_files.read_lines(folder / name))


# What a run learns and survives: the real command in a process of its own.


def write_questions(folder, words):
    """Every list of one or two of `words`; validation and held-out lists of three."""
    meaning = task.draw_meaning(random.Random(0))
    pairs = [(a, b) for a in words for b in words if a != b]
    lists = {
        "train": [(a,) for a in words] + pairs,
        "validation": [(*pair, words[0]) for pair in pairs[:8]],
        "heldout": [(*pair, words[1]) for pair in pairs[-8:]],
    }
    for split, of_split in lists.items():
        rows = [
            task.row(f"{split}-{n}", of, meaning, [9, 10, 12, 14])
            for n, of in enumerate(of_split)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)


RUN_FILE = '''\
"""The quickstart, shorter."""

import importlib.util


def get_config():
    spec = importlib.util.spec_from_file_location("quickstart", {quickstart!r})
    quickstart = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(quickstart)
    c = quickstart.get_config()
    c.update_from_flattened_dict({fields!r})
    return c
'''


def write_run_file(folder, **fields):
    """A run file on the quickstart's model and sandbox, with questions of its own."""
    write_questions(folder, task.MADE_UP[:4])
    files = {f"env.{s}": str(folder / f"{s}.jsonl") for s in config.SPLITS}
    fields = {k.replace("__", "."): v for k, v in fields.items()} | files
    quickstart = str(ROOT / "configs" / "quickstart.py")
    file = folder / "run.py"
    file.write_text(RUN_FILE.format(quickstart=quickstart, fields=fields))
    return file


def config_of(file):
    scope = {}
    exec(file.read_text(), scope)
    return scope["get_config"]()


@pytest.fixture(scope="module")
def run_file(tmp_path_factory):
    return write_run_file(
        tmp_path_factory.mktemp("a run file"),
        optimizer__learning_rate=5e-4,
        train__updates=20,
        train__evaluate_every=6,
        train__save_every=2,
        eval__attempts=8,
    )


def start(run_file, workdir, cache):
    """`python -m sdpo_jax.main` as a user starts it, on one device."""
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "XLA_FLAGS": "",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "sdpo_jax.main"]
        + [f"--config={run_file}", f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # As a terminal does, so that Ctrl-C can be sent to it and all its children.
        start_new_session=True,
    )


def finish(process):
    """Exit status, stdout and stderr."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_until(condition, process):
    deadline = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def done(folder):
    """Updates whose numbers are written."""
    file = folder / metrics.METRICS
    return file.read_bytes().count(b"\n") - 1 if file.exists() else -1


def is_saving(folder):
    return any((folder / "checkpoints").glob("*.unfinished"))


@pytest.fixture(scope="module")
def undisturbed(run_file, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    status, out, err = finish(start(run_file, folder, cache))
    assert status == 0, err
    assert json.loads(out) == json.loads((folder / "summary.json").read_text())
    return folder


def test_twenty_updates_of_sdpo_raise_the_score(undisturbed):
    lines = lines_of(undisturbed, metrics.METRICS)[1:]

    solved = [line["rollout/solved_samples"] for line in lines]

    assert len(lines) == 20
    assert np.mean(solved[:3]) < 0.1
    assert np.mean(solved[-5:]) > 0.3


@pytest.mark.slow
def test_killed_run_ends_as_an_undisturbed_one(run_file, cache, undisturbed, tmp_path):
    folder = tmp_path / "killed"
    saved = lambda: len(list((folder / "checkpoints").glob("*[0-9]")))

    process = start(run_file, folder, cache)
    wait_until(lambda: saved() >= 1 and is_saving(folder), process)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    reached = done(folder)

    process = start(run_file, folder, cache)
    wait_until(lambda: done(folder) >= reached + 2, process)
    # Anywhere in an update: sampling, grading, training, writing or saving.
    time.sleep(random.random() * 0.3)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert done(folder) < 20

    status, _, err = finish(start(run_file, folder, cache))
    assert status == 0, err
    assert_same_run(config_of(run_file), folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, send",
    [(signal.SIGTERM, os.kill), (signal.SIGINT, os.killpg)],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_signalled_run_saves_leaves_and_goes_on(
    number, send, run_file, cache, undisturbed, tmp_path
):
    folder = tmp_path / "signalled"

    process = start(run_file, folder, cache)
    wait_until(lambda: done(folder) >= 3, process)
    send(process.pid, number)
    status, out, err = finish(process)

    assert status == 1 and out == ""
    stopped = done(folder)
    told = f"stopped after update {stopped}, saved; the same command resumes"
    assert err.splitlines()[-1] == told
    assert saved_updates(folder)[-1] == stopped < 20
    assert "Traceback" not in err
    status, _, err = finish(start(run_file, folder, cache))
    assert status == 0, err
    assert f"update {stopped} of 20" in err
    assert_same_run(config_of(run_file), folder, undisturbed)


def damage(checkpoint):
    """Flip one bit of its largest file."""
    file = max(checkpoint.rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
def test_damaged_checkpoint_falls_back_to_the_one_before(
    run_file, cache, undisturbed, tmp_path
):
    folder = tmp_path / "damaged"
    shutil.copytree(undisturbed, folder)
    (folder / "summary.json").unlink()
    damage(folder / "checkpoints" / "00000020")

    status, _, err = finish(start(run_file, folder, cache))

    assert status == 0, err
    assert "DAMAGED CHECKPOINT" in err and "going back to step 18" in err
    assert_same_run(config_of(run_file), folder, undisturbed)


def test_second_process_on_a_folder_is_refused(run_file, cache, undisturbed, tmp_path):
    folder = tmp_path / "busy"
    first = start(run_file, folder, cache)
    wait_until(lambda: (folder / "lock").exists(), first)

    status, out, err = finish(start(run_file, folder, cache))

    first.kill()
    first.communicate()
    assert status == 1 and out == ""
    told = f"error: {folder} is in use by another process; wait for it or give another "
    assert err == f"{told}--workdir\n"


def test_finished_run_says_so_without_building_anything(
    run_file, undisturbed, monkeypatch, caplog
):
    monkeypatch.delattr(train, "build")
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*") if p.is_file()}
    before.pop(undisturbed / "lock")

    with caplog.at_level("INFO"):
        summary = train.run(config_of(run_file), undisturbed)

    assert caplog.messages == [f"{undisturbed} is finished; nothing to do"]
    assert summary == json.loads((undisturbed / "summary.json").read_text())
    assert all(p.stat().st_mtime_ns == time_ns for p, time_ns in before.items())


# The rest in this process, with an environment of its own.


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """A finished run of `tiny`, which no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        one = functools.partial(distributed.make_mesh, devices=jax.devices()[:1])
        patch.setattr(distributed, "make_mesh", one)
        folder = tmp_path_factory.mktemp("finished") / "run"
        train.run(tiny(base), folder, environment=Words())
    return folder


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


def test_stop_right_after_an_evaluation_keeps_the_best(
    base, finished, tmp_path, one_device
):
    folder, once = tmp_path / "run", iter([True])

    def stop(split):
        # While the second update is evaluated: it is saved with its score, then left.
        if split == "validation" and done(folder) == 1 and next(once, False):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(interrupt.Interrupted, match="stopped after update 2, saved"):
        train.run(tiny(base), folder, environment=Words(stop))
    checkpoints = Checkpoints(folder / "checkpoints")
    assert checkpoints.best() == 2
    checkpoints.close()
    train.run(tiny(base), folder, environment=Words())

    assert_same_run(tiny(base), folder, finished)


class Many(Words):
    """More training questions than a batch holds."""

    def questions(self, split):
        if split != "train":
            return super().questions(split)
        prompts = [task.prompt([a, b]) for a in task.MADE_UP[4:7] for b in "xy"]
        return [Question(f"train-{n}", p) for n, p in enumerate(prompts)]


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
    splits = ("train", "validation", "heldout")
    assert [first[f"{split}/dropped_questions"] for split in splits] == [1, 1, 1]
    assert last["heldout/dropped_questions"] == 1
    asked = {line["question"] for line in lines_of(tmp_path, metrics.ATTEMPTS)}
    assert "long" not in asked


def test_signal_handlers_are_given_back(base, finished):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with interrupt.on_signals() as stop:
        stop.raise_if_set()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(interrupt.Interrupted):
            stop.raise_if_set()
        # A second one is not caught any more.
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before


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
        abstract = learner.trained_shapes(built).student
        checkpoints = Checkpoints(folder / "checkpoints")
        student = checkpoints.restore_part("student", abstract, update)
        checkpoints.close()
        return evaluate.on_split(built, student, "heldout")[0]


def shrunk(base, name, **fields):
    """A run file of `configs`: its task and method stay, sizes are those of `tiny`."""
    c = config.from_file(ROOT / "configs" / f"{name}.py")
    small = tiny(base, train__updates=2, **fields)
    for part in ("model", "rollout", "eval", "train"):
        c[part].update(small[part])
    c.reprompt.max_length = small.reprompt.max_length
    c.step.questions, c.sdpo.top_k = 2, 20
    return c


CHOICES = {"prompt": "2+{n}?\n\nA: {n}\nB: 2{n}\n", "answer": "B"}
CALLS = {
    "prompt": "Call f with {n}.",
    "answer": json.dumps([{"Action": "f", "Action_Input": '{"n": 1}'}]),
}
PROGRAMS = {
    "prompt": "Print {n}.",
    "tests": json.dumps(
        {"inputs": ["", ""], "outputs": ["1", "1"], "testtype": "stdin", "fn_name": ""}
        | {"time_limit": 6}
    ),
}


@pytest.mark.parametrize(
    "name, row, fixed",
    [
        ("sciknoweval_chemistry", CHOICES, False),
        ("toolalpaca", CALLS, True),
        ("livecodebench_v6", PROGRAMS, False),
        *(
            pytest.param(name, row, False, marks=pytest.mark.slow)
            for name, row in [
                ("sciknoweval_biology", CHOICES),
                ("sciknoweval_materials", CHOICES),
                ("sciknoweval_physics", CHOICES),
                ("toolalpaca", CALLS),
                ("livecodebench_v6_heldout", PROGRAMS),
            ]
        ),
    ],
)
def test_run_files_of_the_paper_train_on_files_of_the_official_format(
    name, row, fixed, base, tmp_path, one_device
):
    c = shrunk(base, name, rollout__max_prompt=64)
    if fixed:
        c.env.grader, c.reprompt.show_feedback = "fixed", "always"
    files = [split for split in config.SPLITS if "share:" not in c.env[split]]
    for split in files:
        c.env[split] = str(tmp_path / f"{split}.json")
        rows = [
            {"idx": n, "system": None, "kind": "-", "tests": "-", "elo": 1500}
            | row
            | {"prompt": row["prompt"].format(n=n)}
            for n in range(60)
        ]
        text = "\n".join(map(json.dumps, rows if split == "train" else rows[:2]))
        pathlib.Path(c.env[split]).write_text(text)

    summary = train.run(c, tmp_path / "run")

    assert 0 <= summary["last"]["heldout"]["avg@4"] <= 1
    updates = [
        line for line in lines_of(tmp_path / "run", WRITTEN[0]) if "loss" in line
    ]
    outcomes = {line["outcome"] for line in lines_of(tmp_path / "run", WRITTEN[1])}
    assert len(updates) == 2
    # Random weights solve nothing: feedback is all there is to learn from.
    if c.reprompt.show_feedback != "never":
        assert all(line["loss"] > 0 for line in updates)
        assert outcomes <= {"Incorrect Format", "Truncated"}
    else:
        assert outcomes == {"Wrong Answer"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["frozen_lake", "sokoban"])
def test_run_files_of_games_train_on_seeds(name, base, tmp_path, one_device):
    # Prompts take 338 to 492 of this tokenizer's letters: one shape is compiled.
    sizes = dict(rollout__max_prompt=512, reprompt__max_length=620)
    c = shrunk(base, name, **sizes)
    c.env.train, c.eval.max_questions = "seeds:0-9", 2

    summary = train.run(c, tmp_path)

    assert 0 <= summary["last"]["heldout"]["avg@4"] <= 1
    updates = [line for line in lines_of(tmp_path, WRITTEN[0]) if "loss" in line]
    assert len(updates) == 2 and all(line["loss"] > 0 for line in updates)
    records = lines_of(tmp_path, WRITTEN[1])
    assert {record["question"].partition("-")[0] for record in records} == {name}
    assert {r["outcome"] for r in records} <= {"Incorrect Format", "Truncated"}


@pytest.mark.slow
def test_run_file_of_opsd_trains_on_converted_rows_of_openthoughts(
    base, tmp_path, one_device
):
    c = config.from_file(ROOT / "configs" / "openthoughts_opsd.py")
    small = tiny(base, train__updates=2, rollout__max_prompt=64)
    for part in ("model", "rollout", "eval", "train"):
        c[part].update(small[part])
    c.reprompt.max_length, c.step.questions, c.step.micro_batch = 96, 2, 0
    # The tiny tokenizer spends a token on every letter.
    c.reprompt.template = "{prompt}{feedback}"
    c.env.validation = "share:0.1"
    solution = "Twice {n} is \\boxed{{2{n}}}. " + "So it is. " * 40
    for split in ("train", "heldout"):
        c.env[split] = str(tmp_path / f"{split}.jsonl")
        rows = [
            openthoughts.from_openthoughts(
                {"problem": f"2*{n}?", "solution": solution.format(n=n), "Answer": n}
            )
            | {"prompt": f"2*{n}?"}
            for n in (range(10, 70) if split == "train" else range(70, 72))
        ]
        pathlib.Path(c.env[split]).write_text("\n".join(map(json.dumps, rows)))

    train.run(c, tmp_path / "run")

    updates = [
        line for line in lines_of(tmp_path / "run", WRITTEN[0]) if "loss" in line
    ]
    attempts = lines_of(tmp_path / "run", WRITTEN[1])
    assert len(updates) == 2 and all(line["loss"] > 0 for line in updates)
    assert updates[0]["teacher/has_target"] == updates[0]["teacher/shown_feedback"] == 1
    for attempt in attempts:
        assert "Twice" in attempt["feedback"] and attempt["has_target"]
        # What is too long is cut with a mark, and never silently.
        assert "[...]" in attempt["reprompt"]


@pytest.mark.slow
def test_adapters_are_trained_resumed_and_exported(base, tmp_path, one_device):
    fields = dict(lora__rank=2, rollout__questions=2, step__questions=1)
    c = tiny(base, train__updates=4, **fields)
    whole = train.run(c, tmp_path / "whole", environment=Words())
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
