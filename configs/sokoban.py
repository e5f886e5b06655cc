"""SDPO on Sokoban: pushing a box on boards whose symbols and rules nobody explains.

  python -m sdpo_jax.main --config=configs/sokoban.py

As configs/frozen_lake.py, which says what is not as in ERL (arXiv:2602.13949). There
Qwen3-4B reached .06 with RLVR and .87 with ERL. Cost and result unknown; not run here.
"""

import pathlib

from sdpo_jax import config


def get_config():
    c = config.from_file(pathlib.Path(__file__).with_name("frozen_lake.py"))
    c.env.name = "sokoban"
    return c
