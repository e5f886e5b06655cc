"""Changes that a program makes to its process affect no other test or program."""

import textwrap

import pytest

from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Call
from tests.sandbox.boxes import LIMITS, SEARCH, call


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


# The state of its process that a program can see and that all programs should share.
LOOK = """
import atexit, builtins, gc, json, os, resource, signal, sys, threading, time, warnings

def is_open(fd):
    try:
        return os.fstat(fd).st_mode
    except OSError:
        return 0

def f():
    signals = set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}
    limits = [getattr(resource, name) for name in dir(resource) if "RLIMIT_" in name]
    return {
        "modules": sorted(sys.modules),
        "paths": [sys.path, [type(x).__name__ for x in sys.meta_path], sys.argv],
        "builtins": sorted(f"{k} {type(v)}" for k, v in vars(builtins).items()),
        "json": [json.dumps([1.5, "x"]), json.loads("[1]")],
        "environment": [dict(os.environ), os.getcwd(), os.umask(0)],
        "priority": [os.getpriority(0, 0), os.sched_getscheduler(0)],
        "processors": len(os.sched_getaffinity(0)),
        "limits": [resource.getrlimit(limit) for limit in limits],
        "signals": [str(signal.getsignal(s)) for s in sorted(signals)],
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "timers": [signal.getitimer(i) for i in range(3)],
        "threads": threading.active_count(),
        "exits": atexit._ncallbacks(),
        "interpreter": [
            sys.getrecursionlimit(), sys.get_int_max_str_digits(), str(sys.gettrace()),
            sys.getswitchinterval(), gc.isenabled(), gc.get_threshold(), sys.flags[:],
            str(sys.excepthook)[:20], sys.dont_write_bytecode, len(warnings.filters),
            threading.stack_size(),
        ],
        "streams": [type(s).__name__ for s in (sys.stdin, sys.stdout, sys.stderr)],
        "files": sorted(map(is_open, range(64))),
        "clock": time.time() > 10**9,
        "small integers": sum(range(257)),
    }
"""
POISONS = {
    "modules": "for name in list(sys.modules): sys.modules[name] = None",
    "a module replaced": "sys.modules['math'] = sys.modules['json']",
    "import hooks": "sys.meta_path.clear(); sys.path_hooks.clear()",
    "an import hook": """
        class Hook:
            def find_spec(self, *a): raise SystemExit
        sys.meta_path.insert(0, Hook())
        """,
    "additional modules": "vars(sys.meta_path[-1]).clear()",
    "__import__": "builtins.__import__ = lambda *a: 1 / 0",
    "built-in functions": "builtins.len = builtins.print = builtins.open = None",
    "all built-ins": "vars(builtins).clear()",
    "json": "json.dumps = json.loads = json.JSONEncoder = lambda *a, **k: '1'",
    "encoder of the worker": """
        frame = sys._getframe()
        while frame:
            frame.f_globals.update(ENCODER=None, solve=None, run_fork=None, libc=None)
            frame = frame.f_back
        """,
    "os": "os._exit = os.write = os.fork = os.read = os.kill = os.wait4 = None",
    "time": "time.time = time.monotonic = time.clock_gettime = lambda *a: 0.0",
    "the search path": "sys.path[:] = ['/tmp']",
    "arguments": "sys.argv[:] = ['x'] * 99",
    "the environment": "os.environ['PATH'] = os.environ['PYTHONPATH'] = '/tmp'",
    "the working folder": "os.chdir('/usr')",
    "the file mask": "os.umask(0o777)",
    "limits": """
        for limit in ("NOFILE", "AS", "CPU", "STACK", "NPROC"):
            kind = getattr(resource, f"RLIMIT_{limit}")
            resource.setrlimit(kind, (1, 1))
        """,
    "handlers of signals": """
        for s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(s, signal.SIG_IGN)
        """,
    "blocked signals": "signal.pthread_sigmask(signal.SIG_BLOCK, signal.Signals)",
    "timers": "signal.setitimer(signal.ITIMER_REAL, 100, 0.001)",
    "a thread that stays": """
        threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
        """,
    "an exit function": "atexit.register(os.abort)",
    "the recursion limit": "sys.setrecursionlimit(40)",
    "digits of integers": "sys.set_int_max_str_digits(0)",
    "tracing": "sys.settrace(lambda *a: 1 / 0); sys.setprofile(lambda *a: 1 / 0)",
    "garbage collection": "gc.freeze(); gc.disable(); gc.set_threshold(1)",
    "the hook of exceptions": "sys.excepthook = sys.unraisablehook = None",
    "warnings": "warnings.simplefilter('error')",
    "streams": "sys.stdin = sys.stdout = sys.stderr = sys.__stdout__ = None",
    "closed descriptors": "os.closerange(0, 64)",
    "swapped descriptors": "os.dup2(0, 1); os.dup2(1, 2); os.dup2(2, 0)",
    "small integers": "import ctypes; ctypes.memset(id(7) + 24, 9, 1)",
    "memory of the interpreter": "import ctypes; ctypes.memset(id(None), 0, 16)",
    "the code of the worker": """
        import types
        for thing in gc.get_objects():
            if isinstance(thing, types.FunctionType) and not thing.__closure__:
                thing.__code__ = (lambda *a, **k: None).__code__
        """,
    "every object": """
        for thing in gc.get_objects():
            if isinstance(thing, (list, dict, set)) and thing is not globals():
                thing.clear()
        """,
    "a crash": "import ctypes; ctypes.string_at(0)",
    "an end": "os._exit(1)",
    "an exception": "raise BaseException",
    "all its memory": "x = []\nwhile True: x.append(bytearray(10**7))",
    "all its time": "while True: pass",
    "all its output": "while True: print('x' * 999)",
}


