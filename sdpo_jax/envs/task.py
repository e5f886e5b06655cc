"""The type of a task, and helpers that build its parts from the config's `env`."""

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
    """An entry of `envs.TASKS`: how the environment is built and its options checked.

    Args:
      environment: builds the environment from the config's `env`; raises ValueError
        if a source of questions is malformed.
      graders: values of `env.grader` that it has: "fixed", "official" or both.
      check: raises ValueError if the task's own options are invalid.
    """

    environment: Callable[[ConfigDict], Environment]
    graders: tuple[str, ...] = ("fixed",)
    check: Callable[[ConfigDict], None] = lambda env: None


def answered(
    data: Callable[[rows.Row, str], Mapping[str, Any]], **graders: Grade
) -> Task:
    """A task whose questions are rows and whose graders need no sandbox.

    Args:
      data: (row, its file and number) -> the data that a question is graded with.
      graders: value of `env.grader` -> the function that grades.
    """
    make = lambda env: SingleTurn(
        rows.load_splits(files(env), data),
        graders[env.grader],
        reads_reasoning=env.grader == "official",
    )
    return Task(make, tuple(graders))


def files(env: ConfigDict) -> dict[str, str]:
    """Split -> its source of questions, empty without any; read by `load_splits`."""
    return {
        split: env[split] and sources.of(env[split], f"env.{split}") for split in SPLITS
    }


def sandboxes(env: ConfigDict) -> Callable[..., Sandbox]:
    """`Sandbox` with the limits and the tier of the config already applied."""
    box = env.sandbox
    limits = Limits(cpu_s=box.time_limit_s, memory_mb=box.memory_limit_mb)
    return functools.partial(Sandbox, limits, box.tier)
