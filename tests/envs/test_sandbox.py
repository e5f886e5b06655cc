import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sdpo_jax.envs.base import GraderFailure
from sdpo_jax.envs.isolation import cgroup, process, tiers
from sdpo_jax.envs.isolation.values import SandboxUnavailable
from sdpo_jax.envs.isolation.worker import seccomp
from sdpo_jax.envs.sandbox import Call, Limits, Packages, Sandbox, Stdin

ROOT = Path(__file__).parents[2]
LIMITS = Limits(cpu_s=1.0, wall_s=4.0, memory_mb=512, output_kb=64)


TIERS = ["A", "B", "C"]


def is_installed(tier):
    """Whether this machine can have a tier; what has bubblewrap must hold with it."""
    if tier in ("A", "B") and not shutil.which("bwrap"):
        return False
    try:
        return tier != "A" or bool(cgroup.folders())
    except OSError:
        return False


def with_tier(tier):
    if not is_installed(tier):
        pytest.skip(f"tier {tier}: no bubblewrap, or no control groups, here")
    return tier


@pytest.fixture(scope="module", params=TIERS)
def sandbox(request):
    tier = with_tier(request.param)
    with Sandbox(LIMITS, tier=tier, workers=2) as box:
        assert box.tier == tier
        yield box


@pytest.fixture(autouse=True)
def sandbox_survives(request):
    """After whatever a test did, an honest program must still run."""
    yield
    if "sandbox" in request.fixturenames:
        box = request.getfixturevalue("sandbox")
        assert call(box, "def f(x):\n    return x + 1", 1).result == 2


def call(box, program, *arguments, **options):
    (execution,) = box.run(
        textwrap.dedent(program), [Call("f", list(arguments))], **options
    )
    return execution


def script(box, program, text=""):
    (execution,) = box.run(textwrap.dedent(program), [Stdin(text)])
    return execution


# Honest programs.

HONEST_CALLS = {
    "solution class": (
        "class Solution:\n    def f(self, a):\n        return a * 2",
        [3],
        6,
    ),
    "recursion": (
        "def f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)",
        [15],
        610,
    ),
    "tuple": ("def f(n):\n    return (n, [n, (n,)])", [1], [1, [1, [1]]]),
    "named arguments": ("def f(a, b):\n    return a - b", {"b": 1, "a": 3}, 2),
    "dataclass": (
        """
        from __future__ import annotations
        import dataclasses
        @dataclasses.dataclass(order=True)
        class P:
            x: int
            y: int = 2
        def f(x):
            return dataclasses.astuple(max(P(x), P(0)))
        """,
        [1],
        [1, 2],
    ),
    "threads": (
        """
        import threading
        def f(n):
            found = []
            threads = [
                threading.Thread(target=found.append, args=(i,)) for i in range(n)
            ]
            [t.start() for t in threads]
            [t.join() for t in threads]
            return sorted(found)
        """,
        [5],
        [0, 1, 2, 3, 4],
    ),
    "heavy imports": (
        """
        import asyncio, copy, datetime, decimal, fractions, functools, hashlib
        import itertools, logging, operator, random, sqlite3, statistics, unittest
        import zoneinfo, xml.etree.ElementTree, concurrent.futures
        async def g(x):
            await asyncio.sleep(0)
            return x
        def f(x):
            digest = hashlib.sha256(b"").hexdigest()[:4]
            return [asyncio.run(g(x)), str(decimal.Decimal("1.1") + 1), digest]
        """,
        [7],
        [7, "2.1", "e3b0"],
    ),
    "exit after definitions": (
        "import sys\ndef f(x):\n    return x\nsys.exit()",
        [1],
        1,
    ),
    "deep recursion": (
        """
        import sys
        sys.setrecursionlimit(10**6)
        def f(n):
            return 0 if n == 0 else 1 + f(n - 1)
        """,
        [10_000],
        10_000,
    ),
    "restored builtins": (
        "def f(x):\n    return divmod(int(super.__name__ == 'super'), x)",
        [1],
        [1, 0],
    ),
}


