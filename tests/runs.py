"""What the tests of whole runs share: a tiny model, a task, and what a run left."""

import dataclasses
import functools
import json
import pathlib
import random
import zlib

import jax
import numpy as np
import pytest

from experiments.quickstart import make_base, task, tokenizer
from sdpo_jax import (
    config,
    distributed,
    json_files,
    manifest,
    metrics,
    train,
    train_state,
)
from sdpo_jax.checkpoint import Checkpoints
from sdpo_jax.envs.base import Verdict
from sdpo_jax.model import decoder, huggingface, huggingface_export
from sdpo_jax.questions.question import Question

ROOT = pathlib.Path(__file__).parents[1]
WRITTEN = (metrics.METRICS, metrics.ATTEMPTS)
# Of the clock, not of the seed.
CLOCK = "seconds"


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


@pytest.fixture(scope="module")
def finished(base, tmp_path_factory):
    """A finished run of `tiny`, which no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        one = functools.partial(distributed.make_mesh, devices=jax.devices()[:1])
        patch.setattr(distributed, "make_mesh", one)
        folder = tmp_path_factory.mktemp("finished") / "run"
        train.run(tiny(base), folder, environment=Words())
    return folder


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


def scores_of(folder):
    """What the best checkpoint is chosen by, of every checkpoint that has it."""
    paths = (folder / "checkpoints").iterdir()
    return {path.name: manifest.read_manifest(path)["score"] for path in paths}


def assert_same_run(c, folder, other):
    """Two finished runs differ in nothing but what the clock decides."""
    for name in WRITTEN:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert summary_of(folder) == summary_of(other)
    assert saved_updates(folder) == saved_updates(other)
    assert scores_of(folder) == scores_of(other)
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


def done(folder):
    """Updates whose numbers are written."""
    file = folder / metrics.METRICS
    return file.read_bytes().count(b"\n") - 1 if file.exists() else -1


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
