"""What the tests of the sandbox share."""

import json
import shutil
import textwrap

import pytest

from sdpo_jax.sandbox import control_groups
from sdpo_jax.sandbox.values import Call, Limits, Stdin

LIMITS = Limits(cpu_s=1.0, wall_s=4.0, memory_mb=512, output_kb=64, processes=64)


def is_installed(tier):
    """Whether this machine supports a tier; with bubblewrap, B must work."""
    if tier in ("A", "B") and not shutil.which("bwrap"):
        return False
    try:
        return tier != "A" or bool(control_groups.folders())
    except OSError:
        return False


def call(box, program, *arguments, **options):
    (execution,) = box.run(
        textwrap.dedent(program), [Call("f", list(arguments))], **options
    )
    return execution


def script(box, program, text=""):
    (execution,) = box.run(textwrap.dedent(program), [Stdin(text)])
    return execution


AS_SCRIPT = "\nimport json\nprint(json.dumps(f(*json.loads(input()))))\n"


def run_as(form, box, program, arguments):
    """The execution of f as a "call" or in a "script", and the value f returned."""
    if form == "call":
        execution = call(box, program, *arguments, cpu_s=4.0)
        return execution, execution.result
    tests = [Stdin(json.dumps(arguments))]
    (execution,) = box.run(program + AS_SCRIPT, tests, cpu_s=4.0)
    if execution.status != "ok":
        return execution, None
    return execution, json.loads(execution.stdout)


def running_in_both_forms(programs):
    """A test that runs programs as a call and as a script that prints the result.

    Args:
      programs: name -> program, arguments of f, result.
    """

    @pytest.mark.parametrize("form", ["call", "script"])
    @pytest.mark.parametrize("name", programs)
    def test(sandbox, name, form):
        program, arguments, expected = programs[name]
        execution, result = run_as(form, sandbox, program, arguments)
        assert (execution.status, result) == ("ok", expected), (execution, expected)

    return test


# Searches its heap: the kernel reports, without a crash, which addresses are readable.
SEARCH = r"""
import ctypes, os

def pages():
    libc = ctypes.CDLL(None)
    libc.sbrk.restype = ctypes.c_void_p
    libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    reader, writer = os.pipe()
    def read(start, step):
        while libc.write(writer, start, 4096) == 4096:
            yield os.read(reader, 4096)
            start += step
    top, here = libc.sbrk(0) & ~4095, id(object()) & ~4095
    yield from read(top - 4096, -4096)
    yield from read(here, 4096)
    yield from read(here - 4096, -4096)

def f(*markers):
    # The markers are reversed, so that the search does not match its own arguments.
    markers = [bytes(marker) for marker in markers]
    return [any(marker in page[::-1] for page in pages()) for marker in markers]
"""
