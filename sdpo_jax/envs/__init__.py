"""Environments: text in, a verdict out. No arrays, no model."""

import dataclasses
import functools

from ml_collections import ConfigDict

from sdpo_jax.config import SPLITS
from sdpo_jax.envs import (
    function,
    judge,
    multiple_choice,
    privileged,
    reasoning_gym,
    tool_use,
)
from sdpo_jax.envs.base import Environment
from sdpo_jax.envs.games import frozen_lake, grid_game, sokoban
from sdpo_jax.envs.mathematics import grader as mathematics
from sdpo_jax.envs.programming.grader import PACKAGES, Programming
from sdpo_jax.envs.rules import grader as rules
from sdpo_jax.envs.single_turn import SingleTurn
from sdpo_jax.questions import rows, sources
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Limits

# Their answers are read from the response alone.
_ANSWERS = {"multiple_choice": multiple_choice, "tool_use": tool_use}
_GAMES = {"frozen_lake": frozen_lake, "sokoban": sokoban}
# They run something of their own in a sandbox.
_SANDBOXED = {
    "rules": rules,
    "privileged": privileged,
    "reasoning_gym": reasoning_gym,
}


def from_config(c: ConfigDict) -> Environment:
    """The environment that `config.env` names.

    Raises:
      ValueError: if a source of questions is missing or malformed.
    """
    if not c.env.name:
        raise ValueError(
            "env.name is empty: name an environment, or hand your own to train.run"
        )
    for split in SPLITS:
        if not c.env[split]:
            raise ValueError(
                f"env.{split} is empty: give a file or dataset of questions, or seeds"
            )
    if game := _GAMES.get(c.env.name):
        seeds = {split: c.env[split] for split in SPLITS}
        return grid_game.environment(c.env.name, seeds, game.draw, "one")
    files = {split: sources.of(c.env[split], f"env.{split}") for split in SPLITS}
    if task := _ANSWERS.get(c.env.name):
        grade = {"fixed": task.fixed, "official": task.official}[c.env.grader]
        return SingleTurn(rows.load_splits(files, task.data), grade)
    if c.env.name == "function":
        return function.environment(files, c.env.function)
    if c.env.name == "judge":
        endpoint = judge.Endpoint(url=c.env.judge.url, model=c.env.judge.model)
        return judge.environment(files, endpoint)
    limits = Limits(cpu_s=c.env.time_limit_s, memory_mb=c.env.memory_limit_mb)
    make_sandbox = functools.partial(
        Sandbox, limits, c.env.sandbox_tier, url=c.env.sandbox_url
    )
    if c.env.name == "mathematics":
        return mathematics.environment(files, c.env.grader, make_sandbox)
    if task := _SANDBOXED.get(c.env.name):
        return task.environment(files, make_sandbox)
    packages = dataclasses.replace(PACKAGES, modules=c.env.packages)
    return Programming(
        files,
        make_sandbox(process_per=c.env.process_per, packages=packages),
        grader=c.env.grader,
        wrong_answers_shown=c.env.wrong_answers_shown,
        reveals=c.env.feedback_reveals,
    )