@pytest.mark.parametrize("name", HONEST_CALLS)
def test_call_returns_what_an_honest_program_computes(sandbox, name):
    program, arguments, expected = HONEST_CALLS[name]
    (execution,) = sandbox.run(textwrap.dedent(program), [Call("f", arguments)])
    assert (execution.status, execution.result) == ("ok", expected), execution


HONEST_SCRIPTS = {
    "input": "print(int(input()) + int(input()))",
    "buffer": "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))",
    "open(0)": "print(sum(map(int, open(0))))",
    "/dev/stdin": "print(sum(map(int, open('/dev/stdin'))))",
    "readline": "import sys\ni = sys.stdin.readline\nprint(int(i()) + int(i()))",
    "main guard": "if __name__ == '__main__':\n    print(sum(map(int, open(0))))",
    "sys.exit": "import sys\nprint(sum(map(int, sys.stdin)))\nsys.exit()",
    "exit": "print(sum(map(int, open(0))))\nexit()",
    "os._exit": "import os\nos.write(1, b'3')\nos._exit(0)",
    "late thread": """
        import threading, time
        def g():
            time.sleep(0.05)
            print(3)
        threading.Thread(target=g).start()
        """,
    "atexit": "import atexit\natexit.register(print, 3)",
    "own stdout": "import sys, io, os\nsys.stdout = os.fdopen(1, 'w')\nprint(3)",
    "devnull": "import os, sys\nsys.stderr = open(os.devnull, 'w')\nprint(3)",
    "recursion in thread": """
        import sys, threading
        sys.setrecursionlimit(10**6)
        threading.stack_size(2**26)
        def g(n):
            return 3 if n == 0 else g(n - 1)
        thread = threading.Thread(target=lambda: print(g(5000)))
        thread.start()
        """,
}


@pytest.mark.parametrize("name", HONEST_SCRIPTS)
def test_script_prints_what_an_honest_program_prints(sandbox, name):
    execution = script(sandbox, HONEST_SCRIPTS[name], "1\n2\n")
    assert (execution.status, execution.stdout.strip()) == ("ok", "3"), execution


def test_large_input_reaches_a_script(sandbox):
    text = "1 " * 500_000
    execution = script(sandbox, "print(len(input().split()))", text)
    assert execution.stdout == "500000\n"


def test_prints_of_a_call_are_kept_apart_from_its_result(sandbox):
    program = 'def f(x):\n    print("{\\"result\\": 5}")\n    return x'
    execution = call(sandbox, program, 1)
    assert (execution.stdout, execution.result) == ('{"result": 5}\n', 1)


def test_sets_of_strings_have_the_same_order_in_every_worker():
    program = "def f():\n    return list({str(i) for i in range(50)})"
    orders = []
    for _ in range(2):
        with Sandbox(LIMITS, workers=1) as box:
            orders.append(call(box, program).result)
    assert orders[0] == orders[1] != sorted(orders[0])


def test_run_answers_many_threads_at_once(sandbox):
    def square(n):
        return call(sandbox, "def f(n):\n    return n * n", n).result

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(square, range(40))) == [n * n for n in range(40)]


# Errors.


def test_runtime_error_names_type_message_line_and_function(sandbox):
    program = "def g(x):\n    return 1 / x\n\ndef f(x):\n    return g(x)\n"
    execution = call(sandbox, program, 0)
    assert execution.status == "error"
    assert execution.error_type == "ZeroDivisionError"
    assert execution.error_message == "division by zero"
    assert (execution.error_line, execution.error_function) == (2, "g")
    assert execution.error_source == "return 1 / x"


def test_syntax_error_names_the_line(sandbox):
    execution = call(sandbox, "x = 1\ndef f(:\n", 0)
    assert (execution.error_type, execution.error_line) == ("SyntaxError", 2)
    assert execution.error_source == "def f(:"


