"""SDPO with rich feedback on LiveCodeBench v6, as the paper's Table 5 has it.

  python -m sdpo_jax.questions.livecodebench test*.jsonl datasets/lcb_v6
  python -m sdpo_jax.main --config=configs/livecodebench_v6.py

Bring livecodebench/code_generation_lite from the hub for the first command, or
`datasets/lcb_v6` as the official repository (lasgroup/SDPO) prepares it. Expected there
with Qwen3-8B at update 80: 48.8 (GRPO 41.2, base 27.9), three seeds; not run here.
Source: arXiv:2601.20802v2, Tables 5, 9, 12 and 13.

The 131 questions are the same in training and evaluation, as in the paper: training has
half of the hidden tests of each, evaluation all of them. For questions that training
never saw: configs/livecodebench_v6_heldout.py.
"""

from sdpo_jax import config


def get_config():
    c = config.default()
    c.model.path = "Qwen/Qwen3-8B"
    c.model.remat = "layer"
    c.env.train = "datasets/lcb_v6/train.json"
    c.env.validation = "datasets/lcb_v6/test.json"
    c.env.heldout = "datasets/lcb_v6/test.json"
    c.env.grader = "official"
    c.sdpo.divergence = "reverse_kl"
    c.sdpo.top_k = 20
    c.teacher.rate = 0.01
    c.optimizer.learning_rate = 1e-6
    c.optimizer.warmup_updates = 0
    c.step.questions = 1
    c.step.micro_batch = 1
    c.train.updates = 80
    c.eval.attempts = 4
    return c
