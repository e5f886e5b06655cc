"""Sends the numbers of a run to wandb. Whatever that does, the run goes on."""

import json
import logging
import os
import pathlib
import queue
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from sdpo_jax import json_files

# The id of the run at wandb, in the run folder: folders elsewhere have the same name.
ID = "wandb.json"
# Seconds that the end of a run waits for what is still to be sent.
_END_S = 10.0
_log = logging.getLogger(__name__)


def check(project: str | None) -> None:
    """Refuse a wandb project where wandb is not installed, before a run is built.

    Raises:
      ValueError: says how to install it.
    """
    if not project:
        return
    try:
        import wandb  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"--wandb_project={project}: wandb is not installed; pip install wandb, or "
            "leave the flag out"
        ) from error


class Tracker:
    """A run at wandb, to which a thread of its own sends what is logged.

    A call that raises or hangs costs its numbers at most: the first failure is logged.

    Args:
      project: at wandb.
      folder: the run folder; a run that resumes there continues the same run at wandb.
      config: every field of the run's config.
    """

    def __init__(self, project: str, folder: pathlib.Path, config: Mapping[str, Any]):
        self._lines: queue.SimpleQueue[tuple[dict, int] | None] = queue.SimpleQueue()
        self._has_failed = False
        start = lambda: _start(project, folder, config)
        # A daemon: the process can leave while wandb waits for its network.
        self._thread = threading.Thread(target=self._send, args=[start], daemon=True)
        self._thread.start()

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Sends the numbers of a step, some time."""
        self._lines.put((dict(numbers), step))

    def close(self) -> None:
        """Ends the run at wandb; gives up after ten seconds."""
        self._lines.put(None)
        self._thread.join(_END_S)
        if self._thread.is_alive():
            self._warn(f"is still busy after {_END_S:g} seconds")

    def _send(self, start: Callable[[], Any]) -> None:
        run = self._call(start)
        if run is None:
            return
        while (line := self._lines.get()) is not None:
            numbers, step = line
            self._call(run.log, numbers, step=step)
        self._call(run.finish)

    def _call(self, function: Callable, *args, **kwargs) -> Any:
        try:
            return function(*args, **kwargs)
        # The library is not ours; some of its errors exit.
        except (Exception, SystemExit) as error:
            self._warn(f"failed ({type(error).__name__}: {error})")
            return None

    def _warn(self, what: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            _log.warning("wandb %s; the run goes on, metrics.jsonl has it all", what)


def _start(project: str, folder: pathlib.Path, config: Mapping[str, Any]) -> Any:
    import wandb  # Optional.

    # Its default of 90 s also holds up the exit of a process that has no network.
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "20")
    if not (folder / ID).exists():
        json_files.write_json_atomically(folder / ID, {"id": uuid.uuid4().hex})
    return wandb.init(
        project=project,
        id=json.loads((folder / ID).read_text())["id"],
        name=folder.name,
        dir=folder,
        config=json_files.plain(config),
        resume="allow",
    )
