"""A run's weights as a checkpoint for transformers and inference engines.

python -m sdpo_jax.main --job=export --workdir=runs/mine
"""

import logging
import os
import pathlib
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from sdpo_jax import config, distributed, train_state
from sdpo_jax.checkpoint import Checkpoints
from sdpo_jax.model import huggingface, huggingface_export, lora
from sdpo_jax.model.families import Architecture

_log = logging.getLogger(__name__)


def run(c: ConfigDict, workdir: str | os.PathLike | None = None) -> dict[str, Any]:
    """Write the weights that `config.export` names, with the tokenizer of the base.

    Args:
      c: the run's config.
      workdir: the run folder; None exports the config's own checkpoint as it is.

    Returns:
      {"path", "update" of the checkpoint, "weights", "dtype", "parameters"}.

    Raises:
      ValueError: if the config cannot work, the folder to write exists, or the run
        keeps no weights of that name.
      FileNotFoundError: if the run has saved nothing yet.
    """
    config.validate(c)
    target = path(c, workdir)
    huggingface_export.check_target(target, c.export.dtype)
    if workdir is None and (c.export.weights, c.export.lora) != ("student", "merged"):
        raise ValueError(
            f"export.weights={c.export.weights}, export.lora={c.export.lora}: only a "
            "run has these; give its --workdir"
        )
    distributed.start(c.mesh.multi_host)
    mesh = distributed.make_mesh(c.mesh)
    arch = huggingface.architecture(c.model.path)
    read = lambda dtype: huggingface.load(c.model.path, arch, mesh, np.dtype(dtype))
    if workdir is None:
        params, update = read(c.export.dtype), 0
    else:
        params, update = _restore(c, arch, mesh, pathlib.Path(workdir))
    _log.info("%s: writing the %s after update %d", target, c.export.weights, update)
    settings = {"source": c.model.path, "dtype": c.export.dtype}
    with jax.set_mesh(mesh):
        if c.export.lora == "peft":
            huggingface_export.save_adapters(target, arch, params, **settings)
        else:
            if workdir is not None and c.lora.rank:
                params = jax.jit(lora.merge)(read("float32"), params)
            huggingface_export.save(target, arch, params, **settings)
    return {
        "path": str(target),
        "update": update,
        "weights": c.export.weights,
        "dtype": c.export.dtype,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    }


def path(c: ConfigDict, workdir: str | os.PathLike | None) -> pathlib.Path:
    """The folder that is written.

    Raises:
      ValueError: if neither config nor run folder says where.
    """
    if c.export.path:
        return pathlib.Path(c.export.path)
    if workdir is None:
        raise ValueError("export.path is empty: give it, or a run's --workdir")
    return pathlib.Path(workdir) / "export"


def _restore(
    c: ConfigDict, arch: Architecture, mesh: Mesh, folder: pathlib.Path
) -> tuple[Any, int]:
    """The weights asked for, and the update that they were saved after."""
    weights = getattr(train_state.abstract_state(c, arch, mesh), c.export.weights)
    if weights is None:
        raise ValueError(
            f"export.weights={c.export.weights}: a run with method={c.method} and "
            f"teacher.mode={c.teacher.mode} keeps no such weights; export the student"
        )
    checkpoints = Checkpoints(folder / "checkpoints")
    try:
        best = c.export.checkpoint == "best"
        update = checkpoints.best() if best else checkpoints.latest()
        if update is None:
            raise FileNotFoundError(f"{folder} holds no checkpoint to export yet")
        return checkpoints.restore_part(c.export.weights, weights, update), update
    finally:
        checkpoints.close()