@pytest.fixture(scope="module")
def pristine(tier):
    """A sandbox of one worker, and the state that its first program saw."""
    with Sandbox(LIMITS, tier, workers=1) as box:
        yield box, call(box, LOOK).result


@pytest.mark.parametrize("name", POISONS)
def test_next_test_and_next_program_see_unchanged_state(pristine, name):
    box, before = pristine
    body = textwrap.indent(textwrap.dedent(POISONS[name]), "    ")
    poison = LOOK.replace("def f():", f"def g():\n{body}\n\ndef f():")

    tests = [Call("f", []), Call("g", []), Call("f", [])]
    first, _, second = box.run(poison, tests, cpu_s=0.5, stop_at_limit=False)
    after = call(box, LOOK)

    assert first.result == before and before["threads"] == 1
    assert second.result == before
    assert after.result == before


@pytest.mark.parametrize("name", POISONS)
def test_next_program_sees_unchanged_state_after_calls_that_shared_a_process(
    sharing, name
):
    before = call(sharing, LOOK).result
    body = textwrap.indent(textwrap.dedent(POISONS[name]), "    ")
    poison = LOOK.replace("def f():", f"def g():\n{body}\n\ndef f():")

    sharing.run(poison, [Call("g", []), Call("f", []), Call("g", [])], cpu_s=0.5)

    assert call(sharing, LOOK).result == before
    assert before["threads"] == 1


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
    # Untouched, so that it costs no time.
    "memory that both may take": (
        "import builtins\nkept = vars(builtins).setdefault('kept', [])\n"
        "def f(x):\n    kept.append(bytes(300 << 20))\n    return x",
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


def test_calls_that_share_a_process_fail_separately(sharing):
    program = (
        "import os\ndef f(x):\n    if x == 1: raise KeyError(x)\n"
        "    if x == 2: os._exit(0)\n    if x == 3: os.abort()\n    return x"
    )
    executions = sharing.run(program, [Call("f", [x]) for x in range(5)])
    kinds = ["", "KeyError", "SystemExit", "Crash", ""]
    assert [execution.error_type for execution in executions] == kinds
    few = sharing.run(program, [Call("f", [1]), Call("f", [0])])
    assert [execution.status for execution in few] == ["error", "ok"]


def test_calls_that_share_a_process_share_its_time(sharing):
    program = (
        "import time\ndef f(x):\n    end = time.process_time() + 0.03\n"
        "    while time.process_time() < end: pass\n    return x"
    )
    executions = sharing.run(program, [Call("f", [x]) for x in range(4)])
    assert all(0.02 < execution.cpu_s < 0.09 for execution in executions), executions


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
        execution = call(box, SEARCH, *backwards, cpu_s=4.0)
    # The last marker is in the worker itself and proves that the search works.
    assert execution.result == [False, False, False, True], execution


def test_program_finds_no_long_request_in_memory_that_was_freed(lone):
    victim = "def f(x):\n    return len(x)\n" + "# text-7391 " * 3000
    call(lone, victim, "argu-7391 " * 3000)

    markers = ["-7391 # text-7391", "-7391 argu-7391", "Serves requests"]
    backwards = [list(marker[::-1].encode()) for marker in markers]
    execution = call(lone, SEARCH, *backwards, cpu_s=4.0)

    assert execution.result == [False, False, True], execution


# Reads the buffers of the worker's own objects without touching unmapped memory.
READ_WORKER = r"""
import ctypes, mmap, os, sys

def held(thing, depth=3):
    if isinstance(thing, (bytearray, mmap.mmap)):
        yield thing
    elif isinstance(thing, (list, tuple)) or hasattr(thing, "__dict__"):
        parts = thing if isinstance(thing, (list, tuple)) else vars(thing).values()
        for part in list(parts) if depth else ():
            yield from held(part, depth - 1)

def buffers():
    frame = sys._getframe(1)
    while frame:
        for thing in list(frame.f_locals.values()):
            yield from held(thing)
        frame = frame.f_back

def f(*markers):
    libc = ctypes.CDLL(None)
    libc.write.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    reader, writer = os.pipe()
    found, seen = set(), 0
    for buffer in buffers():
        start = ctypes.addressof(ctypes.c_char.from_buffer(buffer)) if buffer else 0
        # What comes first in a buffer is where the last output was.
        size = libc.write(writer, start, min(len(buffer), 4096))
        text = os.read(reader, size)[::-1] if size > 0 else b""
        found |= {marker for marker in markers if bytes(marker) in text}
        seen += 1
    return [seen, len(found)]
"""


def test_program_that_reaches_the_workers_objects_finds_no_other_output(lone):
    victim = "def f(x):\n    print('printed-7391', flush=True)\n    return x + '-7391'"
    call(lone, victim, "returned")
    call(lone, victim, "returned")
    markers = ["printed-7391", "returned-7391", "7391', flush"]
    backwards = [tuple(marker[::-1].encode()) for marker in markers]
    program = READ_WORKER + "\ndef g(*m):\n    return f(*map(tuple, m))"

    num_buffers, num_found = lone.run(program, [Call("g", backwards)])[0].result

    assert num_buffers >= 4 and num_found == 0
