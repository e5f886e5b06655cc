"""Environments: text in, a verdict out. No arrays, no model."""

from ml_collections import ConfigDict

from sdpo_jax.config import SPLITS
from sdpo_jax.envs import function, mathematics, multiple_choice, tool_use
from sdpo_jax.envs.base import Environment
from sdpo_jax.envs.programming import Programming
from sdpo_jax.envs.sandbox import Limits, Sandbox


def from_config(c: ConfigDict) -> Environment:
    """The environment that `config.env` names.

    Raises:
      ValueError: if a file of questions is missing or malformed.
    """
    if not c.env.name:
        raise ValueError(
            "env.name is empty: name an environment, or hand your own to train.run"
        )
    for split in SPLITS:
        if not c.env[split]:
            raise ValueError(f"env.{split} is empty: give a file of questions")
    files = {split: c.env[split] for split in SPLITS}
    if c.env.name == "multiple_choice":
        return multiple_choice.environment(files, c.env.grader)
    if c.env.name == "tool_use":
        return tool_use.environment(files, c.env.grader)
    if c.env.name == "function":
        return function.environment(files, c.env.function)
    limits = Limits(cpu_s=c.env.time_limit_s, memory_mb=c.env.memory_limit_mb)
    if c.env.name == "mathematics":
        return mathematics.environment(files, c.env.grader, limits, c.env.sandbox_tier)
    return Programming(
        files,
        Sandbox(limits, c.env.sandbox_tier, process_per=c.env.process_per),
        wrong_answers_shown=c.env.wrong_answers_shown,
    )
