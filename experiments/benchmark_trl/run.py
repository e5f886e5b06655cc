"""Compares one SDPO step of this project with one of TRL 1.16, on one CPU core.

  python -m experiments.benchmark_trl.run --core=1

Without `--trl-python` it first makes an environment for TRL in runs/benchmark_trl/venv.
The result of each process is saved in results.json and not measured again, except with
`--again`. The table is printed at the end.
"""

import argparse
import itertools
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence

from experiments.benchmark_trl import workload as w
from sdpo_jax import json_files

_HERE = pathlib.Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
_SCRATCH = _ROOT / "runs" / "benchmark_trl"
_SIDES = {"sdpo_jax": "sdpo_jax", "trl": "TRL 1.16"}
# The turn in which our side compiles (TRL does not); later turns load from the cache.
_COMPILES = 0
# A process with less than this share of its core was waiting for other processes.
_CORE_SHARE = 0.97
_TRIES = 5

_COLUMNS: dict[str, Callable[[dict], float]] = {
    "whole step, s": lambda r: statistics.median(r["whole_s"]),
    "sampling, s": lambda r: statistics.median(r["sample_s"]),
    "update, s": lambda r: statistics.median(_update_s(r)),
    "peak memory, MiB": lambda r: r["peak_mib"],
}


def _update_s(result: dict) -> list[float]:
    """The seconds of each step that are not sampling."""
    pairs = zip(result["whole_s"], result["sample_s"], strict=True)
    return [whole - sample for whole, sample in pairs]


def table(results: Sequence[dict], workload: str) -> str:
    """A Markdown table: a row per side and one of ratios, each a median and a range."""
    chosen = [r for r in results if r["workload"] == workload]
    by_side = {
        side: {r["turn"]: r for r in chosen if r["side"] == side} for side in _SIDES
    }
    pairs = sorted(by_side["sdpo_jax"].keys() & by_side["trl"].keys())
    rows = [["", *_COLUMNS], ["---"] * (len(_COLUMNS) + 1)]
    for side, name in _SIDES.items():
        values = [
            [of(by_side[side][turn]) for turn in pairs] for of in _COLUMNS.values()
        ]
        rows.append([name, *map(_spread, values)])
    ours, theirs = by_side.values()
    ratios = [
        [of(ours[turn]) / of(theirs[turn]) for turn in pairs]
        for of in _COLUMNS.values()
    ]
    rows.append(["ratio", *map(_spread, ratios)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    first = by_side["sdpo_jax"].get(_COMPILES)
    if first:
        lines += ["", f"The process that compiled: {first['compile_s']:.0f} s of it, "]
        lines[-1] += f"peak memory {first['peak_mib']:.0f} MiB."
    return "\n".join([f"### {workload}", "", *lines])


def _spread(values: Sequence[float]) -> str:
    """`median (lowest to highest)`."""
    show = lambda x: f"{x:.0f}" if x >= 100 else f"{x:.2f}"
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{show(middle)} ({show(low)} to {show(high)})"


def make_trl_environment() -> pathlib.Path:
    """The Python of an environment with requirements-trl.txt, created if missing."""
    folder = _SCRATCH / "venv"
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        venv.create(folder, with_pip=True)
        requirements = str(_HERE / "requirements-trl.txt")
        command = [python, "-m", "pip", "install", "--quiet", "-r", requirements]
        subprocess.run(command, check=True)
        done.touch()
    return python


def measure(side: str, workload: str, python, checkpoint, compiled) -> dict:
    """Run one process of one side, and return its result."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    environment["JAX_COMPILATION_CACHE_DIR"] = str(compiled)
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "result.json"
        log = pathlib.Path(folder) / "log"
        command = [
            str(python),
            *("-m", f"experiments.benchmark_trl.{side}_side"),
            f"--workload={workload}",
            f"--checkpoint={checkpoint}",
            f"--out={out}",
        ]
        with log.open("w") as file:
            done = subprocess.run(
                command, cwd=_ROOT, env=environment, stdout=file, stderr=file
            )
        if done.returncode:
            sys.exit(f"{log.read_text()}\n{' '.join(command)} failed")
        return json.loads(out.read_text())


def measure_undisturbed(side: str, *rest) -> dict:
    """`measure`, repeated while other processes use the core."""
    for _ in range(_TRIES):
        result = measure(side, *rest)
        if result["core_share"] >= _CORE_SHARE:
            return result
        print(f"{side} had {result['core_share']:.0%} of the core; again", flush=True)
    sys.exit(f"other processes use the core; {_TRIES} tries failed")


def machine() -> dict:
    """The machine that the numbers were measured on."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    cpu = names[0] if names else platform.processor()
    return {"cpu": cpu, "architecture": platform.machine(), "cores": os.cpu_count()}


def main() -> None:
    """Do the missing measurements and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trl-python", help="a Python with requirements-trl.txt")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--workload", choices=w.WORKLOADS, action="append")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--results", type=pathlib.Path, default=_HERE / "results.json")
    parser.add_argument(
        "--again", choices=_SIDES, nargs="*", help="measure these sides again; or both"
    )
    arguments = parser.parse_args()
    workloads = arguments.workload or list(w.WORKLOADS)
    results = []
    if arguments.results.exists():
        results = json.loads(arguments.results.read_text())
    if arguments.again is not None:
        forgotten = arguments.again or list(_SIDES)
        gone = lambda r: r["side"] in forgotten and r["workload"] in workloads
        results = [r for r in results if not gone(r)]
    _fill(results, workloads, arguments)
    for workload in workloads:
        print("\n" + table(results, workload))


def _fill(results: list[dict], workloads: Sequence[str], arguments) -> None:
    """Do the measurements missing in `results` and save them, the sides in turn."""
    # Child processes inherit the core, and libraries choose their threads by it.
    os.sched_setaffinity(0, {arguments.core})
    measured = {(r["workload"], r["turn"], r["side"]) for r in results}
    pythons = {"sdpo_jax": sys.executable, "trl": arguments.trl_python}
    for workload in workloads:
        turns = range(1, arguments.turns + 1)
        order = [(_COMPILES, "sdpo_jax"), *itertools.product(turns, _SIDES)]
        missing = [
            (turn, side)
            for turn, side in order
            if (workload, turn, side) not in measured
        ]
        compiled = _SCRATCH / "compiled" / workload
        for turn, side in missing:
            if turn == _COMPILES:
                shutil.rmtree(compiled, ignore_errors=True)
            if pythons[side] is None:
                pythons[side] = make_trl_environment()
            result = measure_undisturbed(
                side, workload, pythons[side], _checkpoint(workload), compiled
            )
            name = {"workload": workload, "turn": turn, "side": side}
            results.append(name | machine() | result)
            json_files.write_json_atomically(arguments.results, results)
            whole_s = statistics.median(result["whole_s"])
            print(f"{workload}, turn {turn}, {side}: {whole_s:.3f} s", flush=True)


def _checkpoint(workload: str) -> pathlib.Path:
    """The random checkpoint of a workload, written if missing."""
    folder = _SCRATCH / workload
    if not folder.exists():
        from experiments.benchmark_trl import checkpoint  # Imports JAX.

        checkpoint.write(w.WORKLOADS[workload], folder)
    return folder


if __name__ == "__main__":
    main()
