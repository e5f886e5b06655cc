"""Kills runs with SIGKILL at random moments, resumes them, and compares every bit.

  python -m experiments.kill_and_resume.run --trials=10 --workdir=runs/kill_and_resume

Running the same command again skips finished trials. README.md in this folder describes
what is compared and the results.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np

from sdpo_jax import distributed, json_files, metrics, sweep, train_state
from sdpo_jax.checkpoint import Checkpoints
from sdpo_jax.model import huggingface

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_RUN = sweep.Run(
    name="quickstart",
    config=str(_ROOT / "configs" / "quickstart.py"),
    overrides={
        "train.updates": "12",
        "train.evaluate_every": "4",
        "train.save_every": "2",
    },
)
# The field of the summary that depends on the clock, not only on the seed.
_CLOCK = "seconds"


def start(folder: pathlib.Path) -> subprocess.Popen:
    """Start or resume a run as a user would; its output goes to log.txt in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    overrides = [f"--config.{name}={value}" for name, value in _RUN.overrides.items()]
    # Compiling again at every start would take longer than the run itself.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "sdpo_jax.main", f"--config={_RUN.config}"]
            + [f"--workdir={folder}", *overrides],
            cwd=_ROOT,
            env=cache | os.environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def run_for(folder: pathlib.Path, seconds: float | None = None) -> int:
    """Run or resume, SIGKILL after `seconds`; returns the exit status."""
    process = start(folder)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Also after Ctrl-C: a run that is left alive would write into the next trial.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def finish(folder: pathlib.Path) -> float:
    """Run or resume to the end; returns the seconds that it took."""
    start_s = time.monotonic()
    if run_for(folder):
        raise ChildProcessError(f"the run failed, see {folder / 'log.txt'}")
    return time.monotonic() - start_s


def progress(folder: pathlib.Path) -> dict:
    """How far a killed run got, from the files in its folder."""
    file = folder / metrics.METRICS
    lines = list(json_files.read_lines(file)) if file.exists() else []
    checkpoints = folder / "checkpoints"
    saved = sorted(int(p.name) for p in checkpoints.glob("*[0-9]"))
    return {
        "last_update_logged": lines[-1]["step"] if lines else None,
        "last_update_saved": saved[-1] if saved else None,
        "was_saving": any(checkpoints.glob("*.unfinished")),
        "was_finished": (folder / "summary.json").exists(),
    }


def digests(folder: pathlib.Path) -> dict[str, str]:
    """Digests of all that a finished run has written, except what the clock decides."""
    summary = json.loads((folder / "summary.json").read_text())
    del summary[_CLOCK]
    # attempts.jsonl and metrics.jsonl contain no times, so the complete files count.
    contents = {
        "attempts": (folder / metrics.ATTEMPTS).read_bytes(),
        "metrics": (folder / metrics.METRICS).read_bytes(),
        "summary": json.dumps(summary, sort_keys=True).encode(),
    }
    full = {n: hashlib.sha256(data).hexdigest() for n, data in contents.items()}
    return {n: d[:12] for n, d in (full | {"checkpoints": _arrays(folder)}).items()}


def _arrays(folder: pathlib.Path) -> str:
    """Digest of every array, with its name, of all checkpoints in the folder."""
    c = sweep.load(_RUN)
    mesh = distributed.make_mesh(c.mesh, devices=jax.devices()[:1])
    arch = huggingface.architecture(c.model.path)
    abstract = train_state.abstract_state(c, arch, mesh)
    checkpoints = Checkpoints(folder / "checkpoints")
    digest = hashlib.sha256()
    for update in checkpoints.steps():
        state, _, _ = checkpoints.restore(abstract, update)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            digest.update(f"{update}{jax.tree_util.keystr(path)}".encode())
            digest.update(np.asarray(leaf).tobytes())
    checkpoints.close()
    return digest.hexdigest()


def undisturbed(workdir: pathlib.Path) -> dict:
    """Seconds and digests of a run that is not killed."""
    file, folder = workdir / "undisturbed.json", workdir / "undisturbed"
    if not file.exists():
        shutil.rmtree(folder, ignore_errors=True)
        # The first run fills the compilation cache, so that the second is timed as the
        # trials are.
        finish(workdir / "first")
        seconds = round(finish(folder), 1)
        first = digests(workdir / "first")
        result = {"seconds": seconds, "digests": digests(folder), "first": first}
        json_files.write_json_atomically(file, result)
    return json.loads(file.read_text())


def trial(workdir: pathlib.Path, number: int, seed: int, within_s: float) -> dict:
    """Kill a run at a random moment and resume it; returns what happened."""
    file, folder = workdir / f"trial_{number}.json", workdir / f"trial_{number}"
    rng = random.Random(f"{seed}-{number}")
    late = -1
    while not file.exists():
        late += 1
        shutil.rmtree(folder, ignore_errors=True)
        killed_s = rng.uniform(0, within_s)
        # Draw another moment if the run ended before this one.
        if run_for(folder, killed_s) != -signal.SIGKILL:
            continue
        result = {"killed_s": round(killed_s, 2), "late_draws": late}
        result |= progress(folder)
        result |= {"resumed_s": round(finish(folder), 1), "digests": digests(folder)}
        json_files.write_json_atomically(file, result)
    return json.loads(file.read_text())


def _show(name: str, result: dict, expected: dict) -> bool:
    equal = result["digests"] == expected
    line = "  ".join(f"{content} {d}" for content, d in result["digests"].items())
    print(f"{name}: {line}  {'equal' if equal else 'DIFFERS'}", flush=True)
    return equal


def main() -> int:
    """Run the requested number of trials; returns 1 if any run differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    given = parser.parse_args()
    given.workdir = given.workdir.absolute()
    baseline = undisturbed(given.workdir)
    expected = baseline["digests"]
    print(f"undisturbed: {baseline['seconds']} s", flush=True)
    equal = [_show("undisturbed", baseline, expected)]
    equal += [_show("undisturbed, first", {"digests": baseline["first"]}, expected)]
    trials = []
    for number in range(given.trials):
        trials.append(trial(given.workdir, number, given.seed, baseline["seconds"]))
        events = {k: v for k, v in trials[-1].items() if k != "digests"}
        print(f"trial {number}: {json.dumps(events)}", flush=True)
        equal.append(_show(f"trial {number}", trials[-1], expected))
    results = {
        "overrides": _RUN.overrides,
        "seed": given.seed,
        "undisturbed": baseline,
        "trials": trials,
        "equal": all(equal),
    }
    path = pathlib.Path(__file__).with_name("results.json")
    json_files.write_json_atomically(path, results)
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
