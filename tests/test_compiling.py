"""The cache of compiled programs that all tests share."""

import subprocess
import sys
import warnings

import pytest

from tests import compiling

PROGRAM = """
import jax

def thrice(x):
    return 3 * x

print(jax.jit(thrice)(2.0))
"""


def entries():
    return list(compiling.CACHE.glob("jit_thrice-*-cache"))


@pytest.fixture(autouse=True)
def none_at_first():
    for entry in entries():
        entry.unlink()


def run():
    exec(PROGRAM, {})


def run_apart():
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("6.0\n", "")


@pytest.mark.parametrize("run", [run, run_apart])
@pytest.mark.parametrize("kept", [0, 1, 300])
def test_entry_that_is_cut_short_is_compiled_without_a_word(run, kept):
    run()
    (entry,) = entries()
    whole = entry.read_bytes()
    entry.write_bytes(whole[:kept])
    assert len(whole) > kept

    run()


def test_processes_share_entries():
    run()
    run_apart()

    assert len(entries()) == 1


def test_nothing_is_read_or_written_when_a_test_compiles():
    with compiling.anew():
        run()
    assert not entries()
    run()
    (entry,) = entries()
    entry.write_bytes(b"damage")

    # Had it been read, there would be a warning.
    with warnings.catch_warnings(action="error"), compiling.anew():
        run()

    assert entry.read_bytes() == b"damage"
