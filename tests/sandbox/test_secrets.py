"""Programs can find no secret or path of the host or the trainer."""

import os
import socket
from pathlib import Path

import pytest

from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Call, Stdin
from tests.sandbox.boxes import LIMITS, SEARCH, call

ROOT = Path(__file__).parents[2]
SECRET = "hf_73917391739173917391"


@pytest.fixture
def box(tier, monkeypatch, tmp_path):
    """A sandbox of a trainer with secrets in its environment and its folder."""
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "HOME", "USER"):
        monkeypatch.setenv(name, SECRET)
    (tmp_path / SECRET).mkdir()
    monkeypatch.chdir(tmp_path / SECRET)
    with Sandbox(LIMITS, tier, workers=1) as box:
        yield box


def test_secrets_and_paths_of_the_trainer_are_not_in_memory(box):
    markers = [SECRET, str(ROOT), os.getcwd(), "Serves requests"]
    backwards = [list(marker[::-1].encode()) for marker in markers]
    execution = call(box, SEARCH, *backwards, cpu_s=4.0)
    # The last marker is in the worker itself and proves that the search works.
    assert execution.result == [False] * 3 + [True], execution


def test_secrets_and_paths_of_the_trainer_are_in_no_python_object(box):
    program = """
        import gc, os, sys, sysconfig
        def f(*backwards):
            texts = [repr(vars(sys)), repr(dict(os.environ)), os.getcwd()]
            texts += [sysconfig.get_paths(), os.path.expanduser("~"), sys.argv]
            texts += [repr(thing)[:10_000] for thing in gc.get_objects()[:20_000]
                     if type(thing) in (list, dict, tuple)]
            frame = sys._getframe()
            while frame:
                texts += [repr(frame.f_locals), repr(frame.f_globals)]
                frame = frame.f_back
            texts = [str(thing)[::-1] for thing in texts]
            return [any(text in thing for thing in texts) for text in backwards]
        """
    markers = [SECRET, str(ROOT), os.getcwd(), "run_fork"]
    execution = call(box, program, *(marker[::-1] for marker in markers), cpu_s=4.0)
    assert execution.result == [False] * 3 + [True], execution


ERRORS = {
    "in the program": "def f(): return 1 / 0",
    "in the library": "import json\ndef f(): return json.loads('{')",
    "no such file": "def f(): open('/etc/passwd')",
    "no such module": "def f(): import numpy",
    "no such name": "def f(): from json import nothing",
    "the worker's frame": "import sys\ndef f(): raise ValueError(sys._getframe(9))",
    "complete traceback": (
        "import traceback\ndef f():\n    try: 1 / 0\n    except Exception:\n"
        "        raise ValueError(traceback.format_exc())"
    ),
    "complete stack": (
        "import traceback\ndef f(): raise ValueError(traceback.format_stack())"
    ),
    "the user": "import getpass\ndef f(): raise ValueError(getpass.getuser())",
    "the login": "import os\ndef f(): raise ValueError(os.getlogin())",
    "the home": "import pathlib\ndef f(): raise ValueError(pathlib.Path.home())",
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_contains_nothing_of_the_trainer(box, name):
    tests = [Call("f", []), Stdin("")]
    program = ERRORS[name] + "\nif __name__ == '__main__': f()\n"
    for execution in box.run(program, tests):
        assert execution.status == "error", execution
        for secret in (SECRET, str(ROOT), os.getcwd()):
            assert secret not in repr(execution)
        assert execution.error_source in program


def test_namespaces_hide_the_name_of_the_host(tier, box):
    program = "import os, socket\ndef f(): return [os.uname()[1], socket.gethostname()]"
    names = call(box, program).result
    assert names == (["sandbox"] * 2 if tier in "AB" else [socket.gethostname()] * 2)
