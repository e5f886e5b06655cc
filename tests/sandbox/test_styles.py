"""Honest programs in the styles of people and models; none may be blocked."""

import textwrap

from sdpo_jax.sandbox.values import Call
from tests.sandbox.boxes import call, running_in_both_forms

# Name -> program, arguments of f, result.
PROGRAMS = {
    "plain function": ("def f(a, b): return a + b", [1, 2], 3),
    "lambda": ("f = lambda x: x[::-1]", ["abc"], "cba"),
    "closure": (
        "def make():\n    n = 3\n    def g(x):\n        nonlocal n\n        n += x\n"
        "        return n\n    return g\nf = make()",
        [4],
        7,
    ),
    "global counter": (
        "n = 0\ndef f(x):\n    global n\n    n += x\n    return n",
        [2],
        2,
    ),
    "partial": ("import functools\nf = functools.partial(pow, 2)", [10], 1024),
    "class attribute": (
        "class A:\n    table = {1: 'a'}\ndef f(x): return A.table[x]",
        [1],
        "a",
    ),
    "callable object": (
        "class A:\n    def __call__(self, x): return -x\nf = A()",
        [3],
        -3,
    ),
    "property and super": (
        "class A:\n    @property\n    def x(self): return 1\n"
        "class B(A):\n    @property\n    def x(self): return super().x + 1\n"
        "def f(): return B().x",
        [],
        2,
    ),
    "metaclass": (
        "class M(type):\n    def __len__(cls): return 4\n"
        "class A(metaclass=M): pass\ndef f(): return len(A)",
        [],
        4,
    ),
    "abstract class": (
        "from abc import ABC, abstractmethod\nclass A(ABC):\n    @abstractmethod\n"
        "    def g(self): ...\nclass B(A):\n    def g(self): return 5\n"
        "def f(): return B().g()",
        [],
        5,
    ),
    "decorator": (
        "import functools\ndef twice(g):\n    @functools.wraps(g)\n"
        "    def h(x): return g(g(x))\n    return h\n@twice\ndef f(x): return x * 3",
        [2],
        18,
    ),
    "slots": (
        "class P:\n    __slots__ = ('x',)\n    def __init__(self, x): self.x = x\n"
        "def f(x): return P(x).x",
        [1],
        1,
    ),
    "enum": (
        "import enum\nclass C(enum.IntEnum):\n    RED = 2\ndef f(): return [C.RED, "
        "C(2).name]",
        [],
        [2, "RED"],
    ),
    "named tuple": (
        "from collections import namedtuple\nP = namedtuple('P', 'x y')\n"
        "def f(): return P(1, y=2)",
        [],
        [1, 2],
    ),
    "typed tuple": (
        "from typing import NamedTuple\nclass P(NamedTuple):\n    x: int = 1\n"
        "def f(): return P()",
        [],
        [1],
    ),
    "generics": (
        "from typing import Generic, List, Optional, TypeVar\nT = TypeVar('T')\n"
        "class Box(Generic[T]):\n    def __init__(self, x: T): self.x = x\n"
        "def f(x: Optional[List[int]]) -> List[int]: return Box[List[int]](x).x",
        [[1]],
        [1],
    ),
    "protocol": (
        "from typing import Protocol\nclass P(Protocol):\n    def g(self) -> int: ...\n"
        "class A:\n    def g(self): return 1\ndef f(a: P = A()): return a.g()",
        [],
        1,
    ),
    "future annotations": (
        "from __future__ import annotations\ndef f(x: Unknown | None = None): return x",
        [],
        None,
    ),
    "walrus": ("def f(x):\n    return (y := x + 1) * y", [1], 4),
    "match": (
        "def f(x):\n    match x:\n        case [a, *rest]: return rest\n"
        "        case {'k': v}: return v\n        case _: return None",
        [[1, 2, 3]],
        [2, 3],
    ),
    "generator": (
        "def g(n):\n    for i in range(n): yield i\n    yield from 'ab'\n"
        "def f(n): return list(g(n))",
        [2],
        [0, 1, "a", "b"],
    ),
    "comprehensions": (
        "def f(n): return [{i: j for j in range(2)} for i in range(n) if i % 2]",
        [2],
        [{"1": 1}],
    ),
    "exceptions": (
        "class E(Exception): pass\ndef f(x):\n    try:\n        raise E(x)\n"
        "    except (ValueError, E) as e: return e.args[0]\n    finally: pass",
        [1],
        1,
    ),
    "context manager": (
        "import contextlib\n@contextlib.contextmanager\ndef c(): yield 3\n"
        "def f():\n    with c() as x: return x",
        [],
        3,
    ),
    "cached recursion": (
        "import sys\nfrom functools import lru_cache\nsys.setrecursionlimit(10**6)\n"
        "@lru_cache(None)\ndef f(n): return n if n < 2 else f(n - 1) + f(n - 2) & 1",
        [30_000],
        0,
    ),
    "cache": (
        "import functools\n@functools.cache\ndef f(n): return n < 2 or f(n - 1)",
        [50],
        True,
    ),
    "usual recursion": (
        "def g(n): return 0 if n == 0 else 1 + g(n - 1)\ndef f(n): return g(n)",
        [995],
        995,
    ),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(10**9 if False else 200_000)\n"
        "def f(n): return 0 if n == 0 else 1 + f(n - 1)",
        [100_000],
        100_000,
    ),
    "recursion in a thread with a large stack": (
        "import sys, threading\nsys.setrecursionlimit(10**6)\n"
        "threading.stack_size(2**27)\nfound = []\n"
        "def g(n): return 0 if n == 0 else 1 + g(n - 1)\ndef f(n):\n"
        "    t = threading.Thread(target=lambda: found.append(g(n)))\n"
        "    t.start()\n    t.join()\n    return found",
        [50_000],
        [50_000],
    ),
    "sorting": (
        "from functools import cmp_to_key\nfrom operator import itemgetter\n"
        "def f(x): return [sorted(x, key=cmp_to_key(lambda a, b: b - a)), "
        "max(enumerate(x), key=itemgetter(1))]",
        [[1, 3, 2]],
        [[3, 2, 1], [1, 3]],
    ),
    "total ordering": (
        "import functools\n@functools.total_ordering\nclass A:\n    def __init__(s, "
        "x): s.x = x\n"
        "    def __eq__(s, o): return s.x == o.x\n    def __lt__(s, o): return s.x < "
        "o.x\n"
        "def f(): return max(A(1), A(2)).x",
        [],
        2,
    ),
    "exec and eval": (
        "def f(x):\n    names = {}\n    exec('y = 2', names)\n    return eval(x) + "
        "names['y']",
        ["1+1"],
        4,
    ),
    "no result": ("def f(): pass", [], None),
    "booleans": ("def f(x): return x is not None and x > 1", [2], True),
    "unicode": ("def f(s): return s.upper() + '\\U0001f600'", ["é"], "É\U0001f600"),
    "negative zero and exponents": (
        "def f(): return [1e300, -0.0, 1e-7]",
        [],
        [1e300, 0, 1e-7],
    ),
    "class Solution with a constructor": (
        "class Solution:\n    def __init__(self): self.seen = {}\n"
        "    def g(self, x): return self.seen.setdefault(x, x + 1)\n"
        "    def f(self, x): return self.g(x)\nf = Solution().f",
        [1],
        2,
    ),
    "linked list": (
        "class Node:\n    def __init__(self, v, n=None): self.v, self.n = v, n\n"
        "def f(n):\n    head = None\n    for i in range(n): head = Node(i, head)\n"
        "    total = 0\n    while head: total, head = total + head.v, head.n\n    "
        "return total",
        [100_000],
        4999950000,
    ),
    "integers of many digits": (
        "def f(n, text): return [n + 1, int(text) == n, len(str(10**60_000))]",
        [10**20_000, f"1{'0' * 20_000}"],
        [10**20_000 + 1, True, 60_001],
    ),
    "integer of many digits in the source": (
        f"n = {'7' * 5000}\ndef f(): return n % 10**9",
        [],
        777_777_777,
    ),
    "byte-order mark": ("\ufeffdef f(x): return x", [1], 1),
    "byte-order mark after an empty line": ("\n\ufeffdef f(x): return x", [1], 1),
    "invisible characters in front": (
        "\ufeff\u200b\xa0\u2060import math\ndef f(x): return math.sqrt(x)",
        [4],
        2,
    ),
    "invisible characters in a string": (
        "s = '\ufeff\u200b'\ndef f(): return [ord(c) for c in s]",
        [],
        [0xFEFF, 0x200B],
    ),
    "sieve": (
        "def f(n):\n    s = bytearray([1]) * (n + 1)\n    s[:2] = b'\\0\\0'\n"
        "    for i in range(2, int(n**0.5) + 1):\n        if s[i]: s[i*i::i] = "
        "bytes(len(s[i*i::i]))\n"
        "    return sum(s)",
        [1_000_000],
        78498,
    ),
}


test_program_runs_in_both_forms = running_in_both_forms(PROGRAMS)


def test_method_of_solution_precedes_a_star_import(sandbox):
    program = """
        from math import *
        class Solution:
            def gcd(self, a, b):
                return [a, b]
        """
    (execution,) = sandbox.run(textwrap.dedent(program), [Call("gcd", [4, 6])])
    assert execution.result == [4, 6]


def test_line_of_an_error_counts_the_empty_lines_before_a_byte_order_mark(sandbox):
    execution = call(sandbox, "\n\ufeff# one\ndef f(): return [][0]")
    assert (execution.error_line, execution.error_type) == (3, "IndexError")


def test_function_is_found_if_solution_lacks_it(sandbox):
    program = "class Solution:\n    def __init__(self, x): pass\ndef f(): return 1"
    assert call(sandbox, program).result == 1
