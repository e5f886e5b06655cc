"""What a run reads that its config only names: digests and revisions of its content."""

import contextlib
import importlib.util
import json
import os
import pathlib

from ml_collections import ConfigDict

from sdpo_jax import digests, json_files, run_folder
from sdpo_jax.config import SPLITS
from sdpo_jax.envs.base import Environment
from sdpo_jax.model import huggingface
from sdpo_jax.questions import sources

_MODEL = "model.path"
# What a run reads of a checkpoint: weights, settings, tokenizer and chat template.
_READ = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")


def contents(
    c: ConfigDict, environment: Environment | None = None
) -> run_folder.Contents:
    """The content of the checkpoint, questions and grader that a config names.

    What cannot be read is left out: whoever needs it raises an error with advice.

    Args:
      c: the run's config.
      environment: the caller's own; its questions count instead of `config.env`'s.
    """
    readers = {_MODEL: lambda: _checkpoint(c.model.path)}
    if environment is not None:
        readers |= {f"env.{s}": lambda s=s: _asked(environment, s) for s in SPLITS}
    else:
        readers |= {
            field: lambda field=field, text=c.env[split]: sources.contents(text, field)
            for split, field in ((s, f"env.{s}") for s in SPLITS)
        }
        readers["env.function.grade"] = lambda: _module(c.env.function.grade)
    found = {}
    for field, read in readers.items():
        # The user's modules and environment are code, which may raise anything.
        with contextlib.suppress(Exception):
            found[field] = read()
    return {field: names for field, names in found.items() if names}


def check_model(c: ConfigDict, folder: str | os.PathLike) -> None:
    """Refuse a base model that is not the one which the run in `folder` began with.

    Raises:
      ValueError: names the files that differ.
    """
    now = {_MODEL: _checkpoint(c.model.path)}
    if lines := run_folder.changed_contents(folder, now):
        raise ValueError(
            f"{folder} holds a run with another content:{lines[_MODEL]}\nRestore it"
        )


def _checkpoint(path: str) -> dict[str, str]:
    folder = huggingface.directory_of(path, "config.json")
    # The hub's cache names a folder after its commit, which stands for all its files.
    if folder.parent.name == "snapshots":
        return {"revision": folder.name}
    return digests.of_files(folder, [f for p in _READ for f in folder.glob(p)])


def _asked(environment: Environment, split: str) -> dict[str, str]:
    """The questions of an environment, as far as they are text or numbers."""
    asked = [
        [q.uid, q.system, q.prompt, json_files.plain(q.data)]
        for q in environment.questions(split)
    ]
    name_of_type = lambda value: type(value).__qualname__
    text = json.dumps(asked, sort_keys=True, default=name_of_type)
    return {"its questions": digests.of_text(text)}


def _module(name: str) -> dict[str, str]:
    """The source of a grader: its file, or all files of its package."""
    spec = importlib.util.find_spec(name.partition(":")[0]) if name else None
    if spec is None or not spec.has_location:
        return {}
    file = pathlib.Path(spec.origin)
    inside = file.parent.rglob("*.py") if spec.submodule_search_locations else [file]
    return digests.of_files(file.parent, inside)
