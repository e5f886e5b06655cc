"""Compares SDPO with GRPO on the quickstart's task: equal tuning, then fresh seeds.

  python -m experiments.quickstart.study --workdir=runs/study --jobs=2

In this order, two runs at a time, every run resumable:

  tuning   each method over the same grid, on the questions of seed 0; selects the
           setting with the best validation pass@1 at the end
  fresh    both methods at their setting, seeds 11 to 15, 6,400 generations
  longer   GRPO to 25,600 and SDPO to 12,800 generations, each with its own schedule

Every finished run is added to `results.json` in this folder and not run again.
`study.png` is drawn here too, and the tables are printed. A seed decides the meaning of
the words, the order of questions and all sampling; the base model is the same.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from experiments.quickstart import make_questions  # noqa: E402
from sdpo_jax import config, json_files, metrics, sweep

HERE = pathlib.Path(__file__).resolve().parent
METHODS = ("sdpo", "grpo")
TUNING_SEED, FRESH_SEEDS = 0, (11, 12, 13, 14, 15)
RATES = ("1e-4", "2e-4", "5e-4", "1e-3", "2e-3")
# Per step; a rollout batch has eight, so these are four steps or one per batch.
STEP_QUESTIONS = ("2", "8")
GENERATIONS_PER_UPDATE = 64
UPDATES = {"sdpo": 100, "grpo": 100}
LONGER_UPDATES = {"sdpo": 200, "grpo": 400}
CONFIGS = {"sdpo": "configs/quickstart.py", "grpo": "configs/quickstart_grpo.py"}
# Fields that the config has renamed since the records were saved: old name -> new name.
_RENAMED = {
    "env.memory_limit_mb": "env.sandbox.memory_limit_mb",
    "env.time_limit_s": "env.sandbox.time_limit_s",
    "env.process_per": "env.programming.process_per",
    "env.wrong_answers_shown": "env.programming.wrong_answers_shown",
}
_LABELS = {"sdpo": "SDPO", "grpo": "GRPO"}
_COLORS = {"sdpo": "tab:blue", "grpo": "tab:orange"}


def make_run(
    name: str,
    method: str,
    seed: int,
    workdir: pathlib.Path,
    overrides: Mapping[str, str],
) -> sweep.Run:
    """A run on the questions of a seed, which are written if missing.

    Args:
      name: of the run and its folder.
      method: one of METHODS.
      seed: of the questions and of the run.
      workdir: contains a folder of questions for each seed.
      overrides: config field -> value.
    """
    folder = workdir / "questions" / str(seed)
    if not folder.exists():
        make_questions.write(seed, folder)
    files = {f"env.{s}": str(folder / f"{s}.jsonl") for s in make_questions.SPLITS}
    return sweep.Run(name, CONFIGS[method], {"seed": str(seed), **overrides, **files})


def complete(
    runs: Sequence[sweep.Run], workdir: pathlib.Path, jobs: int, kept: pathlib.Path
) -> list[dict]:
    """A record of every run; trains the runs that have none in the file `kept`.

    Each record is added to the file when its run ends, so another checkout with this
    file continues where the first one stopped.

    Raises:
      RuntimeError: if runs failed; the records of the others are saved.
    """
    records = kept_records(kept) if kept.exists() else {}
    by_name = {run.name: run for run in runs}
    settings = {run.name: setting(run) for run in runs}
    same = lambda name: records.get(name, {}).get("setting") == settings[name]
    missing = [run for run in runs if not same(run.name)]

    def keep(summaries: Mapping[str, dict | None]) -> None:
        for name, summary in summaries.items():
            if summary is not None:
                records[name] = _record(by_name[name], summary, workdir)
        json_files.write_json_atomically(kept, records)

    summaries = sweep.run_all(missing, workdir, jobs, keep)
    failed = [name for name, summary in summaries.items() if summary is None]
    if failed:
        log = workdir / failed[0] / "log.txt"
        raise RuntimeError(f"{len(failed)} runs failed; the first one's log: {log}")
    return [records[run.name] for run in runs]


def kept_records(file: pathlib.Path) -> dict[str, dict]:
    """Name of a run -> its record, with settings by the current names of fields."""
    records = json.loads(file.read_text())
    for record in records.values():
        named = record["setting"].items()
        record["setting"] = {
            _RENAMED.get(field, field): value for field, value in named
        }
    return records


def setting(run: sweep.Run) -> dict:
    """The fields of a run's config that differ from the defaults and affect its result.

    Leaves out the paths of files, and fields that only another method reads.
    """
    unread = ("env.train", "env.validation", "env.heldout", "model.path")
    if run.config == CONFIGS["grpo"]:
        unread += ("sdpo.", "teacher.", "reprompt.")
    defaults = config.flat(config.default())
    differs = {
        field: value
        for field, value in config.flat(sweep.load(run)).items()
        if value != defaults[field] and not field.startswith(unread)
    }
    # A round trip through JSON turns tuples into lists, as in the saved records.
    return json.loads(json.dumps(differs))


def _record(run: sweep.Run, summary: Mapping, workdir: pathlib.Path) -> dict:
    lines = json_files.read_lines(workdir / run.name / metrics.METRICS)
    name = "validation/pass@1"
    curve = {line["step"]: round(line[name], 4) for line in lines if name in line}
    return {"setting": setting(run), "summary": summary, "validation": curve}


def tuning_runs(method: str, workdir: pathlib.Path) -> list[sweep.Run]:
    """The grid of one method."""
    return [
        make_run(
            f"tuning-{method}-{rate}-{questions}",
            method,
            TUNING_SEED,
            workdir,
            {"optimizer.learning_rate": rate, "step.questions": questions},
        )
        for rate in RATES
        for questions in STEP_QUESTIONS
    ]


def chosen(records: Iterable[Mapping]) -> dict[str, str]:
    """The tuned fields of the record with the best validation score at the end."""

    def score(record: Mapping) -> tuple[float, ...]:
        last = record["summary"]["last"]["validation"]
        return last["pass@1"], last["pass@4"]

    best = max(records, key=score)["setting"]
    return {f: str(best[f]) for f in ("optimizer.learning_rate", "step.questions")}


def seed_runs(
    part: str, method: str, tuned: Mapping[str, str], updates: int, workdir
) -> list[sweep.Run]:
    """A method at its setting, on every fresh seed."""
    every = str(max(10, updates // 20))
    fields = {
        **tuned,
        "train.updates": str(updates),
        "train.evaluate_every": every,
        "train.save_every": every,
    }
    return [
        make_run(f"{part}-{method}-{seed}", method, seed, workdir, fields)
        for seed in FRESH_SEEDS
    ]


def generations_to_reach(record: Mapping, target: float) -> int | None:
    """Generations until validation pass@1 first reached `target`; None if never."""
    reached = [int(s) for s, value in record["validation"].items() if value >= target]
    return min(reached) * GENERATIONS_PER_UPDATE if reached else None


def heldout(records: Sequence[Mapping], part: str) -> list[float]:
    """Held-out pass@1 of each record's "base", "last" or "best" checkpoint."""
    return [r["summary"][part]["heldout"]["pass@1"] for r in records]


