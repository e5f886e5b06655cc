"""Measures the speed of every sandbox tier, and whether it leaks resources.

  python -m experiments.sandbox_benchmark.run --results=runs/sandbox.json

Running the same command again skips finished measurements. README.md in this folder
describes the measurements and their results.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sdpo_jax import json_files
from sdpo_jax.envs.base import GraderFailure
from sdpo_jax.sandbox import control_groups, process
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Call, SandboxUnavailable

PROGRAM = """
def total(numbers):
    found = {number}
    for number in numbers:
        found += number * number
    return found
"""
NUMBERS = list(range(20))
TURNS = 3
GRADINGS = 20_000
TESTS = 30


def program(number: int) -> str:
    """A program that differs for every number, so that no compiled one is reused."""
    return PROGRAM.replace("{number}", str(number))


def grade(box: Sandbox, number: int, tests: int) -> None:
    """Run one program on a number of tests, and check the results."""
    executions = box.run(program(number), [Call("total", [NUMBERS])] * tests)
    expected = number + sum(n * n for n in NUMBERS)
    if [e.result for e in executions] != [expected] * tests:
        raise GraderFailure(f"expected {expected}, got {executions[0]}")


def per_second(box: Sandbox, programs: int, tests: int) -> float:
    """Programs graded per second, by as many threads as there are workers."""
    with ThreadPoolExecutor(box.workers) as pool:
        start_s = time.perf_counter()
        list(pool.map(lambda n: grade(box, n, tests), range(programs)))
        return programs / (time.perf_counter() - start_s)


def latency_s(box: Sandbox, programs: int, tests: int) -> float:
    """The median seconds for one program when no other runs."""
    durations_s = []
    for number in range(programs):
        start_s = time.perf_counter()
        grade(box, number, tests)
        durations_s.append(time.perf_counter() - start_s)
    return statistics.median(durations_s)


def speed(tier: str) -> dict[str, list[float]]:
    """All timings of one tier, one number per turn."""
    rows = []
    with (
        Sandbox(tier=tier) as box,
        Sandbox(tier=tier, process_per="program") as shared,
    ):
        per_second(box, 50, 1)
        per_second(shared, 50, 2)
        for _ in range(TURNS):
            one, many = latency_s(box, 100, 1), latency_s(box, 20, TESTS)
            rows.append(
                {
                    "programs_per_s": per_second(box, 400, 1),
                    "tests_per_s": TESTS * per_second(box, 60, TESTS),
                    "tests_per_s_shared": TESTS * per_second(shared, 60, TESTS),
                    "ms_one_test": 1000 * one,
                    "ms_per_further_test": 1000 * (many - one) / (TESTS - 1),
                }
            )
    return {name: [row[name] for row in rows] for name in rows[0]}


def bare_per_second(command: list[str], programs: int = 200) -> float:
    """Processes of a command per second, one at a time per core."""
    run = lambda _: subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        start_s = time.perf_counter()
        list(pool.map(run, range(programs)))
        return programs / (time.perf_counter() - start_s)


def bare() -> dict[str, list[float]]:
    """Programs per second without this sandbox: a new Python for each program."""
    python = [process.interpreter(), "-I", "-S", "-c", program(1)]
    wrapped = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", *python]
    speeds = {"python": [bare_per_second(python) for _ in range(TURNS)]}
    if shutil.which("bwrap"):
        speeds["bwrap"] = [bare_per_second(wrapped) for _ in range(TURNS)]
    return speeds


def kept(tier: str) -> dict[str, list[float]]:
    """Resources in use after the first gradings, after very many, and after closing."""
    with Sandbox(tier=tier) as box:
        per_second(box, 1000, 1)
        before = _held()
        for _ in range(GRADINGS // 1000):
            per_second(box, 1000, 1)
        after = _held()
    after_close = _held()
    return {name: [before[name], after[name], after_close[name]] for name in before}


def _held() -> dict[str, float]:
    """Memory in MB, and the numbers of processes, files and control groups."""
    family = _descendants(os.getpid())
    try:
        folders = set(control_groups.folders().values())
    except OSError:
        folders = set()
    groups = [g for f in folders for g in f.glob(f"sdpo_jax-{os.getpid()}-*")]
    return {
        "trainer_mb": _resident_mb(os.getpid()),
        "workers_mb": sum(map(_resident_mb, family)),
        "processes": len(family),
        "zombies": sum(_state(pid) == "Z" for pid in family),
        "trainer_files": len(os.listdir("/proc/self/fd")),
        "groups": len(groups),
    }


def _descendants(pid: int) -> list[int]:
    pids = []
    for child in control_groups.children(pid):
        pids += [child, *_descendants(child)]
    return pids


def _state(pid: int) -> str:
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _resident_mb(pid: int) -> float:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    lines = [line for line in status.split("\n") if line.startswith("VmRSS")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


def measure(file: pathlib.Path, name: str, work: Callable[[], dict]) -> None:
    """Do a measurement that `file` does not contain yet, and add its result."""
    results = json.loads(file.read_text()) if file.exists() else {}
    if name in results:
        return
    print(f"{name} ...", flush=True)
    try:
        results[name] = work()
    except SandboxUnavailable as error:
        print(f"{name}: {error}")
        return
    print(json.dumps(results[name]), flush=True)
    json_files.write_json_atomically(file, results)


def main() -> None:
    """Measure every tier that this machine supports."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=pathlib.Path, required=True)
    flags = parser.parse_args()
    flags.results.parent.mkdir(parents=True, exist_ok=True)
    measure(flags.results, "bare", bare)
    for tier in ("A", "B", "C"):
        measure(flags.results, f"{tier} speed", lambda tier=tier: speed(tier))
    for tier in ("A", "C"):
        measure(flags.results, f"{tier} kept", lambda tier=tier: kept(tier))


if __name__ == "__main__":
    main()
