"""Programs that cheat: only a value that f returned counts as a result."""

import math
import os
import textwrap

import pytest

from sdpo_jax.sandbox.values import Call, Stdin
from tests.sandbox.boxes import call, script

# Name -> program, and the value that its f returned or the type of its error.
RESULTS = {
    "object that equals everything": (
        "class E:\n    def __eq__(self, other): return True\ndef f(): return E()",
        TypeError,
    ),
    "text that equals everything": (
        "class S(str):\n    def __eq__(self, other): return True\n"
        "    def __str__(self): return 'right'\n    __repr__ = __hash__ = __str__\n"
        "def f(): return S('wrong')",
        "wrong",
    ),
    "integer that shows another": (
        "class I(int):\n    def __repr__(self): return '42'\n    __str__ = __repr__\n"
        "def f(): return I(1)",
        1,
    ),
    "float that shows another": (
        "class F(float):\n    def __repr__(self): return '42'\n    __str__ = __repr__\n"
        "def f(): return F(1.5)",
        1.5,
    ),
    "list that equals everything": (
        "class L(list):\n    def __eq__(self, other): return True\ndef f(): return "
        "L([1])",
        [1],
    ),
    "dictionary with other items": (
        "class D(dict):\n    def items(self): return [('a', 2)]\ndef f(): return "
        "D(a=1)",
        {"a": 2},
    ),
    "object with a __dict__": (
        "class A:\n    def __init__(self): self.result = 1\ndef f(): return A()",
        TypeError,
    ),
    "object that pretends its class": (
        "class A:\n    __class__ = int\ndef f(): return A()",
        TypeError,
    ),
    "object that pretends to be of numpy": (
        "class A:\n    __module__ = 'numpy'\n    def tolist(self): return self\n"
        "def f(): return A()",
        ValueError,
    ),
    "object with __reduce__": (
        "class A:\n    def __reduce__(self): return print, ('loaded',)\n"
        "def f(): return A()",
        TypeError,
    ),
    "exception with __reduce__": (
        "class A(Exception):\n    def __reduce__(self): return print, ('loaded',)\n"
        "def f(): raise A(A())",
        "A",
    ),
    "generator": ("def f(): yield 1", TypeError),
    "set": ("def f(): return {1}", TypeError),
    "bytes": ("def f(): return b'1'", TypeError),
    "type": ("def f(): return int", TypeError),
    "complex": ("def f(): return 1j", TypeError),
    "tuple as a key": ("def f(): return {(1, 2): 3}", TypeError),
    "not a number": ("def f(): return float('nan')", math.nan),
    "infinity": ("def f(): return -float('inf')", -math.inf),
    "long integer": ("def f(): return 10**5000", 10**5000),
    "too long integer": ("def f(): return 10**60_000", ValueError),
    "text with control characters": ("def f(): return '\\0\\n\\x1b'", "\0\n\x1b"),
    "text of half a pair": ("def f(): return '\\udc80'", "\udc80"),
    "patched json": (
        "import json\njson.dumps = json.JSONEncoder.encode = lambda *a, **k: '1'\n"
        "def f(): return 2",
        2,
    ),
    "patched builtins": (
        "import builtins\nbuiltins.isinstance = builtins.len = lambda *a: True\n"
        "builtins.getattr = builtins.type = builtins.hasattr = None\n"
        "def f(): return 2",
        "AttributeError|TypeError|SystemExit",
    ),
    "patched exit and write": (
        "import os\nos._exit = os.write = lambda *a: 0\ndef f(): return 2",
        2,
    ),
    "traced": (
        "import sys\nsys.settrace(lambda *a: None)\nsys.setprofile(lambda *a: None)\n"
        "def f(): return 2",
        2,
    ),
    "changed small integers": (
        "import ctypes\ndef f():\n    x = 256\n"
        "    ctypes.memset(id(x) + 24, 1, 1)\n    return [x]",
        [257],
    ),
    "argument of Solution": ("class Solution:\n    def f(): return 1", TypeError),
    "raises in the constructor": (
        "class Solution:\n    def __init__(self): raise KeyError(1)\n    def f(s): "
        "pass",
        KeyError,
    ),
    "exception whose name is no text": (
        "class M(type):\n    __name__ = property(lambda c: [c])\n"
        "class E(Exception, metaclass=M): pass\ndef f(): raise E",
        "E",
    ),
    "exception whose text exits": (
        "import os\nclass E(Exception):\n    def __str__(self): os._exit(0)\n"
        "def f(): raise E",
        SystemExit,
    ),
    "exception that raises SystemExit as text": (
        "class E(Exception):\n    def __str__(self): raise SystemExit\ndef f(): raise "
        "E",
        "E",
    ),
    "exception with a wrong line": (
        "def f():\n    e = SyntaxError('x')\n    e.filename = 'Solution.py'\n"
        "    e.lineno = 10**30\n    raise e",
        SyntaxError,
    ),
    "exception in a __del__": (
        "class A:\n    def __del__(self): raise KeyError\ndef f():\n    A()\n    "
        "return 1",
        1,
    ),
    "group of exceptions": (
        "def f(): raise ExceptionGroup('g', [ValueError(i) for i in range(9)])",
        ExceptionGroup,
    ),
    "chain of exceptions": (
        "def f():\n    e = None\n    for i in range(5000):\n        n = KeyError(i)\n"
        "        n.__cause__ = e\n        e = n\n    raise e",
        KeyError,
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_result_is_what_json_says_of(sandbox, name):
    program, expected = RESULTS[name]
    execution = call(sandbox, program)
    if execution.status == "ok":
        is_nan = execution.result != execution.result and math.isnan(expected)
        assert is_nan or execution.result == expected, execution
        assert type(execution.result) is type(expected)
        return
    assert execution.status == "error", execution
    kinds = expected if isinstance(expected, str) else expected.__name__
    assert execution.error_type in kinds.split("|"), execution
    assert "loaded" not in execution.stdout + execution.error_message


# Ways to end before f returns; none of them gives a result.
EXITS = {
    "sys.exit": "import sys; sys.exit()",
    "sys.exit(0)": "import sys; sys.exit(0)",
    "exit": "exit()",
    "quit": "quit(0)",
    "SystemExit": "raise SystemExit(0)",
    "KeyboardInterrupt": "raise KeyboardInterrupt",
    "GeneratorExit": "raise GeneratorExit",
    "BaseException": "raise BaseException",
    "interrupted": "import _thread; _thread.interrupt_main(); [0 for _ in range(999)]",
    "os._exit": "import os; os._exit(0)",
    "os._exit in a thread": """
        import os, threading, time
        threading.Thread(target=os._exit, args=(0,)).start()
        time.sleep(5)
        """,
    "abort": "import os; os.abort()",
    "null pointer": "import ctypes; ctypes.string_at(0)",
    "raw exit": "import ctypes, os; ctypes.CDLL(None)._exit(0)",
    "exit of libc": "import ctypes, os; ctypes.CDLL(None).exit(0)",
    "exit of the main thread": "import ctypes; ctypes.CDLL(None).pthread_exit(None)",
    "alarm": "import signal, time; signal.setitimer(0, 0.01); time.sleep(5)",
    "own limit": "import resource; resource.setrlimit(0, (0, 0))\nwhile True: pass",
    "no memory left": "import resource; resource.setrlimit(9, (0, 0)); bytearray(9**8)",
    "closed report": "import os; os.closerange(3, 64)",
    "faulthandler": "import faulthandler; faulthandler._sigabrt()",
    "stack overflow": """
        import sys
        sys.setrecursionlimit(10**9)
        class A:
            def __repr__(self):
                return repr(self)
        repr(A())
        """,
    "recursion": "g = lambda: g()\ng()",
    "deleted builtins": "import builtins; builtins.__dict__.clear(); g()",
}


@pytest.mark.parametrize("name", EXITS)
def test_program_that_ends_inside_a_call_has_no_result(sandbox, name):
    body = textwrap.indent(textwrap.dedent(EXITS[name]), "    ")
    execution = call(sandbox, f"def f():\n{body}\n    return 1\n", cpu_s=4.0)
    if name == "closed report":
        assert execution.status == "error"
    assert execution.status != "ok", execution


@pytest.mark.parametrize("name", EXITS)
def test_program_that_ends_before_its_function_exists_has_no_result(sandbox, name):
    program = textwrap.dedent(EXITS[name]) + "\ndef f(): return 1\n"
    execution = call(sandbox, program, cpu_s=4.0)
    # A thread's exit may lose the race; a closed report counts as an early end.
    assert execution.status != "ok", execution


@pytest.mark.parametrize("name", EXITS)
def test_script_that_ends_early_has_only_what_it_printed(sandbox, name):
    program = (
        f"print('early', flush=True)\n{textwrap.dedent(EXITS[name])}\nprint('late')"
    )
    execution = script(sandbox, program)
    assert execution.stdout.strip() == "early" or name == "closed report", execution


def test_error_of_a_script_is_reported_whatever_it_is(sandbox):
    program = (
        "class M(type):\n    __name__ = property(lambda c: [c])\n"
        "class E(Exception, metaclass=M): pass\nprint(3)\nraise E"
    )
    assert script(sandbox, program).status == "error"


def test_one_report_too_many_is_no_result(sandbox):
    program = (
        "import os\ndef f():\n    for fd in range(3, 32):\n        try:\n"
        "            os.write(fd, b'{\"result\": 1}')\n        except OSError: pass\n"
        "    return 2"
    )
    assert call(sandbox, program).error_type == "ValueError"


def test_pickle_runs_no_code_on_the_host(sandbox, tmp_path):
    tmp_path.chmod(0o777)
    program = f"""
        import os, pickle
        class R:
            def __reduce__(self):
                return os.mkdir, ({str(tmp_path / "canary")!r},)
        def f():
            data = pickle.dumps(R())
            for fd in range(1, 32):
                try:
                    os.write(fd, data)
                except OSError:
                    pass
            return R()
        """
    tests = [Call("f", []), Stdin("")]
    statuses = [e.status for e in sandbox.run(textwrap.dedent(program), tests)]
    assert statuses[0] == "error" and os.listdir(tmp_path) == []
