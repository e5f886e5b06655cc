"""The summary of a finished run: its base, last and best checkpoint."""

import os
import pathlib
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from sdpo_jax import distributed, evaluate, json_files, metrics, run_folder, tables
from sdpo_jax.components import Components
from sdpo_jax.learner import Learner, trained_shapes
from sdpo_jax.run_checkpoints import RunCheckpoints
from sdpo_jax.train_state import decoder_params


def write(
    components: Components,
    folder: pathlib.Path,
    learner: Learner,
    checkpoints: RunCheckpoints,
    check_stop: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Evaluate the best checkpoint, write `summary.json` and return its content."""
    best, heldout = checkpoints.best(), None
    if best != checkpoints.saved:
        student = checkpoints.student(trained_shapes(*components.model).student, best)
        policy = decoder_params(learner.state.base, student)
        label = f"best, after update {best}"
        splits = ("heldout",)
        values = evaluate.on_splits(components, policy, splits, label, check_stop)
        heldout = of_split(values, "heldout")
    content = None
    if distributed.is_first():
        content = of_run(components.config, folder, best, heldout)
        json_files.write_json_atomically(folder / run_folder.SUMMARY, content)
    return distributed.from_first(content)


def of_run(
    c: ConfigDict,
    folder: pathlib.Path,
    best: int,
    heldout_of_best: dict[str, float] | None,
) -> dict[str, Any]:
    """The content of `summary.json`, from the log of the run.

    Args:
      c: the run's config.
      folder: the run folder; its log is complete.
      best: the update whose checkpoint is best by validation.
      heldout_of_best: its measurement on held-out questions; None where the best is
        the last, whose measurement the log holds.
    """
    lines = json_files.read_lines(folder / metrics.METRICS)
    by_step = {line["step"]: line for line in lines}
    timings = json_files.read_lines(folder / metrics.TIMINGS)
    seconds = sum(v for t in timings for k, v in t.items() if k != "step")
    splits = lambda line: {split: of_split(line, split) for split in evaluate.HELD_BACK}
    updates = max(by_step)
    # A line each; batches may have had other sizes than the config says today.
    with (folder / metrics.ATTEMPTS).open("rb") as attempts:
        generations = sum(1 for _ in attempts)
    last = splits(by_step[updates])
    return {
        "method": c.method,
        "updates": updates,
        "generations": generations,
        "seconds": round(seconds, 1),
        "base": splits(by_step[0]),
        "last": last,
        "best": {
            "update": best,
            "validation": of_split(by_step[best], "validation"),
            "heldout": heldout_of_best or last["heldout"],
        },
    }


def of_split(line: dict[str, Any], split: str) -> dict[str, float]:
    """The metrics of one split, without its name in front."""
    prefix = f"{split}/"
    return {k.removeprefix(prefix): v for k, v in line.items() if k.startswith(prefix)}


def describe(content: Mapping[str, Any], folder: str | os.PathLike) -> str:
    """The end of a run for a person: a short table, the folder, and what comes next.

    Args:
      content: of `summary.json`.
      folder: the run folder.
    """
    updates, best = content["updates"], content["best"]
    parts = {
        "base": content["base"],
        f"last, after update {updates}": content["last"],
        f"best, after update {best['update']}": best,
    }
    # Pass@1 comes first in the config's defaults; a split without questions is absent.
    measured = next((of_it for of_it in content["last"].values() if of_it), {})
    name = next((n for n in measured if n.startswith("pass@")), None)
    name = name or next(iter(measured), "score")
    score = lambda part, split: (part.get(split) or {}).get(name)
    rows = [
        (label, *(tables.number(score(part, split)) for split in evaluate.HELD_BACK))
        for label, part in parts.items()
    ]
    command = f"python -m sdpo_jax.main --workdir={shlex.quote(str(folder))}"
    return "\n".join(
        [
            f"{folder} is finished: {content['method']}, {updates} updates, "
            f"{content['generations']:,} generations, {content['seconds']:.0f} s",
            "",
            tables.aligned([(name, "validation", "held-out"), *rows]),
            "",
            f"Every number is in {folder}/summary.json, every attempt in "
            f"{folder}/{metrics.ATTEMPTS}. Next:",
            "",
            f"  {command} --job=evaluate --checkpoint=best",
            f"  {command} --job=export --checkpoint=best",
        ]
    )
