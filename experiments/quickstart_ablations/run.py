"""Ablations of SDPO on the quickstart's task: one setting changed at a time.

  python -m experiments.quickstart_ablations.run --workdir=runs/ablations --jobs=2

Seeds 1 to 3 of each setting, 6,400 generations, all else as in configs/quickstart.py;
one line of every table is that config itself. Every run is resumable, and every
finished run is added to `results.json` in this folder and not run again.
"""

import argparse
import pathlib
import sys
from collections.abc import Mapping, Sequence

from experiments.quickstart import study
from sdpo_jax import config, sweep

HERE = pathlib.Path(__file__).resolve().parent
SEEDS = (1, 2, 3)

_DIVERGENCES = ("forward_kl", "jensen_shannon", "reverse_kl")
_SUPPORTS = {
    "full vocabulary": {"sdpo.support": "full"},
    "top 20 + tail": {"sdpo.support": "top_k", "sdpo.top_k": "20"},
    "top 20, renormalised": {
        "sdpo.support": "top_k",
        "sdpo.top_k": "20",
        "sdpo.keep_tail": "False",
    },
}
# Table -> setting -> the fields that differ from configs/quickstart.py.
TABLES: dict[str, dict[str, dict[str, str]]] = {
    "teacher": {
        "slow EMA, rate 0.005": {},
        "EMA, rate 0.05": {"teacher.rate": "0.05"},
        "trust region, mixture 0.05": {"teacher.mode": "trust_region"},
        "frozen": {"teacher.mode": "frozen"},
        "live": {"teacher.mode": "live"},
    },
    "feedback": {
        "solution and environment": {},
        "solution only": {"reprompt.show_feedback": "never"},
        "environment only": {"reprompt.demonstration_from": "nobody"},
        "solution, environment and own attempt": {"reprompt.show_attempt": "True"},
    },
    "divergence": {
        f"{divergence}, {support}": fields | {"sdpo.divergence": divergence}
        for divergence in _DIVERGENCES
        for support, fields in _SUPPORTS.items()
    },
}


def runs_of(
    setting: str, fields: Mapping[str, str], seeds: Sequence[int], workdir: pathlib.Path
) -> list[sweep.Run]:
    """The runs of a setting on every seed; the shipped config is named "shipped"."""
    shipped = config.flat(sweep.load(sweep.Run("shipped", study.CONFIGS["sdpo"], {})))
    differs = {f: value for f, value in fields.items() if str(shipped[f]) != value}
    name = setting.replace(" ", "_").replace(",", "") if differs else "shipped"
    return [
        study.make_run(f"{name}-{seed}", "sdpo", seed, workdir, differs)
        for seed in seeds
    ]


def table(records: Mapping[str, Sequence[dict]], title: str) -> str:
    """A Markdown table with the held-out pass@1 of every setting."""
    rows = [(title, "seeds", "last", "best by validation")]
    for setting, of_setting in records.items():
        scores = (study.heldout(of_setting, part) for part in ("last", "best"))
        rows.append((setting, str(len(of_setting)), *map(study.spread, scores)))
    return study.markdown(rows)


def main() -> int | str:
    """Train the missing runs, and print each table when it is complete."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    given = parser.parse_args()
    for title, settings in TABLES.items():
        runs = {
            setting: runs_of(setting, fields, given.seeds, given.workdir)
            for setting, fields in settings.items()
        }
        flat = [run for of_setting in runs.values() for run in of_setting]
        try:
            done = study.complete(
                flat, given.workdir, given.jobs, HERE / "results.json"
            )
        except sweep.Stopped as stopped:
            return f"{stopped}; the same command resumes"
        records = iter(done)
        by_setting = {s: [next(records) for _ in of] for s, of in runs.items()}
        print(f"\n{table(by_setting, title)}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
