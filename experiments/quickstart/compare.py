"""Compares finished runs: prints a table and draws a plot.

  python -m experiments.quickstart.compare runs/quickstart runs/quickstart_grpo

The plot is written to `comparison.png` in the first run's folder.
"""

import argparse
import json
import pathlib
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from sdpo_jax import json_files, metrics, tables

_COLUMNS = ("method", "generations", "seconds", "base", "last", "best", "best at")


def table(summaries: Sequence[dict]) -> str:
    """A table of held-out pass@1 of base, last and best checkpoint, a line per run."""
    rows = [_COLUMNS]
    for s in summaries:
        pass_at_1 = lambda part, s=s: f"{s[part]['heldout']['pass@1']:.3f}"
        rows.append(
            (
                s["method"].upper(),
                str(s["generations"]),
                f"{s['seconds']:.0f}",
                *(pass_at_1(part) for part in ("base", "last", "best")),
                f"update {s['best']['update']}",
            )
        )
    return tables.aligned(rows)


def draw(folders: Sequence[pathlib.Path], summaries: Sequence[dict], path) -> None:
    """Plot validation pass@1 and the score of training attempts over generations."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    names = ("validation/pass@1", "rollout/score")
    titles = ("validation pass@1", "score of training attempts")
    for axis, name, title in zip(axes, names, titles, strict=True):
        for folder, summary in zip(folders, summaries, strict=True):
            lines = list(json_files.read_lines(folder / metrics.METRICS))
            points = [(line["step"], line[name]) for line in lines if name in line]
            per_update = summary["generations"] / summary["updates"]
            steps, values = zip(*points, strict=True)
            generations = [step * per_update for step in steps]
            axis.plot(generations, values, label=summary["method"].upper())
        axis.set(title=title, xlabel="generations", ylim=(-0.02, 1.02))
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    """Compare the run folders that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=pathlib.Path)
    folders = parser.parse_args().folders
    summaries = [json.loads((f / "summary.json").read_text()) for f in folders]
    picture = folders[0] / "comparison.png"
    draw(folders, summaries, picture)
    print("\nHeld-out pass@1\n")
    print(table(summaries))
    print(f"\nPicture: {picture}")
    for folder in folders:
        print(f"Run folder: {folder} (metrics.jsonl, attempts.jsonl, summary.json)")


if __name__ == "__main__":
    main()
