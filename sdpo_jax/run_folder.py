"""Checks and locks a run folder: new, to be resumed, finished, or refused."""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from ml_collections import ConfigDict

from sdpo_jax import config, distributed, json_files

SUMMARY = "summary.json"
CHECKPOINTS = "checkpoints"
_INPUTS = "inputs.json"
_log = logging.getLogger(__name__)

# Config field -> what it names -> digest or revision.
Contents = Mapping[str, Mapping[str, str]]


@contextlib.contextmanager
def claim(
    workdir: str | os.PathLike,
    c: ConfigDict,
    may_change: Sequence[str] = (),
    contents: Callable[[], Contents] = lambda: {},
) -> Iterator[dict | None]:
    """Lock a run folder while it trains; on a pod the first host does so for all.

    Args:
      workdir: the run folder, created if missing.
      c: the run's config, saved in the folder.
      may_change: dotted fields that may differ from the folder's config, or name
        another content than before.
      contents: what fields of the config name, with digests; called on the first host,
        for a run that is not finished.

    Yields:
      The summary of a finished run; None for a new or unfinished one.

    Raises:
      ValueError: if it is no folder, another process has locked it, or its config or
        the content that this names differs.
    """
    if "://" in str(workdir):
        raise ValueError(
            f"--workdir={workdir} must be a folder; mount the bucket (for example with "
            "gcsfuse) and give the mounted path"
        )
    folder = pathlib.Path(workdir)
    with contextlib.ExitStack() as lock:
        outcome = {}
        if distributed.is_first():
            try:
                outcome["summary"] = lock.enter_context(
                    _lock(folder, c, may_change, contents)
                )
            except ValueError as error:
                outcome["refusal"] = str(error)
        # Every host must learn of a refusal, or the others would wait forever.
        outcome = distributed.from_first(outcome)
        if "refusal" in outcome:
            raise ValueError(outcome["refusal"])
        yield outcome["summary"]


@contextlib.contextmanager
def _lock(
    folder: pathlib.Path, c: ConfigDict, may_change, contents
) -> Iterator[dict | None]:
    """`claim` on the host that writes."""
    _check_known(c, may_change)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{folder} is in use by another process; wait for it or give another "
                "--workdir"
            ) from error
        changed = _check_same(folder, c, may_change)
        is_finished = (folder / SUMMARY).exists() and not changed
        if not is_finished:
            now = _check_contents(folder, contents(), changed, may_change)
            json_files.write_json_atomically(folder / _INPUTS, now)
        if changed:
            # The summary is of the old config; with it, resuming would do nothing.
            (folder / SUMMARY).unlink(missing_ok=True)
            json_files.write_json_atomically(folder / "config.json", config.flat(c))
        yield json.loads((folder / SUMMARY).read_text()) if is_finished else None


def _check_known(c: ConfigDict, may_change: Sequence[str]) -> None:
    unknown = sorted(set(may_change) - config.flat(c).keys())
    if unknown:
        near = config.nearest(unknown[0], config.flat(c))
        raise ValueError(f"--may_change={unknown[0]}: no such field; nearest: {near}")


def _check_same(folder, c: ConfigDict, may_change: Sequence[str]) -> list[str]:
    """Fields that differ from the folder's config; raises ValueError unless allowed."""
    file = folder / "config.json"
    if not file.exists():
        return []
    # A round trip through JSON turns tuples into lists, as in the saved config.
    new = json.loads(json.dumps(config.flat(c)))
    saved = json.loads(file.read_text())
    if unknown := sorted(new.keys() ^ saved.keys()):
        raise ValueError(
            f"{folder} was written by another version of sdpo_jax, whose config fields "
            f"differ: {', '.join(unknown)}; give another --workdir"
        )
    fields = sorted(new)
    changed = [f for f in fields if new[f] != saved[f]]
    refused = [f for f in changed if f not in may_change]
    if refused:
        lines = "".join(f"\n  {f}: {saved[f]!r} saved, {new[f]!r} now" for f in refused)
        raise ValueError(
            f"{folder} holds a run with another config:{lines}\nGive another "
            f"--workdir, or --may_change={','.join(refused)} to continue anyway"
        )
    return changed


def _check_contents(
    folder: pathlib.Path, now: Contents, changed: Sequence[str], may_change
) -> Contents:
    """The content that the run goes on with; raises ValueError unless it is allowed.

    Args:
      folder: the run folder.
      now: what fields name now.
      changed: fields that have another value, and so may name another content.
      may_change: fields that the caller allows to.
    """
    # Without a checkpoint the run begins anew, with whatever is there now.
    if not any((folder / CHECKPOINTS).glob("*")):
        return now
    if not (folder / _INPUTS).exists():
        _log.warning("%s has no %s: content is compared from now on", folder, _INPUTS)
        return now
    saved = json.loads((folder / _INPUTS).read_text())
    saved = {field: names for field, names in saved.items() if field not in changed}
    lines = _differences(saved, now)
    if refused := [field for field in lines if field not in may_change]:
        raise ValueError(
            f"{folder} holds a run that began with another content:"
            f"{''.join(lines[f] for f in refused)}\nRestore it, give another "
            f"--workdir, or --may_change={','.join(refused)} to continue with what is "
            "there now"
        )
    for changes in lines.values():
        _log.warning("%s continues with another content:%s", folder, changes)
    return saved | now


def changed_contents(folder: str | os.PathLike, now: Contents) -> dict[str, str]:
    """Fields whose content is not what the run recorded, with a line for each name."""
    file = pathlib.Path(folder) / _INPUTS
    return _differences(json.loads(file.read_text()), now) if file.exists() else {}


def _differences(saved: Contents, now: Contents) -> dict[str, str]:
    """Field -> a line for each name with another content, for fields that have any."""
    lines = {}
    # A revision is not known without a network: then there is nothing to compare.
    for field in sorted(saved.keys() & now):
        for name in sorted(saved[field].keys() | now[field]):
            before, after = (x[field].get(name, "absent") for x in (saved, now))
            if before != after:
                line = f"\n  {field}: {name}: {before:.23} recorded, {after:.23} now"
                lines[field] = lines.get(field, "") + line
    return lines
