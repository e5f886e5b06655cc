r"""Many runs of one run file: a grid of settings, a few at a time, into one table.

python -m sdpo_jax.sweep --config=configs/quickstart.py --workdir=runs/rates --jobs=2 \
    optimizer.learning_rate=1e-4,5e-4,1e-3 step.questions=2,8 seed=0,1,2

Every `field=value,value` is one axis of the grid, over any field of the config; one
value holds for all runs. A comma inside brackets or double quotes does not separate.
Each run is `python -m sdpo_jax.main` in a process and a folder of its own, which also
gets its `log.txt`. The same command again skips what is finished and goes on with the
rest. `results.json` grows as runs end; the table folds the seeds of a setting.

Runs side by side each get their share of the CPU cores. They cannot share an
accelerator: there give --jobs=1. What one run compiles the others load, from
`<workdir>/compiled` unless JAX_COMPILATION_CACHE_DIR names another place.
"""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from sdpo_jax import config, envs, json_files, sweep_grid

RESULTS = "results.json"
_SUMMARY = "summary.json"
_LOG = "log.txt"
_COMPILED = "compiled"
_PROMPT = "$ "  # Before the command in a log, which holds every attempt at a run.
_PAUSE_S = 0.1


class Stopped(Exception):
    """A signal asked to stop; the runs have saved and left."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: what it is called, its run file, and what differs from it."""

    name: str
    config: str
    overrides: Mapping[str, str]


@dataclasses.dataclass
class _Child:
    """A run in progress, on its share of the cores."""

    run: Run
    cores: set[int]
    process: subprocess.Popen
    start_s: float


def run_all(
    runs: Sequence[Run],
    workdir: str | os.PathLike,
    jobs: int = 2,
    after_each: Callable[[dict[str, dict | None]], None] = lambda summaries: None,
) -> dict[str, dict | None]:
    """Train every run that is not finished yet, `jobs` at a time.

    Args:
      runs: what to train; a run's folder is called by its name.
      workdir: the folder of all run folders.
      jobs: runs in progress at once, at least 1; 1 on an accelerator.
      after_each: called as runs end, with the summaries so far.

    Returns:
      Name -> what the run's `summary.json` holds; None for a run that failed.

    Raises:
      ValueError: before anything starts, if a config makes no sense, two runs have
        one name, or jobs is below 1.
      Stopped: if SIGTERM or Ctrl-C asked to stop; unfinished runs have saved.
    """
    workdir = pathlib.Path(workdir).absolute()
    if jobs < 1:
        raise ValueError(f"--jobs={jobs}: must be at least 1")
    if len({run.name for run in runs}) < len(runs):
        raise ValueError("two runs have one name: give every value once")
    found = {run.name: _finished(run, workdir / run.name) for run in runs}
    summaries = {name: summary for name, summary in found.items() if summary}
    for name, summary in summaries.items():
        print(
            f"{name}: already finished, {sweep_grid.validation_score(summary)}",
            flush=True,
        )
    after_each(summaries)
    waiting = [run for run in runs if run.name not in summaries]
    with _stop_signals() as stop:
        for name, summary in _train(waiting, workdir, jobs, stop):
            summaries[name] = summary
            after_each(summaries)
    if stop:
        raise Stopped(f"stopped with {len(summaries)} of {len(runs)} runs ended")
    return {run.name: summaries[run.name] for run in runs}


