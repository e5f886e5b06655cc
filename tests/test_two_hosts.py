"""A run on two hosts: two processes that share one folder and one mesh."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from sdpo_jax import json_files, metrics
from tests import compiling

ROOT = pathlib.Path(__file__).parents[1]

PROCESS = """
import os, pathlib, signal, sys, threading, time
import jax, json, types
jax.config.update("jax_cpu_collectives_implementation", "gloo")
address, index, folder, base = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.distributed.initialize(address, 2, index)
from sdpo_jax import config, evaluate, interrupt, train
from sdpo_jax.envs.base import Question, Verdict


class Words:
    def questions(self, split):
        return [Question(f"{split}-{n}", f"word {n}") for n in range(4)]

    def start(self, question):
        def act(response, truncated):
            assert index == 0, "only the first host grades"
            solved = len(response) % 2 == 0
            return Verdict(float(solved), "odd", "" if solved else "seen on host 0")

        return types.SimpleNamespace(act=act)


class Busy(Words):
    def start(self, question):
        if question.uid.startswith("train"):
            pathlib.Path(folder, "busy").touch()
            time.sleep(30)
        return super().start(question)


def signal_while_busy():
    while not pathlib.Path(folder, "busy").exists():
        time.sleep(0.1)
    signalled_s.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGTERM)


c = config.default()
c.model.path = base
c.rollout.questions, c.rollout.attempts, c.step.questions = 4, 2, 2
c.rollout.max_prompt, c.rollout.max_response, c.reprompt.max_length = 64, 8, 128
c.sdpo.top_k = 20
c.train.updates, c.train.save_every, c.eval.attempts = 2, 1, 2
signalled_s = []
if index == 1:
    threading.Thread(target=signal_while_busy, daemon=True).start()
try:
    train.run(c, folder, environment=Busy())
except interrupt.Interrupted as stopped:
    assert str(stopped) == "stopped before the first update was complete", stopped
    assert not signalled_s or time.monotonic() - signalled_s[0] < 15
else:
    raise AssertionError("the signal to the other host was not heard")
summary = train.run(c, folder, environment=Words())
found = evaluate.run(c, Words(), folder)
print(json.dumps([summary, found]))
assert train.run(c, folder, environment=Words()) == summary
"""


@pytest.mark.slow
def test_two_hosts_train_as_one_and_stop_as_one(tmp_path):
    base = ROOT / "experiments" / "quickstart" / "base"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(index), tmp_path, base],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": compiling.flags(2)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    results = [host.communicate(timeout=400) for host in hosts]

    for host, (_, err) in zip(hosts, results, strict=True):
        assert host.returncode == 0, err
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in results)
    assert first == second
    summary, found = first
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    for split in ("validation", "heldout"):
        assert found[split] == summary["last"][split]
        answers = json_files.read_lines(tmp_path / "evaluation" / f"{split}.jsonl")
        assert len(list(answers)) == 4 * 2
    lines = list(json_files.read_lines(tmp_path / metrics.METRICS))
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert len(list(json_files.read_lines(tmp_path / metrics.ATTEMPTS))) == 16
