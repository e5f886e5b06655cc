"""Exports a run's weights as a checkpoint for transformers and inference engines.

python -m sdpo_jax.main --job=export --workdir=runs/mine
"""

import logging
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sdpo_jax import config, distributed, inputs, run_checkpoints, screen, train_state
from sdpo_jax.model import huggingface, huggingface_export
from sdpo_jax.model import lora as adapters
from sdpo_jax.model.change import Change

_log = logging.getLogger(__name__)


# Keyword of `run` -> its allowed values.
_CHOICES = {
    "weights": ("student", "teacher"),
    "checkpoint": run_checkpoints.CHOICES,
    "dtype": ("bfloat16", "float32"),
    "lora": ("merged", "peft"),
}


def run(
    c: ConfigDict,
    workdir: str | os.PathLike | None = None,
    *,
    path: str | os.PathLike | None = None,
    weights: str = "student",
    checkpoint: str = "last",
    dtype: str = "bfloat16",
    lora: str = "merged",
) -> dict[str, Any]:
    """Write a run's weights, with the tokenizer of the base model.

    On the command line the keywords are flags: `--checkpoint`, `--export_path` and so
    on.

    Args:
      c: the run's config.
      workdir: the run folder; None exports the base model `c.model.path` itself.
      path: the folder to create; None for `export` in the run folder.
      weights: "student" or "teacher".
      checkpoint: "last", or "best" by validation.
      dtype: "bfloat16" or "float32".
      lora: "merged" into the base weights, or only the adapters in PEFT's format:
        "peft".

    Returns:
      {"path", "update" of the checkpoint, "weights", "dtype", "parameters"}; for the
      whole weights of a run also "changed", those that training changed, and
      "changed_in_files", those that still differ from the base model in `dtype`.

    Raises:
      ValueError: if the config is invalid, the folder to write exists, the run does
        not save these weights, or its base model was replaced since it began.
      FileNotFoundError: if the run has no checkpoint yet.
    """
    screen.show_log()
    config.validate(c)
    choices = {
        "weights": weights,
        "checkpoint": checkpoint,
        "dtype": dtype,
        "lora": lora,
    }
    _check(c, workdir, choices)
    target = _target(workdir, path)
    huggingface_export.check_target(target, dtype)
    mesh = distributed.make_mesh(c.mesh)
    arch = huggingface.architecture(c.model.path)
    read = lambda dtype: huggingface.load(c.model.path, arch, mesh, np.dtype(dtype))
    if workdir is None:
        params, update = read(dtype), 0
    else:
        inputs.check_model(c, workdir)
        state = train_state.abstract_state(c, arch, mesh)
        params, update = _restore(c, state, pathlib.Path(workdir), weights, checkpoint)
    _log.info("%s: writing the %s after update %d", target, weights, update)
    settings = {"source": c.model.path, "dtype": dtype}
    change = None
    with jax.set_mesh(mesh):
        if lora == "peft":
            huggingface_export.save_adapters(target, arch, params, **settings)
        else:
            if workdir is not None and c.lora.rank:
                params = jax.jit(adapters.merge)(read("float32"), params)
            change = huggingface_export.save(
                target, arch, params, **settings, compare=workdir is not None
            )
    return {
        "path": str(target),
        "update": update,
        "weights": weights,
        "dtype": dtype,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        **(_told(change) if change else {}),
    }


def _told(change: Change) -> dict[str, int]:
    """The counts for the result; logs them, loudly where most of a change is lost."""
    if change.mostly_lost:
        _log.warning(
            "%s: most of what training changed is rounded away, and these files are "
            "close to the base model; export with --export_dtype=float32, and load "
            "the files in float32",
            change.summary,
        )
    else:
        _log.info(change.summary)
    return {"changed": change.changed, "changed_in_files": change.kept}


def _check(
    c: ConfigDict, workdir: str | os.PathLike | None, choices: Mapping[str, str]
) -> None:
    """Refuse unknown choices, and weights that the run does not have."""
    for name, value in choices.items():
        if value not in _CHOICES[name]:
            flag = name if name == "checkpoint" else f"export_{name}"
            raise ValueError(
                f"--{flag}={value}: must be one of {' | '.join(_CHOICES[name])}"
            )
    weights, lora, checkpoint = (choices[n] for n in ("weights", "lora", "checkpoint"))
    if workdir is None and (weights, lora, checkpoint) != ("student", "merged", "last"):
        raise ValueError(
            f"--export_weights={weights}, --export_lora={lora}, "
            f"--checkpoint={checkpoint}: only a run has these; give its --workdir"
        )
    if lora == "peft" and not c.lora.rank:
        raise ValueError("--export_lora=peft: lora.rank=0 trains no adapters to export")


def _target(
    workdir: str | os.PathLike | None, path: str | os.PathLike | None
) -> pathlib.Path:
    """The folder to write."""
    if path:
        return pathlib.Path(path)
    if workdir is None:
        raise ValueError("--export_path is missing: give it, or a run's --workdir")
    return pathlib.Path(workdir) / "export"


def _restore(
    c: ConfigDict, state: Any, folder: pathlib.Path, weights: str, checkpoint: str
) -> tuple[Any, int]:
    """The requested weights, and the update after which they were saved."""
    if getattr(state, weights) is None:
        raise ValueError(
            f"--export_weights={weights}: a run with method={c.method} and "
            f"teacher.mode={c.teacher.mode} keeps no such weights; export the student"
        )
    return run_checkpoints.weights(state, folder, checkpoint, part=weights)
