"""wandb gets what is logged; what it does to itself never reaches the run."""

import builtins
import json
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from sdpo_jax import tracker

NO_NETWORK = RuntimeError("no network")


class Wandb:
    """The module and its run; fails at the calls named, each time or once."""

    def __init__(self, failing=(), error=NO_NETWORK, times=99):
        self.calls, self.started = [], []
        self._failing, self._error, self._times = failing, error, times

    def init(self, **settings):
        self.started.append(settings)
        return self._do("init") or self

    def log(self, numbers, step):
        self._do("log", numbers, step)

    def finish(self):
        self._do("finish")

    def _do(self, name, *arguments):
        self.calls.append((name, *arguments))
        if name in self._failing and self._times:
            self._times -= 1
            if callable(self._error):
                self._error()
            else:
                raise self._error


@pytest.fixture
def installed(monkeypatch):
    def install(**options):
        module = Wandb(**options)
        # Set for wandb, and unset again after the test.
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "20")
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return install


def track(folder, lines=2, config=()):
    folder.mkdir(parents=True, exist_ok=True)
    run = tracker.Tracker("sdpo", folder, dict(config))
    for step in range(lines):
        run.log({"loss": 0.5}, step)
    run.close()


def test_wandb_that_is_missing_says_how_to_get_it(monkeypatch):
    real_import = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "wandb":
            raise ModuleNotFoundError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    tracker.check(None)
    with pytest.raises(ValueError, match="--wandb_project=sdpo.*pip install wandb"):
        tracker.check("sdpo")


def test_wandb_gets_the_config_and_every_line_in_order(installed, tmp_path):
    wandb = installed()

    track(tmp_path / "run", config={"seed": 1, "eval.pass_at": (1, 4)})

    (settings,) = wandb.started
    assert settings["config"] == {"seed": 1, "eval.pass_at": [1, 4]}
    assert (settings["project"], settings["name"]) == ("sdpo", "run")
    lines = [("log", {"loss": 0.5}, 0), ("log", {"loss": 0.5}, 1)]
    assert wandb.calls == [("init",), *lines, ("finish",)]


def test_resumed_run_has_its_id_and_a_namesake_another(installed, tmp_path):
    wandb = installed()

    for folder in ("a/run", "b/run", "a/run"):
        track(tmp_path / folder)

    first, other, again = (settings["id"] for settings in wandb.started)
    assert first == again != other
    assert {settings["resume"] for settings in wandb.started} == {"allow"}
    assert json.loads((tmp_path / "a/run" / tracker.ID).read_text()) == {"id": first}


@pytest.mark.parametrize("error", [RuntimeError("x"), OSError("x"), SystemExit(1)])
@pytest.mark.parametrize("name, calls", [("init", 1), ("log", 4), ("finish", 4)])
def test_call_that_fails_is_logged_once_and_passed_over(
    name, calls, error, installed, tmp_path, caplog
):
    wandb = installed(failing=[name], error=error)

    track(tmp_path)

    assert len(wandb.calls) == calls
    (told,) = caplog.messages
    assert told.startswith(f"wandb failed ({type(error).__name__}: ")


def test_line_after_one_that_failed_is_sent(installed, tmp_path, caplog):
    wandb = installed(failing=["log"], times=1)

    track(tmp_path, lines=3)

    assert [step for name, *rest in wandb.calls if rest for step in rest[1:]] == [
        0,
        1,
        2,
    ]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("name", ["init", "log", "finish"])
def test_call_that_hangs_is_left_behind(name, installed, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(tracker, "_END_S", 0.3)
    go_on = threading.Event()
    installed(failing=[name], error=lambda: go_on.wait(60) and None)

    before = time.monotonic()
    track(tmp_path)

    assert time.monotonic() - before < 20
    (told,) = caplog.messages
    assert told.startswith("wandb is still busy after 0.3 seconds; the run goes on")
    go_on.set()


def test_process_ends_while_wandb_hangs(tmp_path):
    program = f"""
import pathlib, sys, time, types
from sdpo_jax import tracker

tracker._END_S = 0.1
sys.modules["wandb"] = types.SimpleNamespace(init=lambda **_: time.sleep(60))
tracker.Tracker("sdpo", pathlib.Path({str(tmp_path)!r}), {{}}).close()
"""
    root = pathlib.Path(tracker.__file__).parents[1]

    subprocess.run([sys.executable, "-c", program], cwd=root, check=True, timeout=20)
