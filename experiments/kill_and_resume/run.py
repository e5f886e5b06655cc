"""Kill runs with SIGKILL at random moments, resume them, and compare to the bit.

  python -m experiments.kill_and_resume.run --trials=10 --workdir=runs/kill_and_resume

The same command again repeats no finished trial. See README.md here for what is
compared and what was measured.
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
# Of the clock, not of the seed.
_CLOCK = "seconds"


def start(folder: pathlib.Path) -> subprocess.Popen:
    """The command of a user, on a run folder; its output goes into `log.txt` there."""
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
    """Run or resume, at most so long: then SIGKILL its process group. Its status."""
    process = start(folder)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # After Ctrl-C too: left behind, it would write into the next trial.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def finish(folder: pathlib.Path) -> float:
    """Run or resume to the end; the seconds it took."""
    start_s = time.monotonic()
    if run_for(folder):
        raise ChildProcessError(f"the run did not end well, see {folder / 'log.txt'}")
    return time.monotonic() - start_s


def found_in(folder: pathlib.Path) -> dict:
    """What a killed run has left behind."""
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
    """What a finished run has written, but for what the clock decides."""
    summary = json.loads((folder / "summary.json").read_text())
    del summary[_CLOCK]
    # attempts.jsonl and metrics.jsonl hold nothing of the clock: whole files.
    parts = {
        "attempts": (folder / metrics.ATTEMPTS).read_bytes(),
        "metrics": (folder / metrics.METRICS).read_bytes(),
        "summary": json.dumps(summary, sort_keys=True).encode(),
    }
    found = {name: hashlib.sha256(part).hexdigest() for name, part in parts.items()}
    return {n: d[:12] for n, d in (found | {"checkpoints": _arrays(folder)}).items()}


def _arrays(folder: pathlib.Path) -> str:
    """Digest of every array of every checkpoint that is kept, with their names."""
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
    """Seconds and digests of a run that nobody kills."""
    file, folder = workdir / "undisturbed.json", workdir / "undisturbed"
    if not file.exists():
        shutil.rmtree(folder, ignore_errors=True)
        # Its compiled programs are kept, so that the next one is timed as the trials.
        finish(workdir / "first")
        seconds = round(finish(folder), 1)
        first = digests(workdir / "first")
        result = {"seconds": seconds, "digests": digests(folder), "first": first}
        json_files.write_json_atomically(file, result)
    return json.loads(file.read_text())


def trial(workdir: pathlib.Path, number: int, seed: int, within_s: float) -> dict:
    """Kill a run at a random moment, resume it, and tell how it ended."""
    file, folder = workdir / f"trial_{number}.json", workdir / f"trial_{number}"
    rng = random.Random(f"{seed}-{number}")
    late = -1
    while not file.exists():
        late += 1
        shutil.rmtree(folder, ignore_errors=True)
        killed_s = rng.uniform(0, within_s)
        # A run that ended before its moment came is drawn again.
        if run_for(folder, killed_s) != -signal.SIGKILL:
            continue
        found = {"killed_s": round(killed_s, 2), "late_draws": late}
        found |= found_in(folder)
        found |= {"resumed_s": round(finish(folder), 1), "digests": digests(folder)}
        json_files.write_json_atomically(file, found)
    return json.loads(file.read_text())


def _show(name: str, result: dict, expected: dict) -> bool:
    equal = result["digests"] == expected
    told = "  ".join(f"{part} {d}" for part, d in result["digests"].items())
    print(f"{name}: {told}  {'equal' if equal else 'DIFFERS'}", flush=True)
    return equal


def main() -> int:
    """Run the trials that the command line asks for; 1 if any run differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    given = parser.parse_args()
    given.workdir = given.workdir.absolute()
    whole = undisturbed(given.workdir)
    expected = whole["digests"]
    print(f"undisturbed: {whole['seconds']} s", flush=True)
    equal = [_show("undisturbed", whole, expected)]
    equal += [_show("undisturbed, first", {"digests": whole["first"]}, expected)]
    trials = []
    for number in range(given.trials):
        trials.append(trial(given.workdir, number, given.seed, whole["seconds"]))
        found = {k: v for k, v in trials[-1].items() if k != "digests"}
        print(f"trial {number}: {json.dumps(found)}", flush=True)
        equal.append(_show(f"trial {number}", trials[-1], expected))
    results = {
        "overrides": _RUN.overrides,
        "seed": given.seed,
        "undisturbed": whole,
        "trials": trials,
        "equal": all(equal),
    }
    path = pathlib.Path(__file__).with_name("results.json")
    json_files.write_json_atomically(path, results)
    return 0 if all(equal) else 1


if __name__ == "__main__":
    sys.exit(main())
