"""SDPO on SciKnowEval's physics questions, as the paper's main table has it.

  python -m sdpo_jax.main --config=configs/sciknoweval_physics.py

Bring `datasets/sciknoweval/physics` of the official repository (lasgroup/SDPO).
Cost there: five hours on four GH200, about 200 updates. Expected there with Qwen3-8B:
best avg@16 of 75.6 within five hours (GRPO 72.7); not run here. Source:
arXiv:2601.20802v2, Tables 3 and 12.
"""

import pathlib

from sdpo_jax import config


def get_config():
    c = config.from_file(pathlib.Path(__file__).with_name("sciknoweval_chemistry.py"))
    c.env.train = "datasets/sciknoweval/physics/train.json"
    c.env.heldout = "datasets/sciknoweval/physics/test.json"
    return c
