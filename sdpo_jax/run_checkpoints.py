"""The checkpoints of one run: the state, its progress, and when they are saved."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from sdpo_jax import distributed, json_files, optimizer, run_folder
from sdpo_jax.checkpoint import Checkpoints, PyTree
from sdpo_jax.interrupt import Interrupted
from sdpo_jax.learner import Learner, NotFiniteError
from sdpo_jax.questions import curriculum
from sdpo_jax.train_state import TrainState

# Which checkpoint of a run is meant: the newest, or the best by validation.
CHOICES = ("last", "best")
_VALUES = "values"


@dataclasses.dataclass
class Progress:
    """Where a run stands between two updates.

    Args:
      update: updates done.
      known: what the curriculum knows of the questions.
      values: metrics of the last update, without those of its evaluation.
      is_logged: whether the line of the last update, or of the base, is in the log.
    """

    update: int = 0
    known: curriculum.State = curriculum.State()
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    is_logged: bool = True


class RunCheckpoints:
    """Checkpoints of a run folder, named by the updates done.

    Args:
      c: the run's config.
      folder: the run folder.

    Attributes:
      saved: the update that was saved or restored last; None for a new run.
    """

    def __init__(self, c: ConfigDict, folder: pathlib.Path):
        self._config, self._folder = c, folder
        self._checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS)
        self.saved: int | None = None

    def __enter__(self) -> "RunCheckpoints":
        return self

    def __exit__(self, *_) -> None:
        self._checkpoints.close()

    def restore(self, shapes: TrainState) -> tuple[TrainState | None, Progress]:
        """The newest undamaged state and its progress; None if nothing was saved.

        Raises:
          ValueError: if the run is already longer than the config says.
        """
        # Hosts may see a shared folder at different times; the first one decides.
        if not distributed.from_first(self._checkpoints.latest() is not None):
            return None, Progress()
        state, extra, self.saved = self._checkpoints.restore(shapes)
        if self.saved > self._config.train.updates:
            raise ValueError(
                f"train.updates={self._config.train.updates}, but {self._folder} is "
                f"already after update {self.saved}; raise it or give another --workdir"
            )
        known = curriculum.restored(self._config, extra, self.saved)
        state = state.replace(
            step=optimizer.steps_at(self._config, state.step, self.saved),
            opt_state=optimizer.at_update(self._config, state.opt_state, self.saved),
        )
        return state, Progress(self.saved, known, extra.get(_VALUES, {}))

    def save(self, state: TrainState, progress: Progress) -> None:
        """Save under the number of updates done, unless that is there already.

        Args:
          state: without its base, which is the checkpoint that the run began with.
          progress: where the run stands.
        """
        # Saved a second time, without its score, it could no longer be the best.
        if self.saved == progress.update:
            return
        # The line of the update is written after its evaluation: a run that is killed
        # in between writes it when it resumes.
        extra = curriculum.saved(self._config, progress.known)
        extra |= {_VALUES: json_files.plain(progress.values)}
        extra |= {curriculum.PLACE: progress.known.place}
        self._checkpoints.save(progress.update, state.replace(base=None), extra)
        self.saved = progress.update

    def save_if_due(
        self, state: TrainState, progress: Progress, is_evaluated: bool
    ) -> None:
        """`save` every `train.save_every` updates, and before every evaluation."""
        if is_evaluated or progress.update % self._config.train.save_every == 0:
            self.save(state, progress)

    def set_score(self, progress: Progress, scores: Mapping[str, float]) -> None:
        """Give the checkpoint of an evaluated update what the best is chosen by."""
        score = scores.get(f"validation/avg@{self._config.eval.attempts}")
        if score is not None and self.saved == progress.update:
            self._checkpoints.set_score(progress.update, score)

    @contextlib.contextmanager
    def keep(self, learner: Learner, progress: Progress) -> Iterator[None]:
        """Save the last update before a signal or bad input between updates ends it.

        Every host must raise the same: saving is a step that all hosts take together.
        """
        try:
            yield
        except Interrupted as stopped:
            # A base that is not measured yet is no progress.
            if not progress.update and not progress.is_logged:
                raise
            self.save(learner.state, progress)
            where = f"stopped after update {progress.update}, saved"
            if not progress.update:
                where = "stopped before the first update was complete"
            raise Interrupted(where) from stopped
        except ValueError:
            # Before the first update there is nothing to lose but an evaluation, which
            # may be what was wrong.
            if progress.update:
                self.save(learner.state, progress)
            raise

    @contextlib.contextmanager
    def refuse_not_finite(self, learner: Learner, progress: Progress) -> Iterator[None]:
        """Turn a NotFiniteError of an update into advice, with a sound state saved.

        Raises:
          FloatingPointError: for a NotFiniteError.
        """
        try:
            yield
        except NotFiniteError as error:
            # Later the state is in the middle of a rollout batch: continuing from it
            # would take the batch's first steps twice.
            if error.optimizer_step == 0:
                self.save(learner.state, progress)
            raise FloatingPointError(
                f"update {progress.update + 1}, optimiser step "
                f"{error.optimizer_step + 1} of it, is not finite: {error}; the state "
                f"after update {self.saved or 0} is kept in {self._folder}. Lower "
                "optimizer.learning_rate or look at this update's rows in "
                "attempts.jsonl"
            ) from error

    def best(self) -> int | None:
        """The update with the best score, once every save is complete."""
        self._checkpoints.wait()
        return distributed.from_first(self._checkpoints.best())

    def student(self, shapes: PyTree, update: int) -> PyTree:
        """The student that was saved after `update`."""
        return self._checkpoints.restore_part("student", shapes, update)


def weights(
    shapes: TrainState, folder: pathlib.Path, checkpoint: str, part: str = "student"
) -> tuple[PyTree, int]:
    """A run's weights, from a process that does not train it.

    Args:
      shapes: of the state that the run saves.
      folder: the run folder.
      checkpoint: of `CHOICES`.
      part: "student" or "teacher".

    Returns:
      The weights, and the update after which they were saved.

    Raises:
      FileNotFoundError: if the run has no such checkpoint yet.
    """
    checkpoints = Checkpoints(folder / run_folder.CHECKPOINTS)
    try:
        is_best = checkpoint == "best"
        # Hosts may see a shared folder at different times; the first one decides.
        update = distributed.from_first(
            checkpoints.best() if is_best else checkpoints.latest()
        )
        if update is None:
            raise FileNotFoundError(
                f"{folder} holds no checkpoint yet" + " with a score" * is_best
            )
        return checkpoints.restore_part(part, getattr(shapes, part), update), update
    finally:
        checkpoints.close()
