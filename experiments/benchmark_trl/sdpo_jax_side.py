"""This project's training loop on one workload; run by `run.py`.

The loop is `train.run` itself. This file adds only the environment, which scores by
order, and wrappers of two functions that measure.
"""

import collections
import contextlib
import json
import math
import pathlib
import tempfile
import threading
from collections.abc import Mapping
from types import SimpleNamespace
from unittest import mock

import jax
from ml_collections import ConfigDict

from experiments.benchmark_trl import workload as w
from sdpo_jax import config, json_files, metrics, train
from sdpo_jax.batch import Batch
from sdpo_jax.data.tokenizer import Tokenizer
from sdpo_jax.envs.base import Verdict
from sdpo_jax.learner import Learner
from sdpo_jax.questions.question import Question

# No update is the last one, or one after which to evaluate or save.
_NEVER = 10**6
_VERSIONS = ("jax", "jaxlib", "transformers", "git_commit")
_COMPILING = "/jax/core/compile/backend_compile_duration"


def run_config(workload: w.Workload, checkpoint: str) -> ConfigDict:
    """This project's config of a workload."""
    c = config.default()
    c.seed = w.SEED
    c.model.path = checkpoint
    c.env.name = ""
    c.rollout.questions = c.step.questions = workload.questions
    c.rollout.attempts = c.eval.attempts = workload.attempts
    c.rollout.max_prompt = workload.prompt
    c.rollout.max_response = workload.response
    c.reprompt.max_length = workload.reprompt
    c.reprompt.solution_template = workload.solution_template
    c.reprompt.template = "{prompt}{solution}{attempt}{feedback}" + workload.instruction
    c.sdpo.mixture = w.MIXTURE
    c.sdpo.importance_ratio_cap = w.IMPORTANCE_RATIO_CAP
    c.sdpo.support = "top_k" if workload.top_k else "full"
    if workload.top_k:
        c.sdpo.top_k = workload.top_k
    c.step.aggregation = "sequence_mean_all_rows"
    # What stays in a core's caches is faster, and takes less memory.
    c.step.micro_batch, c.step.chunk = math.gcd(8, workload.rows), 32
    c.teacher.rate = w.TEACHER_RATE
    c.optimizer.learning_rate = w.LEARNING_RATE
    c.optimizer.warmup_updates = 0
    c.optimizer.weight_decay = w.WEIGHT_DECAY
    c.optimizer.clip_norm = w.CLIP_NORM
    c.train.updates = c.train.evaluate_every = c.train.save_every = _NEVER
    # The evaluation before the first update draws as a rollout does.
    c.eval.temperature = c.eval.top_p = 1.0
    return c


class ByPlace:
    """Scores the first graded attempt at a question 1 and all others 0."""

    def __init__(self, workload: w.Workload):
        turns = enumerate(workload.prompts())
        self._train = [Question(str(number), turn) for number, turn in turns]
        self._evaluated = self._train[: workload.questions]
        self._attempts = workload.attempts
        self._graded = collections.Counter()
        self._lock = threading.Lock()

    def questions(self, split):
        """The questions of a split; every update trains on different ones."""
        return self._train if split == "train" else self._evaluated

    def start(self, question):
        """One attempt of one act."""

        def act(response, truncated):
            with self._lock:
                place = self._graded[question.uid] % self._attempts
                self._graded[question.uid] += 1
            return Verdict(float(place == 0), "By place")

        return SimpleNamespace(act=act)

    def close(self):
        """Nothing to close."""


class _EnoughUpdates(Exception):
    """Ends the workload; otherwise `train.run` would continue, evaluate and save."""


def measure(workload: w.Workload, checkpoint: str) -> dict:
    """Train on the workload and return the measurements."""
    compiling = []
    count = lambda name, s, **_: compiling.append(s) if name == _COMPILING else None
    jax.monitoring.register_event_duration_secs_listener(count)
    watch = _Watch(workload, compiling)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name) / "run"
        with watch.patched(), contextlib.suppress(_EnoughUpdates):
            train.run(run_config(workload, checkpoint), folder, ByPlace(workload))
        lines = list(json_files.read_lines(folder / metrics.METRICS))[1:]
        versions = json.loads((folder / "versions.json").read_text())
    for shapes in watch.seen:
        w.check(workload, shapes)
    if watch.compiled_late:
        raise ValueError(f"{watch.compiled_late} programs compiled after warm-up")
    return {
        **watch.record.result(),
        "compile_s": sum(compiling),
        "loss": [line["loss"] for line in lines[w.WARMUP :]],
        "seen": watch.seen[-1],
        "parameters": watch.parameters,
        "versions": {name: versions[name] for name in _VERSIONS},
    }


class _Watch:
    """Records the shapes of every batch, and the time after each update.

    Args:
      workload: how many updates there are.
      compiling: grows with every program that is compiled.
    """

    def __init__(self, workload: w.Workload, compiling: list):
        self._workload, self._compiling = workload, compiling
        self._compiled_warm = None
        self.seen, self.record = [], None
        self.parameters = 0

    @property
    def compiled_late(self) -> int:
        """Programs compiled after the warm-up."""
        return len(self._compiling) - self._compiled_warm

    def patched(self) -> contextlib.AbstractContextManager:
        """A context in which `train.run` calls this watch."""
        update, write_timings = Learner.update, metrics.RunLog.write_timings

        def watched(learner, batch):
            self.seen.append(_shapes(batch))
            leaves = jax.tree.leaves(learner.state.student)
            self.parameters = sum(leaf.size for leaf in leaves)
            return update(learner, batch)

        def timed(log, step, seconds):
            write_timings(log, step, seconds)
            self._end_step(step, seconds)

        both = contextlib.ExitStack()
        both.enter_context(mock.patch.object(Learner, "update", watched))
        both.enter_context(mock.patch.object(metrics.RunLog, "write_timings", timed))
        # The workload's stop token has no row, so that no response ends early; none of
        # its texts holds the token.
        both.enter_context(mock.patch.object(Tokenizer, "check_rows"))
        return both

    def _end_step(self, step: int, seconds: Mapping[str, float]) -> None:
        if step == 0:
            # The clock starts when everything is loaded.
            self.record = w.Record()
            return
        self.record.step(seconds)
        if step == w.WARMUP:
            self._compiled_warm = len(self._compiling)
        if step == self._workload.updates:
            raise _EnoughUpdates


def _shapes(batch: Batch) -> dict[str, int]:
    rows, reprompt = batch.reprompt_BQ.shape
    return {
        "prompt": batch.attempts.prompt_BP.shape[1],
        "response": int(batch.attempts.response_mask_BR.sum()) // rows,
        "reprompt": reprompt,
        "rows": rows,
        "rows_with_target": int(batch.has_target_B.sum()),
    }


if __name__ == "__main__":
    w.run_side(measure, __doc__)
