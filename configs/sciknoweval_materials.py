"""SDPO on SciKnowEval's questions on materials, as the paper's main table has it.

  python -m sdpo_jax.main --config=configs/sciknoweval_materials.py

Bring `datasets/sciknoweval/material` of the official repository (lasgroup/SDPO).
Cost there: five hours on four GH200, about 200 updates. Expected there with Qwen3-8B:
best avg@16 of 78.4 within five hours (GRPO 77.1); not run here. Source:
arXiv:2601.20802v2, Tables 3 and 12.
"""

import pathlib

from sdpo_jax import config


def get_config():
    c = config.from_file(pathlib.Path(__file__).with_name("sciknoweval_chemistry.py"))
    c.env.train = "datasets/sciknoweval/material/train.json"
    c.env.heldout = "datasets/sciknoweval/material/test.json"
    return c
