"""SDPO on ToolAlpaca's calls of tools, as the paper's main table has it.

  python -m sdpo_jax.main --config=configs/toolalpaca.py

Bring `datasets/tooluse` of the official repository (lasgroup/SDPO).
Cost there: five hours on four GH200, about 200 updates. Expected there with Qwen3-8B:
best avg@16 of 68.5 within five hours (GRPO 67.7); not run here. Source:
arXiv:2601.20802v2, Tables 3 and 12.
"""

import pathlib

from sdpo_jax import config


def get_config():
    c = config.from_file(pathlib.Path(__file__).with_name("sciknoweval_chemistry.py"))
    c.env.name = "tool_use"
    c.env.train = "datasets/tooluse/train.json"
    c.env.heldout = "datasets/tooluse/test.json"
    return c
