"""Honest programs of every style run as in a plain interpreter."""

import os
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Call, Packages, SandboxUnavailable
from tests.sandbox.boxes import LIMITS, call, script

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
    "collected garbage": (
        "import gc\ndef f(): return [gc.isenabled(), gc.get_freeze_count() > 999]",
        [],
        [True, True],
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


def test_surrogates_and_nul_survive_in_results(sandbox):
    execution = call(sandbox, "def f():\n    return 'a\\x00\\ud800'")
    assert execution.result == "a\0\ud800"


def test_undecodable_output_is_replaced(sandbox):
    execution = script(sandbox, "import os\nos.write(1, b'\\xff\\x00ok')")
    assert execution.stdout == "\ufffd\0ok"


@pytest.fixture
def folder_for_all():
    """A folder that the workers' users may read, unlike tmp_path."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


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
    with Sandbox(LIMITS, tier, workers=1, packages=packages) as box:
        execution = call(box, program, str(folder_for_all / "secret.py"))

    assert execution.result == [True, True, "refused", "refused", "no secret", 42]


def test_file_of_a_package_cannot_be_emptied(tier, folder_for_all, monkeypatch):
    module = folder_for_all / "given.py"
    module.write_text("x = 1")
    module.chmod(0o666)
    monkeypatch.syspath_prepend(folder_for_all)
    program = """
        import os, given
        def f():
            os.open(given.__file__, os.O_RDONLY | os.O_TRUNC)
        """
    with Sandbox(LIMITS, tier, workers=1, packages=Packages(["given"])) as box:
        assert call(box, program).error_type in ("PermissionError", "OSError")
    assert module.read_text() == "x = 1"


def test_packages_of_another_python_are_refused(folder_for_all, monkeypatch):
    (folder_for_all / "given.py").write_text("x = 1")
    monkeypatch.syspath_prepend(folder_for_all)
    monkeypatch.setattr(sys.implementation, "cache_tag", "cpython-27")
    with pytest.raises(SandboxUnavailable, match="given.py is for cpython-27"):
        Sandbox(LIMITS, tier="C", packages=Packages(["given"]))


def test_missing_packages_are_reported():
    missing = Packages(["not_there"])
    with pytest.raises(SandboxUnavailable, match="pip install not-there"):
        Sandbox(LIMITS, tier="C", packages=missing)

    with pytest.raises(SandboxUnavailable, match="No module named 'not_there'"):
        Sandbox(LIMITS, tier="C", packages=Packages(prepare="import not_there"))


def test_numpy_works_in_a_program_that_is_given_it(tier):
    program = """
        import numpy as np
        def f(n):
            return float(np.linalg.det(np.eye(n) * 2) + np.arange(n) @ np.ones(n))
        """
    with Sandbox(LIMITS, tier, packages=Packages(["numpy"])) as box:
        execution = call(box, program, 3, cpu_s=4.0)
    assert execution.result == pytest.approx(11.0), execution
