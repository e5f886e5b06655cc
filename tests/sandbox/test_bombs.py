"""Programs that use resources without end: each reaches a limit and harms no other."""

import os
import textwrap
import time

import pytest

from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Limits
from tests.sandbox.boxes import call, script

TIME, MEMORY, OUTPUT, ERROR = "time_limit", "memory_limit", "output_limit", "error"
FULL = f"{MEMORY} {ERROR}"  # The kernel says "no memory", which is an OSError.
# Name -> body of f, allowed statuses.
BOMBS = {
    # Processor time.
    "busy threads": (
        "import hashlib, threading\nblock = bytes(10**6)\ndef burn():\n"
        "    while True: hashlib.sha256(block)\n"
        "for _ in range(4): threading.Thread(target=burn).start()\nburn()",
        TIME,
    ),
    "one call of C": ("sum(range(10**12))", TIME),
    "one power": ("10 ** (10 ** 8)", TIME),
    "one regular expression": (
        "import re; re.match('(a|a)*$', 'a' * 50 + 'b')",
        TIME,
    ),
    "all signals ignored": (
        "import signal\nfor s in set(signal.Signals) - {9, 19}:\n"
        "    signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        TIME,
    ),
    "handler of the limit": (
        "import signal\nsignal.signal(signal.SIGXCPU, lambda *a: None)\nwhile True: "
        "pass",
        TIME,
    ),
    "a higher limit": (
        "import resource\ntry: resource.setrlimit(resource.RLIMIT_CPU, (99, 99))\n"
        "except ValueError: pass\nwhile True: pass",
        TIME,
    ),
    "exceptions swallowed": (
        "while True:\n    try:\n        while True: pass\n    except BaseException: "
        "pass",
        TIME,
    ),
    "endless text of an error": (
        "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise "
        "E",
        TIME,
    ),
    "endless finaliser": (
        "class A:\n    def __del__(self):\n        while True: pass\nA()",
        TIME,
    ),
    "endless items of a result": (
        "class L(list):\n    def __iter__(self):\n        while True: pass\nreturn "
        "L([1])",
        TIME,
    ),
    "main thread gone": (
        "import ctypes, threading\ndef burn():\n    while True: pass\n"
        "threading.Thread(target=burn).start()\nctypes.CDLL(None).pthread_exit(None)",
        f"{TIME} {ERROR}",
    ),
    "shared lock": (
        "import threading\nt = threading.Lock()\nt.acquire()\nt.acquire()",
        TIME,
    ),
    "sleep": ("import time; time.sleep(99)", TIME),
    "wait for a signal": ("import signal; signal.pause()", TIME),
    "read a pipe of its own": ("import os\nos.read(os.pipe()[0], 1)", TIME),
    "stop by terminal": ("import os, signal\nsignal.sigwait([signal.SIGCONT])", TIME),
    "yield the processor": ("import os\nwhile True: os.sched_yield()", TIME),
    # Memory.
    "one block": ("bytearray(10**10)", MEMORY),
    "text": ("'x' * 10**10", MEMORY),
    "many blocks": ("x = []\nwhile True: x.append(bytearray(10**7))", MEMORY),
    "many small things": (
        "x = []\nwhile True: x = [x, [1.5] * 10**4]",
        f"{MEMORY} {TIME}",
    ),
    "private map": ("import mmap; mmap.mmap(-1, 10**10)", FULL),
    "shared map": (
        "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 10**8))",
        FULL,
    ),
    "map of /dev/zero": (
        "import mmap, os\nfd = os.open('/dev/zero', 0)\n"
        "x = [mmap.mmap(fd, 10**8, prot=1) for _ in range(99)]",
        FULL,
    ),
    "blocks of threads": (
        "import threading\nx = []\ndef fill():\n    while True: "
        "x.append(bytearray(10**7))\n"
        "ts = [threading.Thread(target=fill) for _ in range(8)]\n"
        "[t.start() for t in ts]\n[t.join() for t in ts]\nreturn bytearray(10**9)",
        f"{MEMORY} {ERROR} {TIME}",
    ),
    "unpacked archive": (
        "import zlib\nc = zlib.compressobj()\n"
        "data = b''.join(c.compress(bytes(10**7)) for _ in range(99))\n"
        "zlib.decompress(data + c.flush())",
        f"{MEMORY} {TIME}",
    ),
    "width of a field": ("'%999999999d' % 1", MEMORY),
    "swallowed memory errors": (
        "x = []\nwhile True:\n    try: x.append(bytearray(10**8))\n"
        "    except MemoryError: pass",
        f"{TIME} {MEMORY}",
    ),
    "a higher memory limit": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        ERROR,
    ),
    # Output.
    "output": ("while True: print('x' * 1000)", OUTPUT),
    "output of threads": (
        "import threading\ndef flood():\n    while True: print('x' * 1000)\n"
        "for _ in range(4): threading.Thread(target=flood).start()\nflood()",
        OUTPUT,
    ),
    "output drop by drop": (
        "import os\nwhile True: os.write(1, b'x')",
        f"{OUTPUT} {TIME}",
    ),
    "output by another descriptor": (
        "import os\nfd = os.dup2(1, 20)\nwhile True: os.write(fd, bytes(4096))",
        OUTPUT,
    ),
    "errors without end": (
        "import sys\nwhile True: print('x' * 1000, file=sys.stderr)",
        TIME,
    ),
    "report": (
        "import os\nfor fd in range(3, 32):\n    try:\n"
        "        while True: os.write(fd, bytes(4096))\n    except OSError: pass",
        OUTPUT,
    ),
    "result": ("return ['x' * 1000] * 1000", OUTPUT),
    "message of an error": ("raise ValueError('x' * 10**8)", ERROR),
    "larger pipe": (
        "import fcntl, os\nfcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 1 << 20)\n"
        "while True: os.write(1, bytes(1 << 19))",
        f"{OUTPUT} {ERROR}",
    ),
    # Kernel resources.
    "files": ("x = []\nwhile True: x.append(open('/dev/null'))", ERROR),
    "pipes": ("import os\nwhile True: os.pipe()", ERROR),
    "timers": (
        "import select\nx = []\nwhile True: x.append(select.epoll())",
        ERROR,
    ),
    "filled pipes": (
        "import os\nwhile True:\n    r, w = os.pipe()\n    os.set_blocking(w, False)\n"
        "    os.write(w, bytes(10**6))",
        ERROR,
    ),
    "passed descriptors": (
        "import os, socket\na, b = socket.socketpair()\na.setblocking(False)\n"
        "while True: socket.send_fds(a, [b'x'], [os.open('/dev/null', 0)] * 1)",
        ERROR,
    ),
    "locked memory": (
        "import ctypes, mmap\nm = mmap.mmap(-1, 10**8)\nlibc = ctypes.CDLL(None)\n"
        "a = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "if libc.mlock(ctypes.c_void_p(a), 10**8): raise OSError",
        ERROR,
    ),
    "threads": (
        "import threading, time\nwhile True:\n"
        "    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        f"{ERROR} {TIME} {MEMORY}",
    ),
}
# Complete programs that must fail during compilation or directly after it.
SOURCES = {
    "parentheses": "x = " + "(" * 200_000 + ")" * 200_000,
    "brackets": "x = " + "[" * 5_000 + "]" * 5_000,
    "minus signs": "x = " + "-" * 200_000 + "1",
    "nots": "x = " + "not " * 100_000 + "1",
    "attributes": "x = a" + ".a" * 200_000,
    "calls": "x = f" + "()" * 100_000,
    "sum": "x = " + "+".join("1" * 300_000),
    "comparison": "x = " + "<".join("1" * 300_000),
    "lambdas": "x = " + "lambda: " * 50_000 + "1",
    "decorators": "@int\n" * 200_000 + "def g(): pass",
    "blocks": "\n".join(" " * i + "if 1:" for i in range(200)),
    "functions": "\n".join(" " * i + "def g():" for i in range(99)) + " pass",
    "branches": "if 0: pass\n" + "elif 0: pass\n" * 100_000,
    "formatted strings": "x = " + "f'{" * 500 + "1" + "}'" * 500,
    "folded power": "x = 2 ** (10 ** 10)\ny = 3 ** 3 ** 3 ** 3",
    "folded text": "x = 'x' * 10 ** 10",
    "folded tuple": "x = (0,) * 10 ** 10",
    "folded shift": "x = 1 << 10 ** 11",
    "long number": "x = " + "9" * 1_000_000,
    "long hexadecimal": "x = 0x" + "f" * 4_000_000 + "\nx ** x",
    "long name": "x" * 4_000_000,
    "many names": "x = 1\n" * 400_000 + "y",
    "long tuple": "x = (" + "1.5," * 400_000 + ")\n1 / 0",
    "long text": "'" + "x" * 4_000_000 + "'\n1 / 0",
    "wild indentation": "".join(f"if 1:\n{' ' * i}\tx\n" for i in range(2_000)),
    "NULs": "x = 1\0" * 1_000,
    "half a pair": "x = '\ud800'",
    "wrong encoding": "# -*- coding: none -*-\nx",
    "control characters": "x = 1\x1a\x0c\x00",
    "end of line at the end": "x = 1 \\",
    "open text": "x = '''",
    "no text at all": "",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bomb_meets_its_limit(sandbox, name):
    body, statuses = BOMBS[name]
    cpu_s = 0.2 if TIME in statuses else 4.0
    start = time.monotonic()

    execution = call(sandbox, "def f():\n" + textwrap.indent(body, "    "), cpu_s=cpu_s)

    assert execution.status in statuses.split(), execution
    assert len(execution.stdout) <= 64 << 10
    assert time.monotonic() - start < 40.0  # Twice the longest limit, and a margin.


@pytest.mark.parametrize("name", SOURCES)
def test_source_cannot_hurt_what_compiles_it(sandbox, name):
    execution = call(sandbox, SOURCES[name], cpu_s=0.4)
    assert execution.status in (ERROR, TIME, MEMORY), execution
    assert len(execution.error_source) <= 2_000


def test_standard_input_cannot_be_made_to_hold_more(sandbox):
    program = """
        import mmap, os
        grown = 0
        for attempt in (
            lambda: os.write(0, bytes(10**8)),
            lambda: os.ftruncate(0, 10**9),
            lambda: os.posix_fallocate(0, 0, 10**9),
            lambda: os.pwrite(0, b"x", 10**9),
        ):
            try:
                attempt()
                grown += 1
            except OSError:
                pass
        print(grown, os.fstat(0).st_size)
        """
    execution = script(sandbox, program, "1\n")
    assert execution.stdout == "0 2\n", execution


def test_memory_of_many_children_is_no_way_round_the_limit(tier):
    """Programs have no children, and memory shared by threads counts once."""
    program = """
        import mmap, os
        def f():
            blocks = []
            try:
                while True:
                    if os.fork() == 0:
                        blocks.append(bytearray(50 << 20))
            except OSError:
                return len(blocks)
        """
    with Sandbox(Limits(cpu_s=1.0, memory_mb=64), tier, workers=1) as box:
        assert call(box, program).result == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="a user per worker needs root")
def test_threads_are_as_many_as_allowed_and_no_more(sandbox):
    program = """
        import threading, time
        threading.stack_size(1 << 16)
        def f():
            count = 0
            try:
                while count < 1000:
                    threading.Thread(target=time.sleep, args=(2,), daemon=True).start()
                    count += 1
            except RuntimeError:
                return count
        """
    assert 60 <= call(sandbox, program).result <= 64