def spread(values: Sequence[float]) -> str:
    """The median, and [minimum, maximum], as text."""
    return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def tables(results: Mapping[str, Mapping[str, list[dict]]]) -> str:
    """The results of tuning and of the fresh seeds, as Markdown tables."""
    tuning = [("validation pass@1 at the end, seed 0", *RATES)]
    for method, records in results["tuning"].items():
        for questions in STEP_QUESTIONS:
            cells = {
                r["setting"]["optimizer.learning_rate"]: r["summary"]["last"]
                for r in records
                if r["setting"]["step.questions"] == int(questions)
            }
            steps = 8 // int(questions)
            label = f"{_LABELS[method]}, {steps} step{'s' * (steps > 1)} per batch"
            scores = (cells.get(float(rate), {}).get("validation") for rate in RATES)
            tuning.append(
                (label, *(f"{s['pass@1']:.3f}" if s else "-" for s in scores))
            )
    fresh = [
        (
            "held-out pass@1",
            "generations",
            "base",
            "last",
            "best by validation",
            "seconds",
        )
    ]
    for part in ("fresh", "longer"):
        for method, records in results.get(part, {}).items():
            if records:
                seconds = statistics.median(r["summary"]["seconds"] for r in records)
                name = f"{_LABELS[method]}, {len(records)} seeds"
                generations = f"{records[0]['summary']['generations']:,}"
                scores = (spread(heldout(records, p)) for p in ("base", "last", "best"))
                fresh.append((name, generations, *scores, f"{seconds:.0f}"))
    return f"{markdown(tuning)}\n\n{markdown(fresh)}"


