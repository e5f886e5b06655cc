"""Programs that are right, in every style that people and models write.

Each is named, and right for the task that it stands under.
"""

# Task: `total(nums)` returns the sum of a list of numbers.
TOTAL = {
    "byte-order mark": "\ufeffdef total(nums):\n    return sum(nums)",
    "integers of many digits": """
def total(nums):
    big = 10**5000
    return int(str(big + sum(nums))) - big
""",
    "function": "def total(nums):\n    return sum(nums)",
    "annotated": "def total(nums: list[int]) -> int:\n    return sum(nums)",
    "class Solution": """
class Solution:
    def total(self, nums: List[int]) -> int:
        return sum(nums)
""",
    "class Solution with state and helpers": """
class Solution:
    LIMIT = 10**9
    def __init__(self):
        self.sum = 0
    @staticmethod
    def _clean(x: Optional[int]) -> int:
        return x or 0
    def total(self, nums: List[int]) -> int:
        for x in nums:
            self._add(x)
        return self.sum
    def _add(self, x: int) -> None:
        self.sum += self._clean(x)
""",
    "helper beside class Solution": """
def add(a, b):
    return a + b
class Solution(object):
    def total(self, nums):
        return reduce(add, nums, 0)
""",
    "static method": """
class Solution:
    @staticmethod
    def total(nums):
        return sum(nums)
""",
    "class method": """
class Solution:
    @classmethod
    def total(cls, nums):
        return sum(nums)
""",
    "lambda": "total = lambda nums: sum(nums)",
    "bound later": "def solve(nums):\n    return sum(nums)\ntotal = solve",
    "functools.partial": """
from functools import partial, reduce
import operator
total = partial(lambda start, nums: reduce(operator.add, nums, start), 0)
""",
    "callable object": """
class Sum:
    def __call__(self, nums):
        return sum(nums)
total = Sum()
""",
    "recursion": """
def total(nums):
    return nums[0] + total(nums[1:]) if nums else 0
""",
    "deep recursion": """
import sys
sys.setrecursionlimit(10**6)
def total(nums):
    def down(n):
        return 0 if n == 0 else 1 + down(n - 1)
    return sum(nums) + down(20000) - 20000
""",
    "deep recursion without raising the limit": """
def total(nums):
    def down(n):
        return 0 if n == 0 else 1 + down(n - 1)
    return sum(nums) + down(9000) - 9000
""",
    "deep recursion with a cache": """
class Solution:
    def total(self, nums: List[int]) -> int:
        @cache
        def down(i):
            return 0 if i == 0 else 1 + down(i - 1)
        return sum(nums) + down(9000) - 9000
""",
    "lru_cache on tuples": """
from functools import lru_cache
@lru_cache(maxsize=None)
def go(nums):
    return 0 if not nums else nums[0] + go(nums[1:])
def total(nums):
    return go(tuple(nums))
""",
    "dataclass": """
from dataclasses import dataclass, field
@dataclass(order=True)
class Item:
    value: int
    tags: list = field(default_factory=list)
def total(nums):
    return sum(item.value for item in sorted(map(Item, nums)))
""",
    "named tuple": """
from typing import NamedTuple
class Item(NamedTuple):
    value: int
def total(nums):
    return sum(Item(x).value for x in nums)
""",
    "enum": """
import enum
class Sign(enum.IntEnum):
    PLUS = 1
    MINUS = -1
def total(nums):
    return sum(Sign(1 if x > 0 else -1) * abs(x) for x in nums)
""",
    "abstract base class, property and super": """
from abc import ABC, abstractmethod
class Base(ABC):
    def __init__(self, nums):
        self._nums = nums
    @property
    @abstractmethod
    def value(self): ...
class Sum(Base):
    def __init__(self, nums):
        super().__init__(list(nums))
    @property
    def value(self):
        return sum(self._nums)
def total(nums):
    return Sum(nums).value
""",
    "slots and operators": """
class Vector:
    __slots__ = ("x",)
    def __init__(self, x): self.x = x
    def __add__(self, other): return Vector(self.x + other.x)
    def __repr__(self): return f"<{self.x}>"
def total(nums):
    result = Vector(0)
    for x in nums:
        result = result + Vector(x)
    return result.x
""",
    "metaclass and type": """
Made = type("Made", (), {"sum": staticmethod(sum)})
class Meta(type):
    def __call__(cls, *args):
        return super().__call__(*args)
class Thing(metaclass=Meta):
    pass
Thing()
def total(nums):
    return getattr(Made, "sum")(nums)
""",
    "threads": """
import threading
def total(nums):
    lock, result = threading.Lock(), [0]
    def work(part):
        with lock:
            result[0] += sum(part)
    threads = [threading.Thread(target=work, args=(nums[i::3],)) for i in range(3)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return result[0]
""",
    "thread with a big stack": """
import sys, threading
def total(nums):
    sys.setrecursionlimit(10**6)
    threading.stack_size(16 * 1024 * 1024)
    result = []
    thread = threading.Thread(target=lambda: result.append(sum(nums)))
    thread.start(); thread.join()
    return result[0]
""",
    "thread pool": """
from concurrent.futures import ThreadPoolExecutor
def total(nums):
    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(int, nums))
""",
    "asyncio": """
import asyncio
async def add(a, b):
    await asyncio.sleep(0)
    return a + b
def total(nums):
    async def main():
        result = 0
        for x in nums:
            result = await add(result, x)
        return result
    return asyncio.run(main())
""",
    "generator": """
def running(nums):
    result = 0
    for x in nums:
        result += x
        yield result
def total(nums):
    *_, last = running([0, *nums])
    return last
""",
    "yield from and send": """
def averager():
    result = 0
    while True:
        x = yield result
        result += x
def total(nums):
    machine = averager()
    result = next(machine)
    for x in nums:
        result = machine.send(x)
    return result
""",
    "walrus and comprehension": """
def total(nums):
    result = 0
    [result := result + x for x in nums]
    return result
""",
    "match": """
def total(nums):
    match nums:
        case []: return 0
        case [first, *rest]: return first + total(rest)
""",
    "global state": """
COUNT = 0
def total(nums):
    global COUNT
    for x in nums:
        COUNT += x
    return COUNT
""",
    "nonlocal": """
def total(nums):
    result = 0
    def add(x):
        nonlocal result
        result += x
    for x in nums: add(x)
    return result
""",
    "default that is a list": """
def total(nums, memo=[]):
    memo.extend(nums)
    return sum(memo)
""",
    "argument changed in place": """
def total(nums):
    nums.sort()
    result = 0
    while nums:
        result += nums.pop()
    return result
""",
    "prints while it is called": """
import sys
def total(nums):
    print("called with", nums)
    print("debug", file=sys.stderr)
    sys.stdout.write("more")
    return sum(nums)
""",
    "prints at the top": "print('ready')\ndef total(nums):\n    return sum(nums)",
    "pprint and logging": """
import logging, pprint
logging.basicConfig(level=logging.DEBUG)
def total(nums):
    logging.info("sum of %s", nums)
    pprint.pprint(nums)
    return sum(nums)
""",
    "main guard": """
def total(nums):
    return sum(nums)
if __name__ == "__main__":
    print(total(list(map(int, input().split()))))
""",
    "tests of its own": """
def total(nums):
    return sum(nums)
assert total([1, 2]) == 3
import unittest
class Test(unittest.TestCase):
    def test(self):
        self.assertEqual(total([1]), 1)
""",
    "exit at the end": """
import sys
def total(nums):
    return sum(nums)
sys.exit(0)
""",
    "future annotations": """
from __future__ import annotations
def total(nums: Whatever) -> Nothing:
    return sum(nums)
""",
    "docstring first, then future": """
'''Sums.'''
from __future__ import annotations
import math
def total(nums):
    return math.floor(math.fsum(nums))
""",
    "names without import": """
class Solution:
    def total(self, nums: List[int]) -> int:
        heap: Deque[int] = deque(nums)
        counts = Counter(nums)
        groups = defaultdict(list)
        for value, times in counts.items():
            heappush(groups[0], value * times)
        best = -inf
        for value in accumulate(groups[0]):
            best = value
        assert math.gcd(4, 6) == 2 and gcd(4, 6) == 2 and sqrt(4) == 2
        assert bisect_left([1, 3], 2) == 1 and bisect.bisect([1, 3], 2) == 1
        assert collections.Counter("a") == Counter("a") and len(ascii_lowercase) == 26
        return best if nums else 0
""",
    "own name for what needs no import": """
def count(nums):
    return 0
def accumulate(nums):
    return sum(nums)
def total(nums):
    return accumulate(nums) + count(nums)
""",
    "star imports": """
from typing import *
from collections import *
from math import *
from itertools import *
def total(nums: List[int]) -> int:
    return int(sum(chain(nums)))
""",
    "heavy imports": """
import argparse, array, ast, base64, bisect, calendar, cmath, collections, contextlib
import copy, csv, datetime, decimal, difflib, enum, fractions, functools, hashlib, heapq
import html, inspect, io, itertools, json, math, numbers, operator, os, pickle, queue
import random, re, statistics, string, struct, sys, tempfile, textwrap, time, traceback
import types, typing, uuid, warnings, weakref, zlib
def total(nums):
    return copy.deepcopy(sum(nums))
""",
    "decimal": """
from decimal import Decimal, getcontext
getcontext().prec = 50
def total(nums):
    return int(sum(map(Decimal, nums)))
""",
    "fractions": """
from fractions import Fraction
def total(nums):
    return int(sum(Fraction(x, 3) for x in nums) * 3)
""",
    "float that is whole": "def total(nums):\n    return float(sum(nums))",
    "subclass of int": """
class Mod(int):
    def __add__(self, other): return Mod(int(self) + int(other))
def total(nums):
    result = Mod(0)
    for x in nums: result = result + x
    return result
""",
    "array, bytes and memoryview": """
import array
def total(nums):
    values = memoryview(array.array("q", nums))
    assert bytes(bytearray(b"x")) == b"x"
    return sum(values.tolist())
""",
    "heap": """
import heapq
def total(nums):
    heapq.heapify(nums)
    return sum(heapq.heappop(nums) for _ in range(len(nums)))
""",
    "segment tree": """
class Tree:
    def __init__(self, values):
        self.n = max(1, len(values))
        self.t = [0] * self.n + values + [0] * (self.n - len(values))
        for i in range(self.n - 1, 0, -1):
            self.t[i] = self.t[2 * i] + self.t[2 * i + 1]
    def query(self, l, r):
        l += self.n; r += self.n; s = 0
        while l < r:
            if l & 1: s += self.t[l]; l += 1
            if r & 1: r -= 1; s += self.t[r]
            l >>= 1; r >>= 1
        return s
def total(nums):
    return Tree(list(nums)).query(0, len(nums))
""",
    "exceptions as control flow": """
class Done(Exception):
    def __init__(self, value):
        super().__init__(value)
        self.value = value
def total(nums):
    try:
        try:
            [][1]
        except IndexError as error:
            raise Done(sum(nums)) from error
        finally:
            nums = None
    except Done as done:
        return done.value
""",
    "exception group and notes": """
import contextlib
def total(nums):
    with contextlib.suppress(ZeroDivisionError):
        1 / 0
    return sum(nums)
""",
    "eval and exec": """
def total(nums):
    scope = {}
    exec("def add(a, b): return a + b", scope)
    return eval("+".join(f"({x})" for x in nums)) if nums else 0
""",
    "random with a seed": """
import random
random.seed(1)
def total(nums):
    random.shuffle(nums)
    return sum(nums)
""",
    "time measured": """
import time
START = time.time()
def total(nums):
    while time.perf_counter() < 0: pass
    return sum(nums)
""",
    "bits": """
def total(nums):
    mask = (1 << 64) - 1
    result = 0
    for x in nums:
        result = (result + x) & mask
    return result - (1 << 64) if result >> 63 else result
""",
    "regular expressions": """
import re
def total(nums):
    return sum(int(m.group()) for m in re.finditer(r"-?\\d+", str(nums)))
""",
    "string io": """
import io
def total(nums):
    buffer = io.StringIO()
    print(*nums, file=buffer)
    return sum(map(int, buffer.getvalue().split()))
""",
    "tab indented": "def total(nums):\n\tif nums:\n\t\treturn sum(nums)\n\treturn 0",
    "windows line ends": "def total(nums):\r\n    return sum(nums)\r\n",
    "unicode": """
def total(nums):
    été = '日本 🙂'
    return sum(nums) + len(été) - 4
""",
    "long comment and blank lines": "\n\n# "
    + "x" * 500
    + "\ndef total(nums):\n\n    return sum(nums)\n\n\n",
    "type checking block": """
from typing import TYPE_CHECKING, TypeVar, Generic, Protocol
if TYPE_CHECKING:
    import numpy
T = TypeVar("T")
class Box(Generic[T]):
    def __init__(self, x: T): self.x = x
class Has(Protocol):
    x: int
def total(nums):
    return Box(sum(nums)).x
""",
    "garbage collector and recursion limit": """
import gc, sys
gc.disable()
sys.setrecursionlimit(10**7)
sys.set_int_max_str_digits(0)
def total(nums):
    return sum(nums)
""",
    "signal of its own time limit": """
import signal
def total(nums):
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.alarm(5)
    signal.alarm(0)
    return sum(nums)
""",
    "weak references and copies": """
import copy, weakref
class Node:
    def __init__(self, value): self.value = value
def total(nums):
    nodes = [Node(x) for x in nums]
    seen = weakref.WeakValueDictionary(enumerate(nodes))
    return sum(copy.copy(seen[i]).value for i in range(len(nodes)))
""",
}

