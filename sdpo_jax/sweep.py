r"""Runs a grid of settings of one run file, a few runs at a time, into one table.

python -m sdpo_jax.sweep --config=configs/quickstart.py --workdir=runs/rates --jobs=2 \
    optimizer.learning_rate=1e-4,5e-4,1e-3 step.questions=2,8 seed=0,1,2

Every `field=value,value` is one axis of the grid, over any field of the config; a
single value applies to all runs. Commas inside brackets or double quotes do not
separate. Each run is `python -m sdpo_jax.main` in its own process and its own folder,
which also holds its `log.txt`. Running the same command again skips finished runs and
resumes the others. `results.json` is rewritten whenever a run ends; the table
summarises the seeds of a setting in one line.

Concurrent runs each get a share of the CPU cores. They cannot share an accelerator:
give --jobs=1 there. The runs share compiled programs through `<workdir>/compiled`,
unless JAX_COMPILATION_CACHE_DIR names another folder.
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

from sdpo_jax import config, json_files, run_file, sweep_grid

RESULTS = "results.json"
_SUMMARY = "summary.json"
_LOG = "log.txt"
_COMPILED = "compiled"
_PROMPT = "$ "  # Marks each command in a log, which is appended to when a run resumes.
_PAUSE_S = 0.1


class Stopped(Exception):
    """A signal stopped the sweep; the runs have saved and exited."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: its name, its run file, and the fields that differ from it."""

    name: str
    config: str
    overrides: Mapping[str, str]
    flags: Sequence[str] = ()


@dataclasses.dataclass
class _Child:
    """A run in progress, with its share of the cores."""

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
      runs: the runs to train; each run's folder has its name.
      workdir: the folder of all run folders.
      jobs: number of concurrent runs, at least 1; use 1 on an accelerator.
      after_each: called when a run ends, with the summaries so far.

    Returns:
      Name -> content of the run's `summary.json`; None for a run that failed.

    Raises:
      ValueError: before anything starts, if a config is invalid, two runs have the same
        name, or jobs is below 1.
      Stopped: after SIGTERM or Ctrl-C; unfinished runs have saved.
    """
    workdir = pathlib.Path(workdir).absolute()
    if jobs < 1:
        raise ValueError(f"--jobs={jobs}: must be at least 1")
    if len({run.name for run in runs}) < len(runs):
        raise ValueError("two runs have the same name: give every value once")
    finished = {run.name: _finished(run, workdir / run.name) for run in runs}
    summaries = {name: summary for name, summary in finished.items() if summary}
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
    """The config of a run, loaded and overridden as `sdpo_jax.main` does it.

    Raises:
      ValueError: one line that names the run, the field and the error.
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
        run_file.check(argv)
        values(argv)
        run_file.check_overrides(argv, "train", values["config"].value.method)
        # Loads JAX, which a sweep otherwise does without; it never uses a device.
        from sdpo_jax import components

        components.validate(values["config"].value)
    except Exception as error:
        # A run file is the user's code: it may raise anything.
        while "Error whilst parsing config file" in str(error):
            error = error.__context__
        lines = str(error).strip().splitlines() or [repr(error)]
        # The reason why a file cannot be read is on the last line.
        message = lines[-1 if isinstance(error, OSError) else 0].strip()
        raise ValueError(f"{run.name}: {message}") from error
    return values["config"].value


