import importlib.metadata
import json
import logging
import math
import re

import jax
import numpy as np
import pytest

import sdpo_jax
from sdpo_jax import provenance


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def test_the_config_and_versions_are_written_once(folder, caplog):
    with caplog.at_level(logging.WARNING):
        provenance.write_once(
            folder, {"a": {"b": (1, math.inf)}}, {"data": 4, "model": 2}
        )
        provenance.write_once(folder, {"a": "changed"}, {"data": 4, "model": 2})

    config = json.loads((folder / "config.json").read_text())
    versions = json.loads((folder / "versions.json").read_text())
    assert config == {"a": {"b": [1, "Infinity"]}}
    assert versions["jax"] == jax.__version__ and versions["numpy"] == np.__version__
    assert (versions["device_kind"], versions["num_devices"]) == ("cpu", 8)
    assert versions["mesh"] == {"data": 4, "model": 2}
    assert caplog.records == []


def test_resuming_on_other_devices_is_said_aloud(folder, caplog):
    provenance.write_once(folder, {}, {"data": 8})

    with caplog.at_level(logging.WARNING):
        provenance.write_once(folder, {}, {"data": 4})

    (record,) = caplog.records
    assert "started with mesh {'data': 8} and continues with {'data': 4}" in (
        record.getMessage()
    )


def test_resuming_in_another_sandbox_is_said_aloud(folder, caplog):
    provenance.write_once(folder, {}, versions={"sandbox_tier": "A"})

    with caplog.at_level(logging.WARNING):
        provenance.write_once(folder, {}, versions={"sandbox_tier": "C"})

    (record,) = caplog.records
    assert "sandbox_tier A and continues with C" in record.getMessage()


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("kind", ["loose", "packed", "detached", "worktree", "none"])
def test_the_commit_is_found_without_running_git(tmp_path, kind):
    root, git = tmp_path / "root", tmp_path / "root" / ".git"
    git.mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    if kind in ("loose", "worktree"):
        (git / "refs/heads").mkdir(parents=True)
        (git / "refs/heads/main").write_text(COMMIT + "\n")
    if kind == "packed":
        (git / "packed-refs").write_text(f"# pack\n{COMMIT} refs/heads/main\n")
    if kind == "detached":
        (git / "HEAD").write_text(COMMIT + "\n")
    if kind == "worktree":
        (git / "worktrees/two").mkdir(parents=True)
        (git / "worktrees/two/HEAD").write_text("ref: refs/heads/main\n")
        (git / "worktrees/two/commondir").write_text("../..\n")
        root = tmp_path / "two"
        root.mkdir()
        (root / ".git").write_text(f"gitdir: {git / 'worktrees/two'}\n")

    found = provenance._git_commit(root)

    assert found == (None if kind == "none" else COMMIT)


def installed(monkeypatch, folder, **origin):
    """A package in `folder` as pip leaves it, with its record of where it came from."""
    package = folder / "sdpo_jax"
    package.mkdir(parents=True)
    information = folder / "sdpo_jax-9.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Name: sdpo_jax\nVersion: 9\n")
    if origin:
        (information / "direct_url.json").write_text(json.dumps(origin))
    found = importlib.metadata.PathDistribution(information)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: found)
    return package


def test_installed_package_is_traced_to_its_repository(monkeypatch, tmp_path):
    url = "https://example.org/sdpo_jax.git"
    vcs = {"vcs": "git", "commit_id": COMMIT}

    package = installed(monkeypatch, tmp_path, url=url, vcs_info=vcs)

    assert provenance._source(package) == {
        "sdpo_jax": sdpo_jax.__version__,
        "git_commit": COMMIT,
        "installed_from": url,
    }


def test_package_from_an_index_or_a_folder_is_traced_too(monkeypatch, tmp_path):
    version = {"sdpo_jax": sdpo_jax.__version__, "git_commit": None}
    folder = tmp_path / "sources"
    (folder / "sdpo_jax").mkdir(parents=True)

    package = installed(monkeypatch, tmp_path / "index")
    assert provenance._source(package) == version | {"installed_from": None}

    editable = {"url": folder.as_uri(), "dir_info": {"editable": True}}
    package = installed(monkeypatch, tmp_path / "editable", **editable)
    from_folder = version | {"installed_from": folder.as_uri()}
    assert provenance._source(folder / "sdpo_jax") == from_folder
    # Another copy than the one that pip knows.
    copied = provenance._source(tmp_path / "copy" / "sdpo_jax")
    assert copied == version | {"installed_from": None}


def test_versions_name_this_package(folder):
    provenance.write_once(folder, {})

    versions = json.loads((folder / "versions.json").read_text())
    assert versions["sdpo_jax"] == sdpo_jax.__version__
    assert re.fullmatch("None|[0-9a-f]{40}", str(versions["git_commit"]))


def test_only_the_first_process_writes(folder, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)

    provenance.write_once(folder, {"a": 1})

    assert not folder.exists()
