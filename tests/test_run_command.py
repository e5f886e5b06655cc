"""The run that a user starts: what it learns, and survives by starting again."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from sdpo_jax import config, metrics, train
from sdpo_jax.summary import describe
from tests.runs import (
    ROOT,
    assert_same_run,
    config_of,
    done,
    lines_of,
    saved_updates,
    write_run_file,
)


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


def start(run_file, workdir, *flags, **environment):
    """A run as a user starts it, on one device."""
    run = f"--config={run_file}", f"--workdir={workdir}"
    return start_command(*run, *flags, **environment)


def start_command(*flags, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "sdpo_jax.main", *flags],
        cwd=ROOT,
        # Compiled well: twenty updates take longer than that.
        env=os.environ | {"XLA_FLAGS": ""} | environment,
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


def is_saving(folder):
    return any((folder / "checkpoints").glob("*.unfinished"))


@pytest.fixture(scope="module")
def undisturbed(run_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    status, out, err = finish(start(run_file, folder))
    assert status == 0, err
    summary = json.loads((folder / "summary.json").read_text())
    assert out == f"{describe(summary, folder)}\n"
    told = err.splitlines()
    assert any("20 updates of 64 attempts on" in line for line in told)
    assert any(line.startswith("20/20 updates [") for line in told)
    return folder


def test_twenty_updates_of_sdpo_raise_the_score(undisturbed):
    lines = lines_of(undisturbed, metrics.METRICS)[1:]

    solved = [line["rollout/solved_samples"] for line in lines]

    assert len(lines) == 20
    assert np.mean(solved[:3]) < 0.1
    assert np.mean(solved[-5:]) > 0.3


@pytest.mark.slow
def test_killed_run_ends_as_an_undisturbed_one(run_file, undisturbed, tmp_path):
    folder = tmp_path / "killed"
    saved = lambda: len(list((folder / "checkpoints").glob("*[0-9]")))

    process = start(run_file, folder)
    wait_until(lambda: saved() >= 1 and is_saving(folder), process)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    reached = done(folder)

    process = start(run_file, folder)
    wait_until(lambda: done(folder) >= reached + 2, process)
    # Anywhere in an update: sampling, grading, training, writing or saving.
    time.sleep(random.random() * 0.3)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert done(folder) < 20

    status, _, err = finish(start(run_file, folder))
    assert status == 0, err
    assert_same_run(config_of(run_file), folder, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, send",
    [(signal.SIGTERM, os.kill), (signal.SIGINT, os.killpg)],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_signalled_run_saves_leaves_and_goes_on(
    number, send, run_file, undisturbed, tmp_path
):
    folder = tmp_path / "signalled"

    process = start(run_file, folder)
    wait_until(lambda: done(folder) >= 3, process)
    send(process.pid, number)
    status, out, err = finish(process)

    assert status == 1 and out == ""
    stopped = done(folder)
    told = f"stopped after update {stopped}, saved; the same command resumes"
    assert err.splitlines()[-1] == told
    assert saved_updates(folder)[-1] == stopped < 20
    assert "Traceback" not in err
    status, _, err = finish(start(run_file, folder))
    assert status == 0, err
    assert f"update {stopped} of 20" in err
    assert_same_run(config_of(run_file), folder, undisturbed)


GRADER = """
import pathlib, time, zlib

def grade(row, response):
    asked = pathlib.Path(__file__).with_name(row["uid"].partition("-")[0])
    if asked.exists():
        asked.with_name("begun").touch()
        time.sleep(30)
    return zlib.crc32(response.encode()) % 5 / 4
"""


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "validation"])
def test_signalled_run_leaves_while_graders_are_busy(split, tmp_path):
    fields = dict(env__name="function", env__function__grade="grader_of_words:grade")
    defaults = config.default().env.programming
    fields |= {
        f"env__programming__{name}": defaults[name]
        for name in ("wrong_answers_shown", "process_per")
    }
    fields |= dict(train__updates=4, train__evaluate_every=2, train__save_every=4)
    run_file = write_run_file(tmp_path, **fields)
    (tmp_path / "grader_of_words.py").write_text(GRADER)
    folder, busy = tmp_path / "signalled", tmp_path / split
    begin = lambda workdir: start(run_file, workdir, PYTHONPATH=str(tmp_path))

    process = begin(folder)
    wait_until(lambda: done(folder) == 1, process)
    busy.touch()
    wait_until(lambda: (tmp_path / "begun").exists(), process)
    signalled_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)

    assert time.monotonic() - signalled_s < 10
    assert status == 1 and "Traceback" not in err
    stopped = 1 if split == "train" else 2
    told = f"stopped after update {stopped}, saved; the same command resumes"
    assert err.splitlines()[-1] == told
    assert saved_updates(folder) == [stopped]
    busy.unlink()
    for workdir in (folder, tmp_path / "undisturbed"):
        status, _, err = finish(begin(workdir))
        assert status == 0, err
    assert_same_run(config_of(run_file), folder, tmp_path / "undisturbed")


def damage(checkpoint):
    """Flip one bit of its largest file."""
    file = max(checkpoint.rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
def test_damaged_checkpoint_falls_back_to_the_one_before(
    run_file, undisturbed, tmp_path
):
    folder = tmp_path / "damaged"
    shutil.copytree(undisturbed, folder)
    (folder / "summary.json").unlink()
    damage(folder / "checkpoints" / "00000020")

    status, _, err = finish(start(run_file, folder))

    assert status == 0, err
    assert "DAMAGED CHECKPOINT" in err and "going back to step 18" in err
    assert_same_run(config_of(run_file), folder, undisturbed)


def test_second_process_on_a_folder_is_refused(run_file, undisturbed, tmp_path):
    folder = tmp_path / "busy"
    first = start(run_file, folder)
    wait_until(lambda: (folder / "lock").exists(), first)

    status, out, err = finish(start(run_file, folder))

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


def test_finished_run_is_printed_as_json_when_asked(run_file, undisturbed):
    status, out, err = finish(start(run_file, undisturbed, "--json"))

    assert status == 0, err
    assert json.loads(out) == json.loads((undisturbed / "summary.json").read_text())


@pytest.mark.slow
def test_run_is_evaluated_by_its_folder_alone(undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    only = f"--workdir={folder}", "--job=evaluate", "--checkpoint=best", "--json"

    status, out, err = finish(start_command(*only))

    assert status == 0, err
    best = json.loads((folder / "summary.json").read_text())["best"]
    found = json.loads(out)
    assert {split: found[split] for split in ("validation", "heldout")} == {
        split: best[split] for split in ("validation", "heldout")
    }
    lines = lines_of(folder, "evaluation/heldout.jsonl")
    assert {line["update"] for line in lines} == {best["update"]}
    assert np.mean([line["score"] for line in lines]) == best["heldout"]["avg@8"]
    assert all(line["feedback"] for line in lines if line["score"] < 1)


@pytest.mark.slow
def test_signalled_evaluation_says_where_its_answers_are(undisturbed, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    answers = folder / "evaluation"

    process = start_command(f"--workdir={folder}", "--job=evaluate")
    wait_until((answers / "train.jsonl").exists, process)
    process.send_signal(signal.SIGTERM)
    status, out, err = finish(process)

    assert (status, out) == (1, "") and "Traceback" not in err
    told = f"stopped by a signal; the answers so far are in {answers}"
    assert err.splitlines()[-1] == told
    assert not (answers / "results.json").exists()
