"""The files of an evaluation: every answer, every question, and the means."""

import contextlib
import functools
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from ml_collections import ConfigDict

from sdpo_jax import config, distributed, feedback, json_files
from sdpo_jax.envs.base import GradedAttempt

# Of a run folder; later evaluations go to evaluation_2 and so on.
FOLDER = "evaluation"


def new_folder(workdir: str | os.PathLike) -> pathlib.Path:
    """Where the next evaluation is written; an earlier one is never written over."""
    names = itertools.chain(
        [FOLDER], (f"{FOLDER}_{number}" for number in itertools.count(2))
    )
    folders = (pathlib.Path(workdir, name) for name in names)
    free = next(folder for folder in folders if not folder.exists())
    # Another host may look when the first one has made the folder already.
    return pathlib.Path(distributed.from_first(str(free)))


class Files:
    """The files of an evaluation, written by the first host as the answers come.

    `<split>.jsonl` has a line per answer, `<split>_questions.jsonl` one per question,
    and `results.json` what was evaluated and the means. Each line names the update.

    Args:
      path: the folder; None to write nothing.
      update: after which the weights were saved; 0 for the base model.
    """

    def __init__(self, path: str | os.PathLike | None, update: int):
        self._update = update
        self._path = None
        if path is not None and distributed.is_first():
            self._path = pathlib.Path(path)
            # Refused if another evaluation has made it meanwhile.
            self._path.mkdir(parents=True)
        self._files = contextlib.ExitStack()
        self._file_of = functools.cache(self._open)

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *_) -> None:
        self._files.close()

    def write(self, split: str, graded: GradedAttempt) -> None:
        """Write one answer."""
        measured = dict(graded.verdict.measurements) if graded.verdict else {}
        self._write(split, feedback.record(graded) | {"measurements": measured})

    def write_questions(self, split: str, questions: Iterable[Mapping]) -> None:
        """Write the numbers of every question."""
        for numbers in questions:
            self._write(f"{split}_questions", numbers)

    def write_results(
        self, c: ConfigDict, found: Mapping[str, Any], checkpoint: str | None
    ) -> None:
        """Write what was evaluated, with which config, and every mean."""
        content = {
            "model": c.model.path,
            "checkpoint": checkpoint,
            "update": self._update,
            "results": found,
            "config": config.flat(c),
        }
        if self._path:
            json_files.write_json_atomically(self._path / "results.json", content)

    def _write(self, name: str, line: Mapping[str, Any]) -> None:
        if self._path:
            file = self._file_of(name)
            text = json.dumps(json_files.plain({"update": self._update, **line}))
            file.write(text + "\n")
            file.flush()

    def _open(self, name: str) -> TextIO:
        return self._files.enter_context((self._path / f"{name}.jsonl").open("w"))