def draw(results: Mapping[str, Mapping[str, list[dict]]], path: pathlib.Path) -> None:
    """Plot validation pass@1 over generations: a thin line per seed, a thick median."""
    figure, axis = plt.subplots(figsize=(7, 3.8))
    for part, style in (("fresh", "-"), ("longer", "--")):
        for method, records in results.get(part, {}).items():
            if not records:
                continue
            curves = [r["validation"] for r in records]
            steps = [int(step) for step in curves[0]]
            at = [step * GENERATIONS_PER_UPDATE for step in steps]
            lines = [[c[k] for k in c] for c in curves]
            for line in lines:
                axis.plot(at, line, style, color=_COLORS[method], lw=0.6, alpha=0.5)
            median = [statistics.median(values) for values in zip(*lines, strict=True)]
            label = f"{_LABELS[method]}, {at[-1]:,} generations"
            axis.plot(at, median, style, color=_COLORS[method], lw=2, label=label)
    axis.set(xlabel="generations", ylabel="validation pass@1", ylim=(-0.02, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(loc="center right")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def sentences(results: Mapping[str, Mapping[str, list[dict]]]) -> str:
    """When GRPO reaches SDPO's score, and the scores of a longer SDPO run, as text."""
    lines = []
    target = statistics.median(
        r["summary"]["last"]["validation"]["pass@1"] for r in results["fresh"]["sdpo"]
    )
    for record in results.get("longer", {}).get("grpo", []):
        reached = generations_to_reach(record, target)
        limit = record["summary"]["generations"]
        when = f"after {reached:,}" if reached else f"not within {limit:,}"
        lines.append(
            f"GRPO, seed {record['setting']['seed']}: {target:.3f} on validation "
            f"(SDPO's median after 6,400 generations) {when} generations"
        )
    for record in results.get("longer", {}).get("sdpo", []):
        summary = record["summary"]
        scores = [
            f"{split} last {summary['last'][split]['pass@1']:.3f}, "
            f"best by validation {summary['best'][split]['pass@1']:.3f}"
            for split in ("validation", "heldout")
        ]
        lines.append(
            f"SDPO, seed {record['setting']['seed']}, {summary['generations']:,} "
            f"generations: {'; '.join(scores)}"
        )
    return "\n".join(lines)


def main() -> int | str:
    """Run what is missing; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    try:
        results = study(given.workdir, given.jobs)
    except sweep.Stopped as stopped:
        return f"{stopped}; the same command resumes"
    print(f"\n{tables(results)}\n\n{sentences(results)}")
    return 0


def study(workdir: pathlib.Path, jobs: int) -> dict[str, dict[str, list[dict]]]:
    """Part -> method -> records; the first part selects the settings of the others."""
    results = {}

    def train(part: str, runs: Mapping[str, list[sweep.Run]]) -> None:
        flat = [run for method in METHODS for run in runs[method]]
        records = iter(complete(flat, workdir, jobs, HERE / "results.json"))
        results[part] = {m: list(itertools.islice(records, len(runs[m]))) for m in runs}

    train("tuning", {m: tuning_runs(m, workdir) for m in METHODS})
    settings = {m: chosen(results["tuning"][m]) for m in METHODS}
    print(f"\nchosen: {settings}\n", flush=True)
    for part, updates in (("fresh", UPDATES), ("longer", LONGER_UPDATES)):
        of = lambda m, part=part, updates=updates: seed_runs(
            part, m, settings[m], updates[m], workdir
        )
        train(part, {m: of(m) for m in METHODS})
        draw(results, HERE / "study.png")
    return results


if __name__ == "__main__":
    sys.exit(main())