def load(run: Run) -> ConfigDict:
    """The config of a run, read and overridden as `sdpo_jax.main` does.

    Raises:
      ValueError: one line that names the run, the field and what is wrong with it.
    """
    fields = config.flat(config.default())
    for field in run.overrides:
        if field not in fields:
            near = config.nearest(field, fields)
            raise ValueError(
                f"{field}: no such config field; nearest: {near} = {fields[near]!r}"
            )
    argv = ["", f"--config={run.config}", *_flags(run)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
        config.validate(values["config"].value)
        envs.validate(values["config"].value)
    except Exception as error:
        # A run file is its author's code: it may raise anything.
        while "Error whilst parsing config file" in str(error):
            error = error.__context__
        lines = str(error).strip().splitlines() or [repr(error)]
        # A file that cannot be read is told on the last of several lines.
        told = lines[-1 if isinstance(error, OSError) else 0].strip()
        raise ValueError(f"{run.name}: {told}") from error
    return values["config"].value


def main(argv: Sequence[str] | None = None) -> int | str:
    """Run the grid that the arguments name; print its table.

    Returns:
      What `sys.exit` takes: 0 if every run is finished.
    """
    flag = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flag.add_argument("--config", required=True, help="the run file")
    flag.add_argument("--workdir", required=True, help="folder of all run folders")
    flag.add_argument("--jobs", type=int, default=2, help="runs at once (default 2)")
    flag.add_argument("axes", nargs="*", metavar="field=value,value")
    given = flag.parse_intermixed_args(argv)
    workdir = pathlib.Path(given.workdir)
    try:
        cells = sweep_grid.grid(sweep_grid.parse_axes(given.axes))
        varied = sweep_grid.varied_fields(cells)
        runs = [
            Run(sweep_grid.name_of(cell, varied), given.config, cell) for cell in cells
        ]
        write = lambda summaries: _write_results(workdir, runs, summaries)
        summaries = run_all(runs, workdir, given.jobs, write)
    except (ValueError, OSError) as error:
        return f"error: {error}"
    except Stopped as stopped:
        return f"{stopped}; the same command goes on"
    print("\npass@1, median [least, most] over seeds\n")
    print(sweep_grid.table(_results(runs, summaries)))
    failed = [name for name, summary in summaries.items() if summary is None]
    for name in failed:
        log = workdir / name / _LOG
        print(f"\nFAILED {name}: {_last_words(log)}\n  {log}")
    return 1 if failed else 0


def _finished(run: Run, folder: pathlib.Path) -> dict | None:
    """The summary that is there already; refuses a config that makes no sense."""
    # Through JSON, as the folder's own went: tuples become lists.
    settings = json.loads(json.dumps(config.flat(load(run))))
    if not (folder / _SUMMARY).exists():
        return None
    if json.loads((folder / "config.json").read_text()) != settings:
        # It sums up another run, which main tells field by field as it refuses.
        return None
    return json.loads((folder / _SUMMARY).read_text())


def _train(
    runs: Sequence[Run], workdir: pathlib.Path, jobs: int, stop: list[int]
) -> Iterator[tuple[str, dict | None]]:
    """Name and summary of each run as it ends, but not of those that `stop` ends."""
    waiting, running = collections.deque(runs), []
    free = _shares(max(1, min(jobs, len(runs))))
    told = False
    while running or (waiting and not stop):
        if stop and not told:
            # Once: a second signal would end a run before it has saved.
            told = True
            for child in running:
                child.process.terminate()
        while waiting and free and not stop:
            running.append(_start(waiting.popleft(), workdir, free.pop(0)))
        for child in [c for c in running if c.process.poll() is not None]:
            running.remove(child)
            free.append(child.cores)
            summary = _end(child, workdir)
            if summary or not stop:
                yield child.run.name, summary
        time.sleep(_PAUSE_S)


def _start(run: Run, workdir: pathlib.Path, cores: set[int]) -> _Child:
    folder = workdir / run.name
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "sdpo_jax.main", f"--config={run.config}"]
    command += [f"--workdir={folder}", *_flags(run)]
    with _on(cores), (folder / _LOG).open("a") as log:
        print(f"{_PROMPT}{shlex.join(command)}", file=log, flush=True)
        process = subprocess.Popen(
            command,
            env={"JAX_COMPILATION_CACHE_DIR": str(workdir / _COMPILED)} | os.environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C then reaches the sweep alone, which tells its runs.
            start_new_session=True,
        )
    print(f"{run.name}: started", flush=True)
    return _Child(run, cores, process, time.monotonic())


def _end(child: _Child, workdir: pathlib.Path) -> dict | None:
    """Tell how a run ended; its summary if it finished."""
    folder, status = workdir / child.run.name, child.process.returncode
    seconds = time.monotonic() - child.start_s
    if status:
        told = f"exit status {status}, see {folder / _LOG}"
        print(f"{child.run.name}: ended after {seconds:.0f} s, {told}", flush=True)
        return None
    summary = json.loads((folder / _SUMMARY).read_text())
    told = f"finished in {seconds:.0f} s, {sweep_grid.validation_score(summary)}"
    print(f"{child.run.name}: {told}", flush=True)
    return summary


def _shares(jobs: int) -> list[set[int]]:
    """The cores of each job; empty where the platform does not say."""
    if not hasattr(os, "sched_getaffinity"):
        return [set() for _ in range(jobs)]
    cores = sorted(os.sched_getaffinity(0))
    bounds = [job * len(cores) // jobs for job in range(jobs + 1)]
    # With fewer cores than jobs, some share one.
    return [
        set(cores[low : max(high, low + 1)]) for low, high in itertools.pairwise(bounds)
    ]


@contextlib.contextmanager
def _on(cores: set[int]) -> Iterator[None]:
    """Processes started inside have these cores only.

    Otherwise XLA starts a thread per core of the machine in each of them.
    """
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that the first SIGTERM or Ctrl-C is put into; the second one ends us."""
    stop = []

    def note(number, frame):
        stop.append(number)
        signal.signal(number, signal.SIG_DFL)
        print(f"{signal.Signals(number).name}: the runs save and leave", flush=True)

    before = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _flags(run: Run) -> list[str]:
    return [f"--config.{field}={value}" for field, value in run.overrides.items()]


def _results(runs: Sequence[Run], summaries: Mapping[str, dict | None]) -> list[dict]:
    return [
        {"name": r.name, "overrides": r.overrides, "summary": summaries[r.name]}
        for r in runs
        if r.name in summaries
    ]


def _write_results(workdir: pathlib.Path, runs, summaries) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    json_files.write_json_atomically(workdir / RESULTS, _results(runs, summaries))


def _last_words(log: pathlib.Path) -> str:
    """The error that a run ended with, on one line."""
    text = log.read_text(errors="replace").rpartition(f"\n{_PROMPT}")[2]
    lines = text.splitlines()[1:]
    starts = [n for n, line in enumerate(lines) if line.startswith("error: ")]
    return " ".join(" ".join(lines[starts[-1] if starts else -1 :]).split())


if __name__ == "__main__":
    sys.exit(main())