ERRORS = {
    "missing function": ("g = 1", "NameError"),
    "sys.exit in a call": ("import sys\ndef f():\n    sys.exit()", "SystemExit"),
    "os._exit in a call": ("import os\ndef f():\n    os._exit(0)", "SystemExit"),
    "cyclic result": (
        "def f():\n    x = []\n    x.append(x)\n    return x",
        "ValueError",
    ),
    "deep result": (
        "def f():\n    x = []\n    for _ in range(500): x = [x]\n    return x",
        "ValueError",
    ),
    "abyss": (
        "import sys\nsys.setrecursionlimit(10**9)\n"
        "def f():\n    x = []\n    for _ in range(10**6): x = [x]\n    return x",
        "Crash",
    ),
    "huge integer": ("def f():\n    return 10**5000", "ValueError"),
    "not json": ("def f():\n    return {1}", "TypeError"),
    "NUL in source": ("def f():\n    return 1\0", "SyntaxError|ValueError"),
    "surrogate in source": ("def f():\n    return '\ud800'", "UnicodeEncodeError"),
    "crash": ("import ctypes\ndef f():\n    ctypes.string_at(0)", "Crash"),
    "str of the error fails": (
        "class E(Exception):\n    def __str__(self):\n        raise E\n"
        "def f():\n    raise E",
        "E",
    ),
    "parentheses": ("x = " + "(" * 100_000, "SyntaxError|MemoryError|RecursionError"),
    "unary chain": ("x = " + "-" * 100_000 + "1", "RecursionError|MemoryError|Crash"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_call_reports_an_error_for(sandbox, name):
    program, kinds = ERRORS[name]
    # A deep recursion takes its time on a busy machine.
    (execution,) = sandbox.run(program, [Call("f", [])], cpu_s=4.0)
    assert execution.status in ("error", "memory_limit"), execution
    assert execution.error_type in kinds.split("|"), execution


def test_surrogates_and_nul_survive_in_results(sandbox):
    execution = call(sandbox, "def f():\n    return 'a\\x00\\ud800'")
    assert execution.result == "a\0\ud800"


def test_undecodable_output_is_replaced(sandbox):
    execution = script(sandbox, "import os\nos.write(1, b'\\xff\\x00ok')")
    assert execution.stdout == "\ufffd\0ok"


# Limits.

LIMIT_CASES = {
    "endless loop": ("def f():\n    while True: pass", "time_limit"),
    "loop that ignores signals": (
        """
        import signal
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        def f():
            while True: pass
        """,
        "time_limit",
    ),
    "slow compilation": ("x = " + "+".join(["1"] * 400_000), "time_limit|error"),
    "memory bomb": ("def f():\n    return len(bytearray(10**10))", "memory_limit"),
    "slow memory bomb": (
        "def f():\n    x = []\n    while True: x.append(bytearray(10**7))",
        "memory_limit",
    ),
    "output bomb": ("def f():\n    while True: print('x' * 1000)", "output_limit"),
    "result bomb": ("def f():\n    return 'x' * 10**6", "output_limit"),
    "closed pipes": (
        "import os\ndef f():\n    os.closerange(0, 64)\n    while True: pass",
        "time_limit",
    ),
}


@pytest.mark.parametrize("name", LIMIT_CASES)
def test_limit_ends(sandbox, name):
    program, statuses = LIMIT_CASES[name]
    start = time.monotonic()
    # On a busy machine, filling the memory takes more than the usual second.
    cpu_s = 4.0 if statuses == "memory_limit" else None
    execution = call(sandbox, program, cpu_s=cpu_s)
    assert execution.status in statuses.split("|"), execution
    assert time.monotonic() - start < 8.0


def test_program_that_sleeps_meets_the_wall_twice_and_is_counted(sandbox):
    before = sandbox.wall_retries
    program = "import time\ndef f():\n    time.sleep(60)"
    execution = call(sandbox, program, cpu_s=0.1)
    assert execution.status == "time_limit"
    assert sandbox.wall_retries == before + 1


def test_tests_after_a_spent_limit_are_skipped_unless_asked_for(sandbox):
    program = "def f(x):\n    while x: pass\n    return x"
    tests = [Call("f", [0]), Call("f", [1]), Call("f", [0])]
    short = sandbox.run(program, tests, cpu_s=0.2)
    whole = sandbox.run(program, tests, cpu_s=0.2, stop_at_limit=False)
    assert [e.status for e in short] == ["ok", "time_limit", "skipped"]
    assert [e.status for e in whole] == ["ok", "time_limit", "ok"]


# Hostile programs. Each tries, and returns what it got away with.


def test_program_cannot_read_host_files(sandbox, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("42")
    secret.chmod(0o644)
    paths = ["/etc/passwd", str(secret), __file__, "/proc/self/environ", "/proc/1/maps"]
    program = """
        import os
        def f(paths):
            found = []
            for path in paths:
                try:
                    found.append(open(path, "rb").read().decode())
                except OSError:
                    pass
            return found
        """
    assert call(sandbox, program, paths).result == []


@pytest.fixture
def folder_for_all():
    """A folder that the workers' users may read, which tmp_path is not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.mark.parametrize("tier", TIERS)
def test_packages_can_be_imported_and_nothing_else(tier, folder_for_all, monkeypatch):
    (folder_for_all / "given").mkdir()
    (folder_for_all / "given" / "__init__.py").write_text("import late\nvalue = 40")
    (folder_for_all / "late.py").write_text("value = 2")
    (folder_for_all / "secret.py").write_text("value = 1")
    monkeypatch.syspath_prepend(folder_for_all)
    packages = Packages(["given", "late"], "import given")
    program = """
        import os, sys
        def f(secret):
            seen = ["given" in sys.modules, "late" in sys.modules]
            import given, late
            for attempt in (
                lambda: open(secret),
                lambda: open(given.__file__ + "x", "w"),
            ):
                try:
                    attempt()
                except OSError:
                    seen.append("refused")
            try:
                import secret
            except ImportError:
                seen.append("no secret")
            return [*seen, given.value + late.value]
        """
    with Sandbox(LIMITS, with_tier(tier), workers=1, packages=packages) as box:
        execution = call(box, program, str(folder_for_all / "secret.py"))

    assert execution.result == [True, True, "refused", "refused", "no secret", 42]


def test_packages_that_are_not_there_are_told():
    missing = Packages(["not_there"])
    with pytest.raises(SandboxUnavailable, match="pip install not-there"):
        Sandbox(LIMITS, tier="C", packages=missing)

    with pytest.raises(SandboxUnavailable, match="No module named 'not_there'"):
        Sandbox(LIMITS, tier="C", packages=Packages(prepare="import not_there"))


@pytest.mark.parametrize("tier", TIERS)
def test_numpy_works_in_a_program_that_is_given_it(tier):
    program = """
        import numpy as np
        def f(n):
            return float(np.linalg.det(np.eye(n) * 2) + np.arange(n) @ np.ones(n))
        """
    with Sandbox(LIMITS, with_tier(tier), packages=Packages(["numpy"])) as box:
        execution = call(box, program, 3, cpu_s=4.0)
    assert execution.result == pytest.approx(11.0), execution


def test_program_sees_no_environment_and_no_spare_descriptors(sandbox):
    program = """
        import os
        def f():
            open_files = []
            for fd in range(64):
                try:
                    os.fstat(fd)
                    open_files.append(fd)
                except OSError:
                    pass
            return [sorted(os.environ), len(open_files)]
        """
    names, count = call(sandbox, program).result
    assert set(names) <= {"PYTHONHASHSEED", "LC_CTYPE", "PWD"}
    assert count == 4  # Standard input, output and error, and the report.


def test_program_writes_and_changes_no_file(sandbox, tmp_path):
    target = tmp_path / "target"
    target.write_text("kept")
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o777)
    target.chmod(0o666)
    program = """
        import os
        def f(folder):
            target = folder + "/target"
            attempts = [
                lambda: open(target, "w"),
                lambda: open(folder + "/new", "w"),
                lambda: open("/tmp/sandbox_escape", "w"),
                lambda: open("/dev/shm/sandbox_escape", "w"),
                lambda: open("new", "w"),
                lambda: os.unlink(target),
                lambda: os.rename(target, folder + "/x"),
                lambda: os.truncate(target, 0),
                lambda: os.chmod(target, 0),
                lambda: os.utime(target),
                lambda: os.symlink("a", folder + "/b"),
                lambda: os.link(target, folder + "/c"),
                lambda: os.mkdir(folder + "/d"),
                lambda: os.mkfifo(folder + "/e"),
            ]
            found = []
            for number, attempt in enumerate(attempts):
                try:
                    attempt()
                    found.append(number)
                except OSError:
                    pass
            return found
        """
    assert call(sandbox, program, str(tmp_path)).result == []
    assert target.read_text() == "kept"
    assert os.listdir(tmp_path) == ["target"]


def test_program_has_no_network(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = """
            import socket
            def f(port):
                found = []
                for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, 40):
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        try:
                            socket.socket(family, kind)
                            found.append([family, kind])
                        except OSError:
                            pass
                try:
                    socket.create_connection(("127.0.0.1", port), 1)
                    found.append(port)
                except OSError:
                    pass
                return found
            """
        assert call(sandbox, program, server.getsockname()[1]).result == []


def test_program_starts_no_process(sandbox):
    program = """
        import ctypes, os, subprocess, multiprocessing
        def f():
            libc = ctypes.CDLL(None, use_errno=True)
            found = []
            def fork_bomb():
                while True:
                    os.fork()
            def raw(number, *arguments):
                result = libc.syscall(number, *arguments)
                if result == 0 and number in (56, 57, 58, 220, 435):
                    os._exit(0)
                if result < 0:
                    raise OSError
            attempts = {
                "fork": fork_bomb,
                "forkpty": os.forkpty,
                "spawn": lambda: subprocess.Popen(["/bin/true"]),
                "exec": lambda: os.execv("/bin/true", ["true"]),
                "vfork": lambda: raw(58),
                "clone": lambda: raw(56, 17, 0, 0, 0, 0),
                "clone in a new user": lambda: raw(56, 0x10000011, 0, 0, 0, 0),
                "clone3": lambda: raw(435, bytes(88), 88),
                "x32 fork": lambda: raw(0x40000000 + 57),
                "unshare": lambda: raw(272, 0x10000000),
                "multiprocessing": lambda: multiprocessing.Process(target=id).start(),
            }
            if os.uname().machine != "x86_64":  # The numbers differ.
                for name in ("vfork", "clone", "clone in a new user", "x32 fork"):
                    del attempts[name]
                del attempts["unshare"]
            for name, attempt in attempts.items():
                try:
                    attempt()
                    found.append(name)
                except OSError:
                    pass
            return found
        """
    assert call(sandbox, program).result == []


def test_program_cannot_touch_its_worker_or_forge_its_messages(sandbox):
    program = """
        import ctypes, fcntl, os, resource, signal, struct
        def f():
            parent = os.getppid()
            libc = ctypes.CDLL(None, use_errno=True)
            text = b'{"executions": [{"ended": "exit"}]}'
            forged = struct.pack(">I", len(text)) + text
            found = []
            def pipes(fd):
                os.write(os.open(f"/proc/{parent}/fd/{fd}", os.O_WRONLY), forged)
            def libc_call(name, *arguments):
                if getattr(libc, name)(*arguments) < 0:
                    raise OSError
            def own_signal():
                fcntl.fcntl(0, fcntl.F_SETOWN, parent)
            attempts = [
                lambda: pipes(0), lambda: pipes(1), lambda: pipes(3), lambda: pipes(4),
                lambda: os.kill(parent, signal.SIGKILL),
                lambda: os.killpg(0, signal.SIGKILL),
                lambda: os.kill(-1, signal.SIGKILL),
                lambda: resource.prlimit(parent, resource.RLIMIT_CPU, (0, 0)),
                lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE),
                lambda: libc_call("ptrace", 16, parent, None, None),
                lambda: libc_call("process_vm_readv", parent, None, 0, None, 0, 0),
                lambda: open(f"/proc/{parent}/mem", "r+b"),
                lambda: os.setpriority(os.PRIO_PROCESS, parent, 19),
                lambda: os.pidfd_open(parent),
                lambda: os.setsid(),
                lambda: libc_call("prctl", 4, 1, 0, 0, 0),
                own_signal,
            ]
            for number, attempt in enumerate(attempts):
                try:
                    attempt()
                    found.append(number)
                except OSError:
                    pass
            return found
        """
    execution = call(sandbox, program)
    assert (execution.status, execution.result) == ("ok", [])


def test_program_that_reads_its_own_pipes_harms_only_itself(sandbox):
    program = """
        import os, threading
        def f():
            os.write(1, b"x" * 1000)
            for fd in range(1, 32):
                try:
                    os.read(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY), 5000)
                except OSError:
                    pass
            return 1
        """
    assert call(sandbox, program, cpu_s=0.2).status in ("ok", "error", "time_limit")


def test_forged_report_counts_only_as_a_result(sandbox):
    program = """
        import os
        def f():
            for fd in range(3, 32):
                try:
                    os.write(fd, b'{"result": 1, "status": "ok", "passed": true}')
                except OSError:
                    pass
            os._exit(0)
        """
    execution = call(sandbox, program)
    assert (execution.status, execution.result) == ("ok", 1)


@pytest.mark.parametrize(
    "report",
    [
        "[]",
        "3",
        "null",
        '{"error": 1}',
        "{" * 10**4,
        "[" * 200,
        '{"result": ',
        "\\xff",
        '{"error": {"line": 1e99, "type": [], "message": {}}}',
        "9" * 5000,
    ],
)
def test_malformed_report_is_an_error_of_the_program(sandbox, report):
    program = f"""
        import os
        def f():
            for fd in range(3, 32):
                try:
                    os.write(fd, b'{report}')
                except OSError:
                    pass
            os._exit(0)
        """
    assert call(sandbox, program).status == "error"


def test_expected_outputs_are_nowhere_in_the_process(sandbox):
    marker = "expected-" + "7391" * 3
    keep = [marker]  # Lives in this process, as expected outputs do.
    program = """
        import gc, sys
        def f(half):
            marker = half + "7391" * 3
            mine = id(marker)
            found = []
            frame = sys._getframe()
            while frame:
                for value in list(frame.f_locals.values()):
                    if marker in repr(value) and frame.f_code.co_name != "f":
                        found.append("frame")
                frame = frame.f_back
            for thing in gc.get_objects():
                if isinstance(thing, (list, dict, tuple)) and len(thing) < 50:
                    for value in thing.values() if isinstance(thing, dict) else thing:
                        if type(value) is str and value == marker and id(value) != mine:
                            found.append("gc")
            return found
        """
    assert call(sandbox, program, "expected-").result == []
    assert keep


def test_monkeypatching_poisons_neither_the_next_test_nor_the_next_program():
    program = """
        import builtins, json, os, sys
        json.dumps = lambda *a, **k: '1'
        builtins.len = lambda x: 99
        os.write = None
        sys.modules["math"] = None
        def f(x):
            return x
        """
    with Sandbox(LIMITS, workers=1) as box:
        call(box, program, 5)
        honest = "import math\ndef f(x):\n    return len(x) + math.floor(0.5)"
        assert call(box, honest, [1, 2]).result == 2
        counter = "n = []\ndef f():\n    n.append(1)\n    return len(n)"
        twice = box.run(counter, [Call("f", []), Call("f", [])])
        assert [execution.result for execution in twice] == [1, 1]


@pytest.fixture(scope="module")
def sharing():
    with Sandbox(LIMITS, workers=1, process_per="program") as box:
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


def test_thread_bomb_is_contained(sandbox):
    program = """
        import threading, time
        def f():
            count = 0
            try:
                while count < 100_000:
                    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
                    count += 1
            except (RuntimeError, MemoryError):
                pass
            return count
        """
    execution = call(sandbox, program, cpu_s=0.5)
    assert execution.status in ("time_limit", "memory_limit") or (
        execution.result <= 4096
    )


def test_program_runs_as_nobody_of_importance(sandbox):
    program = "import os\ndef f():\n    return [os.getuid(), os.getgroups()]"
    uid, groups = call(sandbox, program).result
    assert uid != 0 and 0 not in groups


def answer(steps, machine, number, *arguments):
    """What a filter says to a call: 0 for yes, an error number, or "kill"."""
    words = {0: number, 4: seccomp.MACHINES[machine]}
    words |= {16 + 8 * i: value for i, value in enumerate(arguments)}
    at = accumulator = 0
    while True:
        operation, when_true, when_false, operand = steps[at]
        at += 1
        if operation == seccomp.LOAD:
            accumulator = words.get(operand, 0)
            continue
        if operation == seccomp.GIVE:
            code = {seccomp.ALLOW: 0, seccomp.KILL: "kill"}
            return code.get(operand, operand & 0xFFFF)
        truth = {
            seccomp.EQUAL: accumulator == operand,
            seccomp.AT_LEAST: accumulator >= operand,
            seccomp.ANY_BIT: accumulator & operand,
        }[operation]
        at += when_true if truth else when_false


@pytest.mark.parametrize("column, machine", [(0, "x86_64"), (1, "aarch64")])
def test_filter_answers_each_call_as_the_tables_say(column, machine):
    common = seccomp.worker_steps(landlock_abi=1, column=column)
    forks = seccomp.fork_steps(column)

    def numbers(table):
        return seccomp.call_numbers(table, column)

    for number in numbers(seccomp.DENIED_CALLS).values():
        assert answer(common, machine, number) == errno.EPERM
    for number in numbers(seccomp.WORKER_CALLS).values():
        assert answer(common, machine, number) == 0
        assert answer(forks, machine, number) == errno.EPERM
    special = numbers(seccomp.CONDITIONAL_CALLS)
    thread, process = 0x3D0F00, 0x1200011
    assert answer(forks, machine, special["clone"], thread) == 0
    assert answer(forks, machine, special["clone"], process) == errno.EPERM
    assert answer(common, machine, special["clone3"]) == errno.ENOSYS
    assert answer(common, machine, special["prlimit64"], 0) == 0
    assert answer(common, machine, special["prlimit64"], 7) == errno.EPERM
    assert answer(common, machine, special["socketpair"], 1) == 0
    assert answer(common, machine, special["socketpair"], 2) == errno.EPERM
    for command, code in ((1, 0), (8, 1), (10, 1), (15, 1), (1030, 0)):
        assert answer(common, machine, special["fcntl"], 0, command) == code
    truncate = (0, 0, os.O_TRUNC)
    assert answer(common, machine, special["openat"], *truncate) == errno.EPERM
    newer = seccomp.worker_steps(landlock_abi=3, column=column)
    assert answer(newer, machine, special["openat"], *truncate) == 0
    assert answer(common, machine, 460) == errno.ENOSYS
    assert answer(common, machine, 0x40000000 + 57) == errno.ENOSYS
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[machine]
    assert answer(common, other, 0) == "kill"


# The life of a sandbox.


def children_of(pid):
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_close_leaves_no_process_behind():
    box = Sandbox(LIMITS, workers=2)
    workers = [box._free.get() for _ in range(2)]
    for worker in workers:
        box._free.put(worker)
    pids = [worker._process.pid for worker in workers]
    box.close()
    box.close()
    assert not any(map(alive, pids))
    with pytest.raises(ValueError, match="closed"):
        call(box, "def f(): pass")


def test_close_wakes_the_calls_that_wait_for_a_worker():
    box = Sandbox(Limits(cpu_s=0.5), workers=1)
    outcomes = []

    def run():
        try:
            outcomes.append(call(box, "def f():\n    while True: pass").status)
        except ValueError:
            outcomes.append("closed")

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    box.close()
    for thread in threads:
        thread.join(timeout=10.0)
    assert sorted(outcomes) == ["closed", "closed", "time_limit"]


def test_workers_and_programs_end_when_the_trainer_is_killed():
    program = f"""
        import sys, threading, time
        sys.path.insert(0, {str(ROOT)!r})
        from sdpo_jax.envs.sandbox import Call, Limits, Sandbox
        box = Sandbox(Limits(cpu_s=30, wall_s=60), workers=1)
        endless = ("def f():\\n    while True: pass", [Call("f", [])])
        threading.Thread(target=box.run, args=endless).start()
        time.sleep(0.3)
        print(box._free.qsize(), flush=True)
        time.sleep(60)
        """
    code = textwrap.dedent(program)
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert trainer.stdout.readline() == b"0\n"
        family = [p for p in descendants(trainer.pid)]
        assert len(family) >= 2
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
        trainer.stdout.close()
    deadline = time.monotonic() + 5.0
    while any(map(alive, family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, family))


def descendants(pid):
    found = []
    for task in os.listdir(f"/proc/{pid}/task"):
        text = Path(f"/proc/{pid}/task/{task}/children").read_text()
        for child in map(int, text.split()):
            found += [child, *descendants(child)]
    return found


def test_killed_worker_is_replaced_and_its_program_run_again():
    with Sandbox(LIMITS, workers=1) as box:
        worker = box._free.get()
        box._free.put(worker)
        os.kill(worker._process.pid, signal.SIGKILL)
        assert call(box, "def f(): return 1").result == 1


def test_worker_that_dies_twice_raises_grader_failure(monkeypatch):
    with Sandbox(LIMITS, workers=1) as box:
        answers = []

        def die(worker, request):
            answers.append(request)
            raise GraderFailure("a sandbox worker died")

        monkeypatch.setattr(process.Worker, "exchange", die)
        with pytest.raises(GraderFailure, match="died"):
            call(box, "def f(): return 1")
        assert len(answers) == 2
        monkeypatch.undo()
        assert call(box, "def f(): return 1").result == 1


def test_oversized_message_of_a_worker_is_refused(monkeypatch):
    with Sandbox(LIMITS, workers=1) as box:
        worker = box._free.get()
        reader, writer = os.pipe()
        os.write(writer, b"\xff\xff\xff\xff")
        monkeypatch.setattr(worker._process, "stdout", open(reader, "rb", buffering=0))
        with pytest.raises(GraderFailure, match="allowed"):
            worker._read(1000, 1.0)
        worker._process.stdout.close()
        monkeypatch.undo()
        os.close(writer)
        box._free.put(worker)


def test_limits_only_is_refused_to_root_with_credentials(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "x")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(SandboxUnavailable, match="HF_TOKEN"):
        Sandbox(LIMITS, tier="D", workers=1)


def test_limits_only_still_ends_daemons_and_fork_bombs(monkeypatch):
    for name in tiers.CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    program = """
        import os, time
        def f():
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(60)
                os._exit(0)
            return os.getpid()
        """
    with Sandbox(LIMITS, tier="D", workers=1) as box:
        assert box.tier == "D"
        assert call(box, program).status == "ok"
        worker = box._free.get()
        box._free.put(worker)
        assert children_of(worker._process.pid) == []


def test_tier_that_does_not_hold_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(tiers, "probe", lambda worker: ["can open a socket"])
    with pytest.raises(SandboxUnavailable, match="can open a socket.*bubblewrap"):
        Sandbox(LIMITS, tier="auto", workers=1)


def test_probe_finds_the_holes_of_limits_only():
    with_limits_only = process.Worker("D", LIMITS, Packages())
    try:
        found = tiers.probe(with_limits_only)
    finally:
        with_limits_only.close()
    assert {"can open a socket", "can start a process"} <= set(found)


def test_platform_without_a_sandbox_is_named(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="needs Linux.*container"):
        Sandbox(LIMITS)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Limits(cpu_s=0), "cpu_s must be positive"),
        (lambda: Limits(cpu_s=10, wall_s=5), "raise wall_s"),
        (lambda: Sandbox(tier="Z"), "tier must be"),
        (lambda: Sandbox(workers=0), "workers must be"),
        (lambda: Sandbox(process_per="x"), "process_per must be"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_sandbox_can_be_made_and_used_in_short_lived_threads():
    boxes = []
    maker = threading.Thread(target=lambda: boxes.append(Sandbox(LIMITS, workers=1)))
    maker.start()
    maker.join()
    time.sleep(0.1)
    with boxes[0] as box:
        assert call(box, "def f(): return 1").result == 1


def test_environments_import_no_jax():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import sdpo_jax.envs.base, sdpo_jax.envs.programming, sdpo_jax.envs.sandbox\n"
        "print([m for m in ('jax', 'jaxlib', 'numpy', 'flax') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(ROOT)]
    assert json.loads(subprocess.check_output(command)) == []