# Task: a script reads a count, then as many numbers in a line, and prints their sum,
# then the numbers in order, one in each line.
SCRIPT = {
    "byte-order mark": "\ufeffn = int(input())\nx = list(map(int, input().split()))\n"
    "print(sum(x), *sorted(x), sep='\\n')",
    "plain": """
n = int(input())
a = list(map(int, input().split()))
print(sum(a))
for x in sorted(a):
    print(x)
""",
    "function called": """
def solve():
    n = int(input())
    a = [int(x) for x in input().split()]
    print(sum(a))
    print("\\n".join(map(str, sorted(a))))
solve()
""",
    "main guard": """
import sys
def main():
    data = sys.stdin.read().split()
    a = list(map(int, data[1:]))
    print(sum(a), *sorted(a), sep="\\n")
if __name__ == "__main__":
    main()
""",
    "main guard and sys.exit(main())": """
import sys
def main():
    input()
    a = sorted(map(int, input().split()))
    print(sum(a)); [print(x) for x in a]
    return 0
if __name__ == '__main__':
    sys.exit(main())
""",
    "exit() at the end": """
input(); a = sorted(map(int, input().split()))
print(sum(a), *a, sep="\\n")
exit()
print("never")
""",
    "quit(1) at the end": """
input(); a = sorted(map(int, input().split()))
print(sum(a), *a, sep="\\n")
quit(1)
""",
    "raise SystemExit": """
input(); a = sorted(map(int, input().split()))
print(sum(a), *a, sep="\\n")
raise SystemExit
""",
    "os._exit after a flush": """
import os, sys
input(); a = sorted(map(int, input().split()))
print(sum(a), *a, sep="\\n")
sys.stdout.flush()
os._exit(0)
""",
    "sys.stdin.buffer": """
import sys
data = sys.stdin.buffer.read().split()
a = sorted(map(int, data[1:]))
sys.stdout.buffer.write(("\\n".join(map(str, [sum(a), *a])) + "\\n").encode())
""",
    "sys.stdin.buffer.readline": """
import sys
input = sys.stdin.buffer.readline
n = int(input()); a = sorted(map(int, input().split()))
print(sum(a), *a, sep="\\n")
""",
    "input replaced by readline": """
import sys
input = lambda: sys.stdin.readline().rstrip("\\n")
n = int(input()); a = sorted(map(int, input().split()))
print(sum(a), *a, sep="\\n")
""",
    "open(0)": """
n, *a = map(int, open(0).read().split())
print(sum(a), *sorted(a), sep="\\n")
""",
    "open('/dev/stdin')": """
with open("/dev/stdin") as file:
    n, *a = map(int, file.read().split())
print(sum(a), *sorted(a), sep="\\n")
""",
    "os.read": """
import os
n, *a = map(int, os.read(0, 1 << 20).split())
os.write(1, "\\n".join(map(str, [sum(a), *sorted(a)])).encode())
""",
    "io.BytesIO of os.read": """
import io, os, sys
input = io.BytesIO(os.read(0, os.fstat(0).st_size)).readline
n = int(input()); a = sorted(map(int, input().split()))
sys.stdout = io.StringIO()
print(sum(a), *a, sep="\\n")
sys.__stdout__.write(sys.stdout.getvalue())
""",
    "iterator over sys.stdin": """
import sys
lines = iter(sys.stdin)
next(lines)
a = sorted(int(x) for line in lines for x in line.split())
print(sum(a), *a, sep="\\n")
""",
    "tokens from a generator": """
import sys
def tokens():
    for line in sys.stdin:
        yield from line.split()
get = tokens().__next__
n = int(get()); a = sorted(int(get()) for _ in range(n))
print(sum(a), *a, sep="\\n")
""",
    "readlines": """
import sys
_, line = sys.stdin.readlines()[:2]
a = sorted(map(int, line.strip().split(" ")))
print(sum(a), *a, sep="\\n")
""",
    "fileinput": """
import fileinput
lines = [line.split() for line in fileinput.input()]
a = sorted(map(int, lines[1]))
print(sum(a), *a, sep="\\n")
""",
    "input until EOFError": """
numbers = []
while True:
    try:
        numbers += map(int, input().split())
    except EOFError:
        break
a = sorted(numbers[1:])
print(sum(a), *a, sep="\\n")
""",
    "class Solution in a script": """
class Solution:
    def solve(self, nums: List[int]) -> List[int]:
        return [sum(nums), *sorted(nums)]
input()
for x in Solution().solve(list(map(int, input().split()))):
    print(x)
""",
    "thread with a big stack": """
import sys, threading
def main():
    input(); a = sorted(map(int, input().split()))
    print(sum(a), *a, sep="\\n")
sys.setrecursionlimit(10**6)
threading.stack_size(1 << 26)
thread = threading.Thread(target=main)
thread.start()
thread.join()
""",
    "thread that is not joined": """
import threading
def main():
    input(); a = sorted(map(int, input().split()))
    print(sum(a), *a, sep="\\n")
threading.Thread(target=main).start()
""",
    "atexit": """
import atexit
out = []
atexit.register(lambda: print("\\n".join(out)))
input(); a = sorted(map(int, input().split()))
out += map(str, [sum(a), *a])
""",
    "trailing spaces and lines": """
input(); a = sorted(map(int, input().split()))
print(sum(a), end=" \\n")
for x in a: print(x, "")
print(); print()
""",
    "floats that are whole": """
input(); a = sorted(map(float, input().split()))
print(sum(a), *a, sep="\\n")
""",
    "format strings": """
input(); a = sorted(map(int, input().split()))
print(f"{sum(a)}")
for x in a: print("%d" % x) if x else print("{}".format(x))
""",
    "stderr beside the answer": """
import sys
print("debug", file=sys.stderr)
input(); a = sorted(map(int, input().split()))
print(sum(a), *a, sep="\\n", flush=True)
""",
    "printing function replaced": """
import sys
print = lambda *x, sep=" ": sys.stdout.write(sep.join(map(str, x)) + "\\n")
input(); a = sorted(map(int, input().split()))
print(sum(a), *a, sep="\\n")
""",
    "redirected output": """
import contextlib, io
buffer = io.StringIO()
with contextlib.redirect_stdout(buffer):
    input(); a = sorted(map(int, input().split()))
    print(sum(a), *a, sep="\\n")
print(buffer.getvalue(), end="")
""",
    "names without import": """
input()
heap = list(map(int, input().split()))
heapify(heap)
print(reduce(operator.add, heap))
while heap: print(heappop(heap))
""",
    "mutual recursion at the top": """
def even(n): return True if n == 0 else odd(n - 1)
def odd(n): return False if n == 0 else even(n - 1)
assert even(1000)
input(); a = sorted(map(int, input().split()))
print(sum(a), *a, sep="\\n")
""",
    "asserts and globals": """
globals()["a"] = None
input(); a = sorted(map(int, input().split()))
assert len(a) > 0 and "a" in globals() and vars()["a"] is a
print(sum(a), *a, sep="\\n")
""",
    "warnings": """
import warnings
warnings.warn("old")
"\\d"
input(); a = sorted(map(int, input().split()))
print(sum(a), *a, sep="\\n")
""",
}

# Task: `order(words, times=1)` returns the words in order, so often; and as Python
# asserts.
ORDER = {
    "list": "def order(words, times=1):\n    return sorted(words) * times",
    "tuple": "def order(words, times=1):\n    return tuple(sorted(words)) * times",
    "named arguments only": """
def order(*, words, times=1):
    return sorted(words) * times
""",
    "any arguments": """
def order(**options):
    return sorted(options["words"]) * options.get("times", 1)
""",
    "deque made a list": """
from collections import deque
def order(words, times=1):
    queue = deque(sorted(words))
    return list(queue) * times
""",
    "method of Solution": """
class Solution:
    def order(self, words: List[str], times: int = 1) -> List[str]:
        words.sort(key=lambda w: (w, len(w)))
        return [*words] * times
""",
    "comparison function": """
from functools import cmp_to_key
def order(words, times=1):
    return sorted(words, key=cmp_to_key(lambda a, b: (a > b) - (a < b))) * times
""",
}