def main(argv: Sequence[str] | None = None) -> int | str:
    """Run the grid that the arguments define and print its table.

    Returns:
      What `sys.exit` takes: 0 if every run has finished.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="the run file")
    parser.add_argument("--workdir", required=True, help="folder of all run folders")
    parser.add_argument(
        "--jobs", type=int, default=2, help="number of concurrent runs (default 2)"
    )
    parser.add_argument("--wandb_project", help="as for one run; none by default")
    parser.add_argument("axes", nargs="*", metavar="field=value,value")
    arguments = parser.parse_intermixed_args(argv)
    workdir = pathlib.Path(arguments.workdir)
    try:
        cells = sweep_grid.grid(sweep_grid.parse_axes(arguments.axes))
        varied = sweep_grid.varied_fields(cells)
        project = arguments.wandb_project
        flags_of_runs = [f"--wandb_project={project}"] if project else []
        runs = [
            Run(sweep_grid.name_of(cell, varied), arguments.config, cell, flags_of_runs)
            for cell in cells
        ]
        write = lambda summaries: _write_results(workdir, runs, summaries)
        summaries = run_all(runs, workdir, arguments.jobs, write)
    except (ValueError, OSError) as error:
        return f"error: {error}"
    except Stopped as stopped:
        return f"{stopped}; the same command resumes"
    print("\npass@1, median [min, max] over seeds\n")
    print(sweep_grid.table(_results(runs, summaries)))
    failed = [name for name, summary in summaries.items() if summary is None]
    for name in failed:
        log = workdir / name / _LOG
        print(f"\nFAILED {name}: {_last_error(log)}\n  {log}")
    return 1 if failed else 0


def _finished(run: Run, folder: pathlib.Path) -> dict | None:
    """The summary of a finished run, or None; raises ValueError for a bad config."""
    # A round trip through JSON turns tuples into lists, as in the saved config.
    settings = json.loads(json.dumps(config.flat(load(run))))
    if not (folder / _SUMMARY).exists():
        return None
    if json.loads((folder / "config.json").read_text()) != settings:
        # The folder holds another run; main will refuse it and list the fields.
        return None
    return json.loads((folder / _SUMMARY).read_text())


def _train(
    runs: Sequence[Run], workdir: pathlib.Path, jobs: int, stop: list[int]
) -> Iterator[tuple[str, dict | None]]:
    """Yields name and summary of each run that ends, except those ended by `stop`."""
    waiting, running = collections.deque(runs), []
    free = _shares(max(1, min(jobs, len(runs))))
    terminated = False
    while running or (waiting and not stop):
        if stop and not terminated:
            # Only once: a second signal would end a run before it has saved.
            terminated = True
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
    command += [f"--workdir={folder}", *run.flags, *_flags(run)]
    with _on(cores), (folder / _LOG).open("a") as log:
        print(f"{_PROMPT}{shlex.join(command)}", file=log, flush=True)
        process = subprocess.Popen(
            command,
            env={"JAX_COMPILATION_CACHE_DIR": str(workdir / _COMPILED)} | os.environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # So that Ctrl-C reaches only the sweep, which then stops its runs.
            start_new_session=True,
        )
    print(f"{run.name}: started", flush=True)
    return _Child(run, cores, process, time.monotonic())


def _end(child: _Child, workdir: pathlib.Path) -> dict | None:
    """Print how a run ended, and return its summary if it finished."""
    folder, status = workdir / child.run.name, child.process.returncode
    seconds = time.monotonic() - child.start_s
    if status:
        reason = f"exit status {status}, see {folder / _LOG}"
        print(f"{child.run.name}: ended after {seconds:.0f} s, {reason}", flush=True)
        return None
    summary = json.loads((folder / _SUMMARY).read_text())
    result = f"finished in {seconds:.0f} s, {sweep_grid.validation_score(summary)}"
    print(f"{child.run.name}: {result}", flush=True)
    return summary


def _shares(jobs: int) -> list[set[int]]:
    """The cores of each job; empty if the platform cannot list cores."""
    if not hasattr(os, "sched_getaffinity"):
        return [set() for _ in range(jobs)]
    cores = sorted(os.sched_getaffinity(0))
    bounds = [job * len(cores) // jobs for job in range(jobs + 1)]
    # With fewer cores than jobs, some jobs share a core.
    return [
        set(cores[low : max(high, low + 1)]) for low, high in itertools.pairwise(bounds)
    ]


@contextlib.contextmanager
def _on(cores: set[int]) -> Iterator[None]:
    """Restrict processes that are started inside the block to these cores.

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
    """A list that the first SIGTERM or Ctrl-C is added to; a second ends the sweep."""
    stop = []

    def note(number, frame):
        stop.append(number)
        signal.signal(number, signal.SIG_DFL)
        print(f"{signal.Signals(number).name}: the runs save and exit", flush=True)

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


def _last_error(log: pathlib.Path) -> str:
    """The error that a run ended with, on one line."""
    text = log.read_text(errors="replace").rpartition(f"\n{_PROMPT}")[2]
    lines = text.splitlines()[1:]
    starts = [n for n, line in enumerate(lines) if line.startswith("error: ")]
    return " ".join(" ".join(lines[starts[-1] if starts else -1 :]).split())


if __name__ == "__main__":
    sys.exit(main())
