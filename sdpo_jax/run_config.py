"""A run file whose config is that of an existing run folder.

python -m sdpo_jax.main --config=sdpo_jax/run_config.py:runs/mine --config.seed=1
"""

from ml_collections import ConfigDict

from sdpo_jax import config


def get_config(folder: str) -> ConfigDict:
    """The config of the run in a folder."""
    return config.from_run(folder)
