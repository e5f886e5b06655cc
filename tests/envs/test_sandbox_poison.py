"""What a program does to its process harms no other test and no other program."""

import pytest

from sdpo_jax.envs.sandbox import Call, Sandbox
from tests.envs.boxes import LIMITS, call


def test_monkeypatching_poisons_neither_the_next_test_nor_the_next_program(lone):
    program = """
        import builtins, json, os, sys
        json.dumps = lambda *a, **k: '1'
        builtins.len = lambda x: 99
        os.write = None
        sys.modules["math"] = None
        def f(x):
            return x
        """
    call(lone, program, 5)
    honest = "import math\ndef f(x):\n    return len(x) + math.floor(0.5)"
    assert call(lone, honest, [1, 2]).result == 2
    counter = "n = []\ndef f():\n    n.append(1)\n    return len(n)"
    twice = lone.run(counter, [Call("f", []), Call("f", [])])
    assert [execution.result for execution in twice] == [1, 1]


@pytest.fixture(scope="module")
def sharing(tier):
    with Sandbox(LIMITS, tier, workers=1, process_per="program") as box:
        yield box


SHARED = {
    "right": ("def f(x):\n    return x", [1, 2]),
    "own state": ("n = []\ndef f(x):\n    n.append(x)\n    return n", [[1], [2]]),
    "prints": ("def f(x):\n    print(x)\n    return x", [1, 2]),
    "patched": (
        "import json\ndef f(x):\n    print(x)\n    json.dumps = str\n    return x",
        [1, 2],
    ),
    "newlines": ("def f(x):\n    return '\\n' * x", ["\n", "\n\n"]),
    "not so cheap": (
        "import time\ndef f(x):\n    end = time.process_time() + 0.3\n"
        "    while time.process_time() < end: pass\n    return x",
        [1, 2],
    ),
}


@pytest.mark.parametrize("name", SHARED)
def test_calls_that_share_a_process_return_what_they_would_alone(sharing, name):
    program, expected = SHARED[name]
    executions = sharing.run(program, [Call("f", [1]), Call("f", [2])])
    assert [execution.result for execution in executions] == expected
    if name in ("prints", "patched"):
        assert [execution.stdout for execution in executions] == ["1\n", "2\n"]


def test_calls_that_share_a_process_fail_apart(sharing):
    program = (
        "import os\ndef f(x):\n    if x == 1: raise KeyError(x)\n"
        "    if x == 2: os._exit(0)\n    if x == 3: os.abort()\n    return x"
    )
    executions = sharing.run(program, [Call("f", [x]) for x in range(5)])
    kinds = ["", "KeyError", "SystemExit", "Crash", ""]
    assert [execution.error_type for execution in executions] == kinds
    few = sharing.run(program, [Call("f", [1]), Call("f", [0])])
    assert [execution.status for execution in few] == ["error", "ok"]


# Searches its heap: the kernel tells, without a crash, which addresses can be read.
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
    # They come reversed, so that the search does not find itself.
    markers = [bytes(marker) for marker in markers]
    return [any(marker in page[::-1] for page in pages()) for marker in markers]
"""


@pytest.mark.parametrize("process_per", ["test", "program"])
def test_program_finds_no_other_program_or_output_in_its_memory(tier, process_per):
    victim = (
        "def f(x):\n"
        "    if x % 2 == 0: print('prin' + 'ted-7391' * x)\n"
        "    return 'retur' + 'ned-7391' * x"
    )
    with Sandbox(LIMITS, tier, workers=1, process_per=process_per) as box:
        for arguments in ([1, 3], [2, 4]):
            box.run(victim, [Call("f", [x]) for x in arguments])
        markers = ("ted-7391ted", "ned-7391ned", "x % 2 == 0: pri", "Serves requests")
        backwards = [list(marker[::-1].encode()) for marker in markers]
        found = call(box, SEARCH, *backwards, cpu_s=4.0)
    # The last stands in the worker itself: the search can find something.
    assert found.result == [False, False, False, True], found
