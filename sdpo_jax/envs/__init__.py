"""Environments: text in, a verdict out; no arrays, no model."""

from ml_collections import ConfigDict

from sdpo_jax import config
from sdpo_jax.envs import (
    function,
    judge,
    multiple_choice,
    privileged,
    reasoning_gym,
    tool_use,
)
from sdpo_jax.envs.base import Environment
from sdpo_jax.envs.games import frozen_lake, sokoban
from sdpo_jax.envs.mathematics import grader as mathematics
from sdpo_jax.envs.programming import grader as programming
from sdpo_jax.envs.rules import grader as rules

# Value of `env.name` -> its task; a task's own options are in the subtree `env.<name>`.
TASKS = {
    "programming": programming.TASK,
    "multiple_choice": multiple_choice.TASK,
    "tool_use": tool_use.TASK,
    "mathematics": mathematics.TASK,
    "rules": rules.TASK,
    "judge": judge.TASK,
    "privileged": privileged.TASK,
    "reasoning_gym": reasoning_gym.TASK,
    "frozen_lake": frozen_lake.TASK,
    "sokoban": sokoban.TASK,
    "function": function.TASK,
}


def validate(c: ConfigDict) -> None:
    """Check that the config names a known task and sets only options that it reads.

    Raises:
      ValueError: one line that names the field, its value and what to change.
    """
    name = c.env.name
    if name and name not in TASKS:
        raise ValueError(
            f"env.name={name!r}: must be one of {' | '.join(TASKS)}, or empty for an "
            "environment that is passed to train.run"
        )
    _check_other_tasks(c)
    task = TASKS.get(name)
    if c.env.grader not in (task.graders if task else ("fixed",)):
        others = [n for n, other in TASKS.items() if c.env.grader in other.graders]
        raise ValueError(
            f"env.grader={c.env.grader}: env.name={name} has no such grader; "
            f"{', '.join(others)} have one"
        )
    if task:
        task.check(c.env)


def _check_other_tasks(c: ConfigDict) -> None:
    """Refuse changed options of tasks other than `env.name`, all of them at once."""
    defaults = config.default().env
    changed = [
        f"env.{task}.{option}={value!r} (leave it at {defaults[task][option]!r})"
        for task in TASKS
        if task != c.env.name and task in c.env
        for option, value in c.env[task].items()
        if value != defaults[task][option]
    ]
    if changed:
        raise ValueError(
            f"{', '.join(changed)}: env.name={c.env.name} does not read the options of "
            "another task"
        )


def from_config(c: ConfigDict) -> Environment:
    """The environment that `config.env` names.

    Raises:
      ValueError: if a source of questions is missing or malformed.
    """
    if not c.env.name:
        raise ValueError(
            "env.name is empty: name an environment, or pass your own to train.run"
        )
    # Held-out questions are only reported, so a run can do without.
    for split in ("train", "validation"):
        if not c.env[split]:
            own = ", or share:0.1 for a tenth of env.train" * (split == "validation")
            raise ValueError(
                f"env.{split} is empty: give a file or dataset of questions, or seeds"
                + own
            )
    return TASKS[c.env.name].environment(c.env)
