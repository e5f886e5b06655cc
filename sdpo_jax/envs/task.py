"""What a name in `env.name` stands for, and what tasks make of the config's `env`."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from sdpo_jax.config import SPLITS
from sdpo_jax.envs.base import Environment
from sdpo_jax.envs.single_turn import Grade, SingleTurn
from sdpo_jax.questions import rows, sources
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Limits


@dataclasses.dataclass(frozen=True)
class Task:
    """One line of `envs.TASKS`.

    Args:
      environment: makes it from the config's `env`; raises ValueError if a source of
        questions is malformed.
      graders: what `env.grader` may be.
      check: raises ValueError if the task's own options cannot work.
    """

    environment: Callable[[ConfigDict], Environment]
    graders: tuple[str, ...] = ("fixed",)
    check: Callable[[ConfigDict], None] = lambda env: None


def answered(
    data: Callable[[rows.Row, str], Mapping[str, Any]], **graders: Grade
) -> Task:
    """A task whose questions are rows and whose graders read the response alone.

    Args:
      data: what a question is graded with, from its row and where that stands.
      graders: what `env.grader` may be -> the function that grades.
    """
    make = lambda env: SingleTurn(
        rows.load_splits(files(env), data), graders[env.grader]
    )
    return Task(make, tuple(graders))


def files(env: ConfigDict) -> dict[str, str]:
    """Split -> its file of questions; datasets are read when the file is."""
    return {split: sources.of(env[split], f"env.{split}") for split in SPLITS}


def sandboxes(env: ConfigDict) -> Callable[..., Sandbox]:
    """`Sandbox` with the limits and the tier that the config names."""
    box = env.sandbox
    limits = Limits(cpu_s=box.time_limit_s, memory_mb=box.memory_limit_mb)
    return functools.partial(Sandbox, limits, box.tier)
