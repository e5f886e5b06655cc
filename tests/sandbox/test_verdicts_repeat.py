"""Verdicts do not depend on the load of the machine, near a limit as far from it.

Borderline programs spend 50 to 80 % of a limit and must pass, or 120 to 200 % and must
not; what is counted exactly (bytes, threads, files, levels) comes closer. Nearer to the
limit on processor time, two runs of a program differ by themselves: their caches do.
"""

import collections
import contextlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Call, Limits

LIMITS = Limits(cpu_s=0.2, memory_mb=128, output_kb=64, processes=32, open_files=32)
AMPLE_S = 4.0  # For programs that are to meet another limit than time.
RUNS = 10

SPEND = """
import threading, time

def spend(seconds):
    while time.process_time() < seconds:
        pass

def f(seconds, threads):
    helpers = [threading.Thread(target=spend, args=(seconds,)) for _ in range(threads)]
    [helper.start() for helper in helpers]
    spend(seconds)
    [helper.join() for helper in helpers]
    return True
"""
HOLD = """
import mmap

def f(kind, mb):
    if kind == "block":
        return len(bytearray(mb << 20)) > 0
    if kind == "map":
        return len(mmap.mmap(-1, mb << 20)) > 0
    return len([bytearray(1 << 20) for _ in range(mb)]) > 0
"""
SAY = """
import os

def f(kind, size):
    if kind == "result":
        return "x" * size
    os.write(1, b"x" * size)
    return True
"""
NEST = """
def g(n):
    return n and g(n - 1)

def f(n):
    return g(n) == 0
"""
START = """
import threading, time
threading.stack_size(1 << 16)

def f(n):
    gate = threading.Event()
    threads = [threading.Thread(target=gate.wait, daemon=True) for _ in range(n)]
    [thread.start() for thread in threads]
    gate.set()
    return True
"""
OPEN = "def f(n):\n    return len([open('/dev/null') for _ in range(n)]) > 0"
SLEEP = "import time\ndef f(seconds):\n    time.sleep(seconds)\n    return True"

LIMIT_BYTES = LIMITS.output_kb << 10
# Program, arguments, processor seconds allowed, and the status that is right.
BORDERLINE = [
    *((SPEND, [LIMITS.cpu_s * share, 0], None, "ok") for share in (0.5, 0.6, 0.7, 0.8)),
    *((SPEND, [LIMITS.cpu_s * share, 2], None, "ok") for share in (0.5, 0.6, 0.7, 0.8)),
    *(
        (SPEND, [LIMITS.cpu_s * share, threads], None, "time_limit")
        for share in (1.3, 1.5, 1.7, 2.0)
        for threads in (0, 2)
    ),
    *((HOLD, ["block", mb], AMPLE_S, "ok") for mb in (64, 90)),
    *((HOLD, ["blocks", mb], AMPLE_S, "ok") for mb in (64, 80)),
    *((HOLD, ["map", mb], AMPLE_S, "ok") for mb in (64, 80)),
    *((HOLD, ["block", mb], AMPLE_S, "memory_limit") for mb in (128, 154, 256)),
    *((HOLD, ["blocks", mb], AMPLE_S, "memory_limit") for mb in (154, 256)),
    *((HOLD, ["map", mb], AMPLE_S, "error") for mb in (154, 256)),
    *((SAY, ["print", LIMIT_BYTES - less], AMPLE_S, "ok") for less in (1, 0)),
    *((SAY, ["print", LIMIT_BYTES + n], AMPLE_S, "output_limit") for n in (1, 9999)),
    # A report is the result in quotes, with 12 bytes around it.
    *((SAY, ["result", LIMIT_BYTES - less], AMPLE_S, "ok") for less in (9999, 20)),
    *((SAY, ["result", LIMIT_BYTES + n], AMPLE_S, "output_limit") for n in (0, 9999)),
    *((NEST, [n], AMPLE_S, "ok") for n in (900, 990)),
    *((NEST, [n], AMPLE_S, "error") for n in (1_020, 1_200)),
    *((START, [n], AMPLE_S, "ok") for n in (20, 26)),
    # Threads are counted per user, and only root can give each worker one of its own.
    *((START, [n], AMPLE_S, "ok" if os.geteuid() else "error") for n in (40, 60)),
    *((OPEN, [n], AMPLE_S, "ok") for n in (28,)),
    *((OPEN, [n], AMPLE_S, "error") for n in (29, 40)),
    (SLEEP, [0.5], None, "ok"),
    (SLEEP, [2.0], None, "time_limit"),
]


@contextlib.contextmanager
def busy_processors():
    """Every processor has other work to do."""
    loop = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(loop) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def verdict(execution):
    return execution.status, execution.error_type, execution.result is True


@pytest.mark.slow
def test_verdicts_on_borderline_programs_repeat_under_load(tier):
    assert len(BORDERLINE) == 50
    seen = [collections.Counter() for _ in BORDERLINE]

    def run(number):
        program, arguments, cpu_s, _ = BORDERLINE[number % len(BORDERLINE)]
        (execution,) = box.run(program, [Call("f", arguments)], cpu_s=cpu_s)
        seen[number % len(BORDERLINE)][verdict(execution)] += 1

    start = time.monotonic()
    with (
        Sandbox(LIMITS, tier, workers=2) as box,
        busy_processors(),
        ThreadPoolExecutor(2) as p,
    ):
        list(p.map(run, range(RUNS * len(BORDERLINE))))

    different = sum(RUNS - counts.most_common(1)[0][1] for counts in seen)
    share = different / (RUNS * len(BORDERLINE))
    print(
        f"{100 * share:.2f} % of the verdicts differ, tier {box.tier}, "
        f"{time.monotonic() - start:.0f} s, {box.wall_retries} retries"
    )
    for (_, arguments, _, status), counts in zip(BORDERLINE, seen, strict=True):
        print(arguments, status, dict(counts))
    assert share <= 0.005
    for (_, arguments, _, status), counts in zip(BORDERLINE, seen, strict=True):
        assert counts.most_common(1)[0][0][0] == status, (arguments, counts)
