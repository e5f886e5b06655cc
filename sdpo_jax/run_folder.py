"""Whether a folder may be trained into: new, to be resumed, finished or refused."""

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

from ml_collections import ConfigDict

from sdpo_jax import config, distributed, json_files

SUMMARY = "summary.json"


@contextlib.contextmanager
def claim(
    workdir: str | os.PathLike, c: ConfigDict, may_change: Sequence[str] = ()
) -> Iterator[dict | None]:
    """Hold a run folder while it trains; on a pod the first host does, for all.

    Args:
      workdir: the run folder, made when missing.
      c: the run's config; kept in the folder.
      may_change: dotted fields that may differ from the folder's config.

    Yields:
      The summary of a finished run, None for one to begin or to go on with.

    Raises:
      ValueError: if it is no folder, another process holds it, or its config differs.
    """
    if "://" in str(workdir):
        raise ValueError(
            f"--workdir={workdir} must be a folder; mount the bucket (for example with "
            "gcsfuse) and give the mounted path"
        )
    folder = pathlib.Path(workdir)
    with contextlib.ExitStack() as held:
        found = {}
        if distributed.is_first():
            try:
                found["summary"] = held.enter_context(_hold(folder, c, may_change))
            except ValueError as error:
                found["refusal"] = str(error)
        found = distributed.from_first(found)
        if "refusal" in found:
            raise ValueError(found["refusal"])
        yield found["summary"]


@contextlib.contextmanager
def _hold(folder: pathlib.Path, c: ConfigDict, may_change) -> Iterator[dict | None]:
    """`claim` on the host that does the writing."""
    _check_known(c, may_change)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"{folder} is being trained into by another process; wait for it or "
                "give another --workdir"
            ) from error
        changed = _check_same(folder, c, may_change)
        if changed:
            # It sums up another run; left there, it would end this one when resumed.
            (folder / SUMMARY).unlink(missing_ok=True)
            json_files.write_json_atomically(folder / "config.json", config.flat(c))
        finished = (folder / SUMMARY).exists()
        yield json.loads((folder / SUMMARY).read_text()) if finished else None


def _check_known(c: ConfigDict, may_change: Sequence[str]) -> None:
    unknown = sorted(set(may_change) - config.flat(c).keys())
    if unknown:
        near = config.nearest(unknown[0], config.flat(c))
        raise ValueError(f"--may_change={unknown[0]}: no such field; nearest: {near}")


def _check_same(folder, c: ConfigDict, may_change: Sequence[str]) -> list[str]:
    """Fields in which the folder's config differs, all of them allowed."""
    file = folder / "config.json"
    if not file.exists():
        return []
    # Through JSON, as the folder's own went: tuples become lists.
    here = json.loads(json.dumps(config.flat(c)))
    there = json.loads(file.read_text())
    fields = sorted(here.keys() | there.keys())
    changed = [f for f in fields if here.get(f) != there.get(f)]
    refused = [f for f in changed if f not in may_change]
    if refused:
        lines = "".join(
            f"\n  {f}: {there.get(f)!r} there, {here.get(f)!r} now" for f in refused
        )
        raise ValueError(
            f"{folder} holds a run with another config:{lines}\nGive another "
            f"--workdir, or --may_change={','.join(refused)} to go on regardless"
        )
    return changed
