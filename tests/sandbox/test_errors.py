"""Error reports of programs that fail."""

import pytest

from sdpo_jax.sandbox.values import Call
from tests.sandbox.boxes import call


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
    "huge integer": ("def f():\n    return 10**60_000", "ValueError"),
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
