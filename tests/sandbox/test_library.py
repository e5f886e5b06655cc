"""The standard library and numpy work for honest programs."""

from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Limits, Packages
from tests.sandbox.boxes import LIMITS, call, running_in_both_forms

# Name -> program, arguments of f, result.
PROGRAMS = {
    "star imports": (
        "from math import *\nfrom collections import *\nfrom itertools import *\n"
        "def f(n): return [gcd(n, 4), sum(Counter('aab').values()), len(list(count "
        "and permutations('ab')))]",
        [6],
        [2, 3, 2],
    ),
    "heapq and bisect": (
        "import heapq, bisect\ndef f(x):\n    heapq.heapify(x)\n"
        "    return [heapq.heappop(x), bisect.bisect_left([1, 3], 2), "
        "heapq.nsmallest(1, x)]",
        [[3, 1, 2]],
        [1, 1, [2]],
    ),
    "collections": (
        "from collections import defaultdict, deque, OrderedDict, Counter, ChainMap\n"
        "def f(s):\n    d = defaultdict(list)\n    d[s].append(1)\n"
        "    return [d, list(deque([1, 2], maxlen=1)), OrderedDict(a=1), Counter(s)]",
        ["aa"],
        [{"aa": [1]}, [2], {"a": 1}, {"a": 2}],
    ),
    "itertools": (
        "import itertools as it\ndef f(x):\n    return [list(it.accumulate(x)), "
        "[list(p) for p in it.combinations(x, 2)], list(it.chain(x, x)), "
        "[[k, len(list(g))] for k, g in it.groupby(x)], list(it.pairwise(x))]",
        [[1, 1]],
        [[1, 2], [[1, 1]], [1, 1, 1, 1], [[1, 2]], [[1, 1]]],
    ),
    "raised stack limit": (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_STACK, (2**29, resource.RLIM_INFINITY))\n"
        "sys.setrecursionlimit(10**6)\ndef f(n): return n and f(n - 1)",
        [20_000],
        0,
    ),
    "no stack limit": (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY,) * 2)\n"
        "def f(): return 1",
        [],
        1,
    ),
    "decimal and fractions": (
        "from decimal import Decimal, getcontext\nfrom fractions import Fraction\n"
        "getcontext().prec = 5\n"
        "def f(): return [str(Decimal(1) / 3), str(Fraction(2, 6)), float(Fraction(1, "
        "4))]",
        [],
        ["0.33333", "1/3", 0.25],
    ),
    "regular expressions": (
        "import re\ndef f(s): return re.findall(r'(?<=a)\\d+', s) + re.split('[,;]', "
        "s)",
        ["a12,b"],
        ["12", "a12", "b"],
    ),
    "strings": (
        "import string, textwrap, difflib, unicodedata\n"
        "def f(s): return [s.translate(str.maketrans('a', 'b')), f'{s:>4}', '%05.1f' "
        "% 2, "
        "string.ascii_lowercase[:2], s.casefold(), unicodedata.name('\\u00e9')[:5]]",
        ["aA"],
        ["bA", "  aA", "002.0", "ab", "aa", "LATIN"],
    ),
    "bits and bytes": (
        "import struct, array, binascii\ndef f(x): return [x.bit_count(), "
        "x.to_bytes(2, 'big').hex(), "
        "struct.unpack('<H', b'\\1\\0')[0], list(array.array('i', [x])), "
        "list(bytearray(b'a') + bytes([1]))]",
        [3],
        [2, "0003", 1, [3], [97, 1]],
    ),
    "complex and math": (
        "import cmath, math\ndef f(): return [abs(3 + 4j), math.isqrt(17), "
        "math.comb(5, 2), "
        "cmath.phase(-1) > 3, math.inf, round(2.5), divmod(-7, 2), math.prod([2, 3])]",
        [],
        [5.0, 4, 10, True, float("inf"), 2, [-4, 1], 6],
    ),
    "big integers": (
        "def f(n): return pow(3, n) % 1000003 + len(str(7**n))",
        [4000],
        pow(3, 4000, 1000003) + 3381,
    ),
    "pools of threads": (
        "from multiprocessing.dummy import Pool\n"
        "from multiprocessing.pool import ThreadPool\n"
        "def f(n):\n"
        "    with Pool(4) as a, ThreadPool(4) as b:\n"
        "        return a.map(abs, range(-n, 0)) + b.map(abs, range(n))",
        [3],
        [3, 2, 1, 0, 1, 2],
    ),
    "locks of multiprocessing": (
        "from multiprocessing import Lock, RLock, Semaphore\n"
        "def f():\n"
        "    lock, again, two = Lock(), RLock(), Semaphore(2)\n"
        "    taken = [lock.acquire(), lock.acquire(timeout=0.01), lock.release()]\n"
        "    with again, again, two, two:\n"
        "        return taken + [two.acquire(False), two.acquire(True, 0.01)]",
        [],
        [True, False, None, False, False],
    ),
    "long integers as text": (
        "import sys\nsys.set_int_max_str_digits(0)\ndef f(n): return str(10**n)[-3:]",
        [9000],
        "000",
    ),
    "seeded random": (
        "import random\nrandom.seed(0)\ndef f(): return random.randint(1, 6) in "
        "range(1, 7)",
        [],
        True,
    ),
    "time": (
        "import time, datetime\ndef f():\n    t = time.perf_counter()\n    "
        "time.sleep(0.01)\n"
        "    return [time.perf_counter() > t, datetime.datetime.now().year > 2000, "
        "datetime.date(2024, 2, 29).weekday(), time.strftime('%Y')[:2]]",
        [],
        [True, True, 3, "20"],
    ),
    "threads and queue": (
        "import queue, threading\ndef f(n):\n    q, out = queue.Queue(), []\n"
        "    def work():\n        while (x := q.get()) is not None: out.append(x * x)\n"
        "    ts = [threading.Thread(target=work) for _ in range(4)]\n"
        "    [t.start() for t in ts]\n    [q.put(i) for i in range(n)]\n"
        "    [q.put(None) for _ in ts]\n    [t.join() for t in ts]\n    return "
        "sorted(out)",
        [3],
        [0, 1, 4],
    ),
    "fifty threads": (
        "import threading\ndef f(n):\n    gate, out = threading.Barrier(n), []\n"
        "    def work(i):\n        block = [str(i) * 100 for i in range(2000)]\n"
        "        gate.wait()\n        out.append(len(block))\n"
        "    ts = [threading.Thread(target=work, args=(i,)) for i in range(n)]\n"
        "    [t.start() for t in ts]\n    [t.join() for t in ts]\n    return len(out)",
        [50],
        50,
    ),
    "thread pool": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f(n):\n"
        "    with ThreadPoolExecutor() as pool: return list(pool.map(str, range(n)))",
        [3],
        ["0", "1", "2"],
    ),
    "locks and timers": (
        "import threading\ndef f():\n    lock, event = threading.RLock(), "
        "threading.Event()\n"
        "    threading.Timer(0.01, event.set).start()\n"
        "    with lock: return event.wait(2)",
        [],
        True,
    ),
    "asyncio": (
        "import asyncio\nasync def g(x):\n    await asyncio.sleep(0.001)\n    return "
        "x\n"
        "async def main(n): return await asyncio.gather(*(g(i) for i in range(n)))\n"
        "def f(n): return asyncio.run(main(n))",
        [3],
        [0, 1, 2],
    ),
    "asyncio with threads": (
        "import asyncio\nasync def main(): return await asyncio.to_thread(sum, [1, "
        "2])\n"
        "def f(): return asyncio.run(main())",
        [],
        3,
    ),
    "alarm": (
        "import signal\nseen = []\nsignal.signal(signal.SIGALRM, lambda *_: "
        "seen.append(1))\n"
        "def f():\n    signal.setitimer(signal.ITIMER_REAL, 0.01)\n    signal.pause()\n"
        "    return seen",
        [],
        [1],
    ),
    "multiprocessing imported": (
        "import multiprocessing, subprocess, socket, tempfile, shutil, pathlib\n"
        "def f(): return pathlib.PurePath('a/b').name",
        [],
        "b",
    ),
    "scipy if there": (
        "try:\n    import scipy\nexcept ImportError:\n    scipy = None\n"
        "def f(): return scipy is None",
        [],
        True,
    ),
    "file if there": (
        "import os, sys\nif os.path.exists('input.txt'):\n    sys.stdin = "
        "open('input.txt')\n"
        "try:\n    open('input.txt')\nexcept FileNotFoundError:\n    pass\ndef f(): "
        "return 1",
        [],
        1,
    ),
    "argument if there": (
        "import sys\nif len(sys.argv) > 1:\n    sys.stdin = open(sys.argv[1])\n"
        "def f(): return len(sys.argv)",
        [],
        1,
    ),
    "command line": (
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('-v', "
        "action='store_true')\n"
        "def f(): return p.parse_args().v",
        [],
        False,
    ),
    "its own name": ("def f(): return __file__", [], "Solution.py"),
    "environment": (
        "import os, platform, getpass\n"
        "def f(): return [os.environ.get('ONLINE_JUDGE'), os.getenv('X', '1'), "
        "platform.system()]",
        [],
        [None, "1", "Linux"],
    ),
    "logging and warnings": (
        "import logging, warnings, sys\nlogging.basicConfig(level=logging.DEBUG)\n"
        "def f():\n    logging.info('x')\n    warnings.warn('y')\n"
        "    print('debug', file=sys.stderr)\n    return '\\d'[1]",
        [],
        "d",
    ),
    "captured output": (
        "import contextlib, io\ndef f():\n    with "
        "contextlib.redirect_stdout(io.StringIO()) as s:\n"
        "        print('x')\n    return s.getvalue()",
        [],
        "x\n",
    ),
    "pickle and copy": (
        "import copy, pickle\nclass A:\n    def __init__(self, x): self.x = x\n"
        "def f(x): return [copy.deepcopy(A(x)).x, pickle.loads(pickle.dumps(A(x))).x]",
        [[1]],
        [[1], [1]],
    ),
    "json and hashes": (
        "import json, hashlib, base64, zlib\ndef f(x): return "
        "[json.loads(json.dumps(x)), "
        "hashlib.md5(b'').hexdigest()[:4], base64.b64encode(b'a').decode(), "
        "zlib.crc32(b'a')]",
        [{"a": None}],
        [{"a": None}, "d41d", "YQ==", 3904355907],
    ),
    "introspection": (
        "import inspect, types, sys\ndef f(a, *, b=1): return "
        "[list(inspect.signature(f).parameters), "
        "isinstance(f, types.FunctionType), sys.version_info >= (3, 8)]",
        [0],
        [["a", "b"], True, True],
    ),
    "garbage collection": (
        "import gc\ngc.disable()\ndef f(): return gc.isenabled()",
        [],
        False,
    ),
}


test_program_runs_in_both_forms = running_in_both_forms(PROGRAMS)


def test_numbers_and_arrays_of_numpy_are_results(tier):
    program = """
        import numpy as np
        def f(x):
            a = np.array(x)
            return [a.sum(), a.mean(), a > 1, a.dtype.kind, {"max": a.max()}, a * 2]
        """
    with Sandbox(LIMITS, tier, workers=1, packages=Packages(["numpy"])) as box:
        execution = call(box, program, [1, 2], cpu_s=4.0)
    assert execution.result == [3, 1.5, [False, True], "i", {"max": 2}, [2, 4]]


def test_writing_a_file_raises_an_error(sandbox):
    """Programs have no disk, which they could fill or share with the host."""
    execution = call(sandbox, "import tempfile\ndef f(): tempfile.TemporaryFile()")
    assert execution.error_type == "FileNotFoundError"
    assert "No usable temporary directory" in execution.error_message


def test_a_hundred_threads_fit_into_the_default_memory(tier):
    program, _, _ = PROGRAMS["fifty threads"]
    with Sandbox(Limits(processes=128), tier, workers=1) as box:
        assert call(box, program, 100).result == 100
