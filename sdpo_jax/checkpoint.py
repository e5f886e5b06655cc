"""Checkpoints, saved by orbax, that survive kills and whose damage is detected.

A checkpoint is a folder named after its step. It appears by one rename, once every
file in it is on disk and listed with its digest in `manifest.txt`. Orbax alone
restores an array with a flipped bit without an error; here every file is read and
compared before any of it is used.

The folder must be on a mounted file system that all processes share. One run writes
to it at a time; others may read meanwhile, but old steps may vanish.
"""

import concurrent.futures
import json
import logging
import math
import os
import pathlib
import re
import shutil

import jax
import orbax.checkpoint as ocp

from sdpo_jax import distributed, leaves
from sdpo_jax.leaves import PyTree
from sdpo_jax.manifest import (
    MANIFEST,
    DamagedError,
    change_manifest,
    first_undamaged,
    read_manifest,
    sync,
    write_manifest,
)

_UNFINISHED = ".unfinished"
_DELETED = ".deleted"


class Checkpoints:
    """The saved steps of one run: the last few and the best one.

    On a pod every process opens it and makes the same calls in the same order.
    """

    def __init__(self, folder: str | os.PathLike, *, keep_last: int = 2):
        """Opens a folder of checkpoints, which need not exist yet.

        Args:
          folder: where the checkpoints are, on a file system all processes share.
          keep_last: newest checkpoints kept besides the best; 2 or more, so that a
            damaged one leaves another to fall back to.

        Raises:
          ValueError: if the folder is a URL or keep_last is below 2.
        """
        if "://" in str(folder):
            raise ValueError(
                f"checkpoints need a folder, got {folder}; mount the bucket "
                "(for example with gcsfuse) and set --workdir to the mounted path"
            )
        if keep_last < 2:
            raise ValueError(
                f"keep_last must be at least 2, got {keep_last}: with fewer, one "
                "damaged file loses the run"
            )
        self._folder = pathlib.Path(folder).absolute()
        self._keep_last = keep_last
        # Compressing float32 weights saves 8% of the disk for 5 times the seconds.
        handler = ocp.PyTreeCheckpointHandler(use_compression=False)
        self._orbax = ocp.AsyncCheckpointer(handler)
        self._thread = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._saving: tuple[int, concurrent.futures.Future] | None = None

    def save(
        self, step: int, state: PyTree, extra: dict, *, score: float | None = None
    ) -> None:
        """Starts saving `state`; returns once it may be donated or changed.

        Waits for the previous save first. Checkpoints of later steps are of a run that
        was resumed from before them, and are deleted once this one is complete.

        Args:
          step: updates done; names the checkpoint.
          state: any pytree of `jax.Array`, sharded or not, random keys included.
          extra: plain JSON to be restored with it (data position, seed, digests).
          score: the best checkpoint has the highest; a step without one is never the
            best.

        Raises:
          ValueError: if a leaf is no `jax.Array`, `extra` is not plain JSON, or the
            score is not finite.
          OSError: if the previous save failed.
        """
        self.wait()
        named = leaves.named(state)
        content = _content(step, named, extra, score)
        path = self._folder / f"{step:08d}{_UNFINISHED}"
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._clear()
        # Orbax refuses arrays without elements; the manifest has their shapes.
        stored = {name: leaf for name, leaf in named.items() if leaf.size}
        self._orbax.save(path, args=ocp.args.PyTreeSave(stored))
        self._saving = step, self._thread.submit(self._finish, path, content)

    def set_score(self, step: int, score: float) -> None:
        """Gives a saved step its score; waits for the save under way first.

        Raises:
          ValueError: if the score is not finite.
          OSError: if the save failed or its manifest is damaged.
        """
        _check_score(step, score)
        self.wait()
        if jax.process_index() == 0:
            change_manifest(self._paths()[step], score=score)
            # The step that was best so far may be neither best nor recent now.
            self._retire(step)

    def wait(self) -> None:
        """Blocks until the save under way is complete on disk.

        Raises:
          OSError: if it failed, naming the step and the folder.
        """
        if self._saving is None:
            return
        (step, future), self._saving = self._saving, None
        error = future.exception()
        if distributed.on_any(error is not None):
            raise OSError(
                f"saving step {step} in {self._folder} failed: "
                f"{error or 'see the other processes'}; earlier checkpoints are "
                "untouched. Check free space and permissions"
            ) from error

    def close(self) -> None:
        """Waits for the save under way and ends the background thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._orbax.close()

    def steps(self) -> list[int]:
        """Every saved step in order, damaged or not, without the one being saved."""
        return sorted(self._paths())

    def latest(self) -> int | None:
        """The newest saved step, damaged or not; None when nothing was saved."""
        return max(self._paths(), default=None)

    def best(self) -> int | None:
        """The step with the highest score, the earliest of equals; None if no score."""
        return _best(self._manifests())

    def restore(
        self, abstract_state: PyTree, step: int | None = None
    ) -> tuple[PyTree, dict, int]:
        """Restores a state, bit for bit, onto any mesh.

        Args:
          abstract_state: tree of `jax.ShapeDtypeStruct` (or arrays) with the
            sharding each leaf should get.
          step: of the checkpoint; None for the newest undamaged one. The log has one
            error that names the faults of newer ones.

        Returns:
          The state (each leaf its own buffer, free to be donated), the `extra` it
          was saved with, and its step.

        Raises:
          FileNotFoundError: if there is no such checkpoint.
          DamagedError: if `step` is damaged, or if all steps are.
          ValueError: if the state differs in a leaf, shape or dtype.
        """
        self.wait()
        step, manifest = self._choose(step)
        state = self._read(step, manifest["leaves"], abstract_state)
        return state, manifest["extra"], step

    def restore_part(
        self, part: str, abstract_part: PyTree, step: int | None = None
    ) -> PyTree:
        """Restores one subtree of a state; the rest is neither read nor allocated.

        Args:
          part: path of the subtree in the saved state, "student" or "teacher/0".
          abstract_part: that subtree, as in `restore`.
          step: of the checkpoint, usually `best()`; None for the newest undamaged one.

        Returns:
          The subtree.

        Raises:
          As `restore`.
        """
        self.wait()
        step, manifest = self._choose(step)
        return self._read(step, manifest["leaves"], abstract_part, part)

    def _paths(self) -> dict[int, pathlib.Path]:
        paths = {}
        for path in sorted(self._folder.glob("*")):
            match = re.fullmatch(rf"(\d+)({re.escape(_UNFINISHED)})?", path.name)
            # The manifest is written last: with it, only the final rename is missing.
            if match and (not match[2] or (path / MANIFEST).exists()):
                paths.setdefault(int(match[1]), path)
        return paths

    def _manifests(self) -> dict[int, dict]:
        manifests = {}
        for step, path in self._paths().items():
            try:
                manifests[step] = read_manifest(path)
            except DamagedError:
                continue
        return manifests

    def _clear(self) -> None:
        complete = set(self._paths().values())
        for path in self._folder.glob("*"):
            if path in complete and path.name.endswith(_UNFINISHED):
                self._install(path)
            elif _UNFINISHED in path.name or path.name.endswith(_DELETED):
                shutil.rmtree(path)

    def _finish(self, path: pathlib.Path, content: dict) -> None:
        self._orbax.wait_until_finished()
        if jax.process_index() != 0:
            return
        write_manifest(path, content)
        self._install(path)
        self._retire(content["step"])

    def _install(self, path: pathlib.Path) -> None:
        final = path.with_name(path.name.removesuffix(_UNFINISHED))
        if final.exists():
            final.rename(final.with_name(final.name + _DELETED))
        path.rename(final)
        sync(self._folder)
        shutil.rmtree(final.with_name(final.name + _DELETED), ignore_errors=True)

    def _retire(self, step: int) -> None:
        """Deletes steps that are neither recent nor best, and those after `step`."""
        manifests = {s: m for s, m in self._manifests().items() if s <= step}
        kept = {*sorted(manifests)[-self._keep_last :], _best(manifests)}
        for other, path in self._paths().items():
            if other not in kept:
                # A half-deleted folder must never look like a checkpoint.
                deleted = path.rename(path.with_name(path.name + _DELETED))
                shutil.rmtree(deleted)

    def _choose(self, step: int | None) -> tuple[int, dict]:
        """The step that all processes restore, verified by the first process."""
        paths, of_step = self._paths(), "" if step is None else f"of step {step} "
        if not paths or step is not None and step not in paths:
            raise FileNotFoundError(
                f"no checkpoint {of_step}in {self._folder}; it holds steps "
                f"{sorted(paths)}"
            )
        candidates = sorted(paths, reverse=True) if step is None else [step]
        chosen, faults = None, []
        if jax.process_index() == 0:
            chosen, faults = first_undamaged(candidates, paths)
        chosen = distributed.from_first(chosen)
        if chosen is None:
            raise DamagedError(
                f"no undamaged checkpoint {of_step}in {self._folder}: "
                f"{'; '.join(faults) or 'see the first process'}. Name another step, "
                "restore the folder from a backup, or start again in a new one"
            )
        if faults:
            logging.getLogger(__name__).error(
                "DAMAGED CHECKPOINT in %s: %s; going back to step %d",
                self._folder,
                "; ".join(faults),
                chosen,
            )
        return chosen, read_manifest(paths[chosen])

    def _read(
        self, step: int, saved: dict, abstract_tree: PyTree, part: str = ""
    ) -> PyTree:
        named = leaves.named(abstract_tree, part)
        of_part = leaves.below(saved, part)
        leaves.check(of_part, named, f"step {step} in {self._folder}")
        stored = {name: leaf for name, leaf in named.items() if leaf.size}
        values = self._orbax.restore(
            self._paths()[step],
            args=ocp.args.PyTreeRestore(
                item=stored,
                restore_args={n: _restore_args(leaf) for n, leaf in stored.items()},
                partial_restore=True,
            ),
        )
        # Each restored array is popped, so its copy does not double the memory of all.
        new = [
            leaves.copy(values.pop(name, None), leaf) for name, leaf in named.items()
        ]
        return jax.tree.unflatten(jax.tree.structure(abstract_tree), new)


def _restore_args(leaf: jax.ShapeDtypeStruct) -> ocp.ArrayRestoreArgs:
    return ocp.ArrayRestoreArgs(
        sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
    )


def _check_score(step: int, score: float | None) -> None:
    if score is not None and not math.isfinite(score):
        raise ValueError(
            f"the score of step {step} must be finite, got {score}; pass None for a "
            "checkpoint that was not scored"
        )


def _content(step: int, named: dict, extra: dict, score: float | None) -> dict:
    _check_score(step, score)
    if json.loads(json.dumps(extra)) != extra:
        raise ValueError(
            f"extra must be plain JSON with string keys, lists and no NaN: {extra!r} "
            f"comes back as {json.loads(json.dumps(extra))!r}"
        )
    described = leaves.described(named)
    return {"step": step, "score": score, "extra": extra, "leaves": described}


def _best(manifests: dict[int, dict]) -> int | None:
    scored = [s for s, m in sorted(manifests.items()) if m["score"] is not None]
    return max(scored, key=lambda step: manifests[step]["score"], default=None)
