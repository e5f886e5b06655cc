"""A grid of runs: what it is called, refused for, and what is done twice."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from sdpo_jax import config, json_files, metrics, sweep, sweep_grid
from tests import compiling, runs

ROOT = pathlib.Path(__file__).parents[1]
QUICKSTART = str(ROOT / "configs" / "quickstart.py")
base = runs.base
# ml_collections reads run files the old way.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


MISTAKES = {
    "a mistyped field": (
        ["sdpo.topk=3"],
        "sdpo.topk: no such config field; nearest: sdpo.top_k = 100",
    ),
    "a group": (["sdpo=3"], "sdpo: no such config field; nearest: "),
    "a value of another type in one cell": (
        ["seed=0", "sdpo.top_k=20,many"],
        "top_k=many: flag --config.sdpo.top_k=many: invalid literal for int()",
    ),
    "a value out of range in one cell": (
        ["teacher.rate=0.5,2"],
        "rate=2: teacher.rate=2.0: must be in [0, 1]; meaning: step of the EMA",
    ),
    "what is wrong only together": (
        ["rollout.questions=4,6", "step.questions=4"],
        "questions=6: rollout.questions=6 is not a multiple of step.questions=4",
    ),
    "a value given twice": (["seed=0,0"], "two runs have the same name"),
    "no jobs": (["--jobs=0"], "--jobs=0: must be at least 1"),
    "no axis": (["seed"], "'seed' is not an axis"),
    "a missing run file": (
        ["--config=no/such/run.py"],
        "run: [Errno 2] No such file or directory: 'no/such/run.py'",
    ),
}


@pytest.mark.parametrize("arguments, told", MISTAKES.values(), ids=MISTAKES)
def test_mistake_is_one_line_before_anything_starts(
    arguments, told, tmp_path, monkeypatch
):
    monkeypatch.delattr(sweep.subprocess, "Popen")
    workdir = tmp_path / "sweep"

    status = sweep.main([f"--config={QUICKSTART}", f"--workdir={workdir}", *arguments])

    assert status.startswith("error: ") and told in status
    assert "\n" not in status
    assert not workdir.exists()


def test_overrides_get_the_types_of_their_fields():
    overrides = {
        "eval.pass_at": "(1,2)",
        "sdpo.keep_tail": "false",
        "optimizer.learning_rate": "1e-3",
        "env.heldout": "",
    }

    c = sweep.load(sweep.Run("a run", QUICKSTART, overrides))

    assert c.eval.pass_at == (1, 2)
    assert c.sdpo.keep_tail is False
    assert c.optimizer.learning_rate == 1e-3
    assert c.env.heldout == ""


@pytest.mark.parametrize(
    "config, overrides, told",
    [
        (QUICKSTART, {"grpo.clip_low": "0.1"}, "grpo.clip_low is not read with method"),
        ("tests", {}, "--config=tests: Is a directory: 'tests'; a run file is Python"),
    ],
)
def test_run_that_main_would_refuse_is_refused_by_name(config, overrides, told):
    with pytest.raises(ValueError, match=f"^a run: .*{told}"):
        sweep.load(sweep.Run("a run", config, overrides))


def test_setting_that_makes_no_sense_for_its_method_is_refused():
    run = sweep.Run("a run", QUICKSTART, {"method": "grpo", "rollout.attempts": "1"})

    with pytest.raises(ValueError, match="a run: rollout.attempts=1: GRPO compares"):
        sweep.load(run)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")
@pytest.mark.parametrize(
    "cores, jobs, shares",
    [
        ({0, 1, 2, 3}, 2, [{0, 1}, {2, 3}]),
        ({3, 5, 7}, 2, [{3}, {5, 7}]),
        ({1}, 2, [{1}, {1}]),
        ({0, 1}, 1, [{0, 1}]),
    ],
)
def test_jobs_share_the_cores_that_this_process_may_use(
    cores, jobs, shares, monkeypatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)

    assert sweep._shares(jobs) == shares


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="Linux only")
def test_only_what_is_started_inside_is_bound_to_the_cores():
    before = os.sched_getaffinity(0)
    core = max(before)
    code = "import os; print(*os.sched_getaffinity(0))"

    with sweep._on({core}):
        printed = subprocess.check_output([sys.executable, "-c", code], text=True)

    assert printed.split() == [str(core)]
    assert os.sched_getaffinity(0) == before


# The real command, on a model too small to learn.


@pytest.fixture
def short(base, tmp_path, monkeypatch):
    """A run file of seconds, for processes of one device."""
    monkeypatch.setenv("XLA_FLAGS", compiling.flags(1))
    folder = tmp_path / "a run file"
    folder.mkdir()
    return runs.write_run_file(
        folder,
        model__path=str(base),
        rollout__questions=2,
        rollout__attempts=4,
        rollout__max_response=16,
        step__questions=2,
        train__updates=6,
        train__save_every=100,
        train__evaluate_every=100,
        eval__max_questions=2,
    )


@pytest.mark.slow
def test_failed_run_stops_no_other_and_finished_ones_are_not_repeated(
    short, tmp_path, capsys, monkeypatch
):
    workdir, missing = tmp_path / "sweep", tmp_path / "missing.jsonl"
    questions = short.parent / "train.jsonl"
    command = [f"--config={short}", f"--workdir={workdir}", "--jobs=1"]
    command += [f"env.train={questions},{missing}", "train.updates=2"]
    good, bad = (
        sweep_grid.name_of({"env.train": str(f)}, ["env.train"])
        for f in (questions, missing)
    )

    assert sweep.main(command) == 1

    out = capsys.readouterr().out
    assert f"{good}: finished in " in out and f"{bad}: ended after " in out
    summary = json.loads((workdir / good / "summary.json").read_text())
    results = json.loads((workdir / sweep.RESULTS).read_text())
    assert [r["name"] for r in results] == [good, bad]
    assert [r["summary"] for r in results] == [summary, None]
    assert results[0]["overrides"] == {
        "env.train": str(questions),
        "train.updates": "2",
    }
    failure = out[out.index("FAILED") :]
    assert bad in failure and "error: " in failure and str(missing) in failure
    assert str(workdir / bad / "log.txt") in failure

    # Nothing starts for what is finished.
    monkeypatch.delattr(sweep.subprocess, "Popen")
    command[3] = f"env.train={questions}"
    (workdir / good).rename(workdir / "run")
    assert sweep.main(command) == 0
    assert "run: already finished, validation pass@1 " in capsys.readouterr().out


@pytest.mark.slow
def test_stopped_sweep_goes_on_where_its_runs_were(short, tmp_path):
    workdir = tmp_path / "sweep"
    command = [sys.executable, "-m", "sdpo_jax.sweep", f"--config={short}"]
    command += [f"--workdir={workdir}", "--jobs=1", "seed=0,1", "train.updates=40"]
    first, second = workdir / "seed=0", workdir / "seed=1"
    start = lambda: subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    process = start()
    deadline = time.monotonic() + 200
    file = first / metrics.METRICS
    while not file.exists() or file.read_bytes().count(b"\n") < 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=200)

    assert process.returncode == 1
    assert err == "stopped with 0 of 2 runs ended; the same command resumes\n"
    log = (first / "log.txt").read_text()
    assert "the same command resumes" in log and "Traceback" not in log
    (saved,) = (first / "checkpoints").iterdir()
    assert 1 <= int(saved.name) < 40 and not second.exists()

    process = start()
    out, err = process.communicate(timeout=200)

    assert (process.returncode, err) == (0, "")
    assert f"update {int(saved.name)} of 40" in (first / "log.txt").read_text()
    assert len(json.loads((workdir / sweep.RESULTS).read_text())) == 2
    assert "seconds\nrun" in out


def test_folder_of_another_config_is_refused_not_believed(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    folder.mkdir()
    run = sweep.Run("a", QUICKSTART, {"seed": "1"})
    other = sweep.load(sweep.Run("a", QUICKSTART, {"seed": "2"}))
    json_files.write_json_atomically(folder / "summary.json", {"seconds": 1})
    json_files.write_json_atomically(folder / "config.json", config.flat(other))

    summaries = sweep.run_all([run], tmp_path)

    assert summaries == {"a": None}
    words = sweep._last_error(folder / "log.txt")
    assert "holds a run with another config: seed: 2 saved, 1 now" in words
