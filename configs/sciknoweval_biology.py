"""SDPO on SciKnowEval's biology questions, as the paper's main table has it.

  python -m sdpo_jax.main --config=configs/sciknoweval_biology.py

Bring `datasets/sciknoweval/biology` of the official repository (lasgroup/SDPO).
Cost there: five hours on four GH200, about 200 updates. Expected there with Qwen3-8B:
best avg@16 of 56.8 within five hours (GRPO 59.9); not run here. Source:
arXiv:2601.20802v2, Tables 3 and 12.
"""

import pathlib

from sdpo_jax import config


def get_config():
    c = config.from_file(pathlib.Path(__file__).with_name("sciknoweval_chemistry.py"))
    c.env.train = "datasets/sciknoweval/biology/train.json"
    c.env.heldout = "datasets/sciknoweval/biology/test.json"
    return c
