"""A record of what a run's numbers depend on: its config, versions and devices.

Like `metrics`, this file does not import JAX when it is imported.
"""

import importlib.metadata
import json
import logging
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

import sdpo_jax
from sdpo_jax import json_files, metrics

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "numpy",
)


def write_once(
    folder: str | os.PathLike,
    config: Mapping[str, Any],
    mesh_shape: Mapping[str, int] | None = None,
    versions: Mapping[str, str] | None = None,
) -> None:
    """Writes config.json and versions.json into a run folder, unless they exist.

    Logs a warning where a run resumes with other versions or devices, because its
    numbers may then differ from those of an uninterrupted run.

    Args:
      folder: the run folder; made if missing.
      config: the complete config as a plain dictionary.
      mesh_shape: devices per mesh axis, like `mesh.shape`.
      versions: other things that numbers may depend on, such as the sandbox's tier.
    """
    if not metrics.is_first_process():
        return
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.json").exists():
        json_files.write_json_atomically(folder / "config.json", config)
    versions = json_files.plain({**_versions(mesh_shape), **(versions or {})})
    if not (folder / "versions.json").exists():
        json_files.write_json_atomically(folder / "versions.json", versions)
    started = json.loads((folder / "versions.json").read_text())
    for name in sorted(started.keys() | versions.keys()):
        if started.get(name) != versions.get(name):
            logging.getLogger(__name__).warning(
                "%s: the run was started with %s %s and continues with %s",
                folder,
                name,
                started.get(name),
                versions.get(name),
            )


def _versions(mesh_shape: Mapping[str, int] | None) -> dict:
    import jax

    return {
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in _PACKAGES},
        **_source(pathlib.Path(__file__).resolve().parent),
        "device_kind": jax.devices()[0].device_kind,
        "num_devices": jax.device_count(),
        "num_processes": jax.process_count(),
        "mesh": dict(mesh_shape or {}),
    }


def _source(package: pathlib.Path) -> dict[str, str | None]:
    """Which sources run: version, commit, and without one where pip took them from."""
    commit = _git_commit(package.parent)
    found = {"sdpo_jax": sdpo_jax.__version__, "git_commit": commit}
    if commit is not None:
        return found
    origin = _pip_origin(package)
    commit = origin.get("vcs_info", {}).get("commit_id")
    return found | {"git_commit": commit, "installed_from": origin.get("url")}


def _pip_origin(package: pathlib.Path) -> dict[str, Any]:
    """What pip recorded of the package's origin; empty for a package index.

    See packaging.python.org/en/latest/specifications/direct-url.
    """
    try:
        installed = importlib.metadata.distribution("sdpo_jax")
    except importlib.metadata.PackageNotFoundError:
        return {}
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    # Another copy may be installed than the one that runs.
    is_here = pathlib.Path(installed.locate_file("sdpo_jax")).resolve() == package
    return origin if is_here or origin.get("url") == package.parent.as_uri() else {}


def _git_commit(root: pathlib.Path) -> str | None:
    """The checked-out commit; None outside of a git checkout.

    It is read from git's files, without starting a process.
    """
    git = root / ".git"
    if git.is_file():
        # A worktree's .git is a file that points to its own folder.
        git = root / git.read_text().removeprefix("gitdir:").strip()
    if not (git / "HEAD").exists():
        return None
    kind, _, name = (git / "HEAD").read_text().strip().partition("ref: ")
    # A detached HEAD holds the commit itself, otherwise the name of a branch.
    if not name:
        return kind
    common = git / "commondir"
    store = git / common.read_text().strip() if common.exists() else git
    if (store / name).exists():
        return (store / name).read_text().strip()
    return _packed_commit(store / "packed-refs", name)


def _packed_commit(packed: pathlib.Path, name: str) -> str | None:
    lines = packed.read_text().splitlines() if packed.exists() else []
    commits = [line.split()[0] for line in lines if line.endswith(f" {name}")]
    return commits[0] if commits else None
