"""SDPO on SciKnowEval's chemistry questions, as the paper's main table has it.

  python -m sdpo_jax.main --config=configs/sciknoweval_chemistry.py

Bring `datasets/sciknoweval/chemistry` of the official repository (lasgroup/SDPO).
Cost there: five hours on four GH200, about 200 updates. Expected there with Qwen3-8B:
best avg@16 of 80.9 within five hours (GRPO 74.5); not run here. Source:
arXiv:2601.20802v2, Tables 3 and 12.
"""

from sdpo_jax import config


def get_config():
    c = config.default()
    c.model.path = "Qwen/Qwen3-8B"
    c.model.remat = "layer"
    c.env.name = "multiple_choice"
    c.env.train = "datasets/sciknoweval/chemistry/train.json"
    # The paper reports its best checkpoint by test score; here it is chosen on these.
    c.env.validation = "share:0.05"
    c.env.heldout = "datasets/sciknoweval/chemistry/test.json"
    c.env.grader = "official"
    c.reprompt.show_feedback = "never"
    c.step.micro_batch = 1
    c.train.updates = 200
    return c
