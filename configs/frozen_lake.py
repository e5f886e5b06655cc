"""SDPO on frozen lake: crossing boards whose symbols and rules nobody explains.

  python -m sdpo_jax.main --config=configs/frozen_lake.py

Nothing to bring: seeds draw the boards. Cost and result unknown; not run here. Settings
of ERL's experiments (arXiv:2602.13949, App. C and the scripts of its code), with the 10
attempts per question of its baseline: `--config.method=grpo` comes close to that, RLVR.
There, on eight H100, Qwen3-4B reached .86 with RLVR and .94 with ERL, by one move per
turn and stopped by hand within the 10 epochs that these updates are.

Not as there: a response plans the whole game, so its prompt holds one board and not
eight turns; no reflection and second attempt, no KL loss to the initial weights (.001),
and token_mean instead of the sum over a sequence's tokens.
"""

from sdpo_jax import config


def get_config():
    c = config.default()
    c.model.path = "Qwen/Qwen3-4B-Instruct-2507"
    c.model.remat = "layer"
    c.env.name = "frozen_lake"
    c.env.train = "seeds:0-9999"
    c.env.validation = "seeds:10000-10099"
    c.env.heldout = "seeds:20000-20099"
    c.rollout.questions = 64
    c.rollout.attempts = 10
    c.rollout.temperature = 0.7
    c.rollout.max_prompt = 1024
    c.rollout.max_response = 10240
    c.optimizer.learning_rate = 1e-6
    c.optimizer.warmup_updates = 0
    c.step.questions = 64
    c.step.micro_batch = 1
    c.train.updates = 1562
    c.eval.attempts = 4
    c.eval.temperature = 0.7
    c.eval.top_p = 0.8
    c.eval.top_k = 20
    return c
