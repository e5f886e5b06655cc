r"""OPSD on OpenThoughts' mathematics: the reference solution teaches every attempt.

  python -m sdpo_jax.main --config=configs/openthoughts_opsd.py

Bring `datasets/openthoughts/train.jsonl`, what `privileged.from_openthoughts` makes of
siyanzhao/Openthoughts_math_30k_opsd, and `heldout.jsonl` with AIME 2024: uid, prompt
and answer. Cost there: about 100 updates on eight A100 or H100. Expected there with
Qwen3-1.7B: avg@12 on AIME 2024 from 51.5 to 57.2, the best of 100 updates; not run
here. Source: arXiv:2601.18734v3, Tables 2 and 3; the recipe of the later code (learning
rate 5e-6), not the 2e-4 and Jensen-Shannon divergence of the first.

What differs, as the config cannot say it yet: no entry of the divergence is clipped
(there at 0.05; without it 1.7B falls below its base on AIME 2024), the teacher does not
think where there it does, and evaluation neither thinks nor writes 38,912 tokens. The
weight of a token is capped against the truncated sampler here, and was not used there.
The teacher's wording is our own.
"""

from sdpo_jax import config


def get_config():
    c = config.default()
    c.model.path = "Qwen/Qwen3-1.7B"
    c.model.remat = "layer"
    c.env.name = "privileged"
    c.env.train = "datasets/openthoughts/train.jsonl"
    c.env.validation = "share:0.01"
    c.env.heldout = "datasets/openthoughts/heldout.jsonl"

    c.rollout.questions = c.step.questions = 32
    c.rollout.attempts = 1
    c.rollout.temperature = 1.1
    c.rollout.top_p = 0.95
    c.rollout.top_k = 20
    c.rollout.max_response = 1024
    c.rollout.long_prompts = "drop"

    c.reprompt.demonstration_from = "nobody"
    c.reprompt.show_feedback = "always"
    c.reprompt.feedback_template = (
        "\n\nFor reference, a worked solution of this problem:\n\n{feedback}"
    )
    c.reprompt.template = (
        "{prompt}{solution}{attempt}{feedback}"
        "\n\nFollow that solution until every step is clear to you. Then solve the "
        "problem yourself, in your own words and without copying it, and put the same "
        "final answer within \\boxed{{}}."
    )

    c.sdpo.divergence = "forward_kl"
    c.sdpo.support = "full"
    c.teacher.mode = "frozen"
    c.lora.rank = 64
    c.lora.alpha = 128.0
    c.optimizer.learning_rate = 5e-6
    c.step.aggregation = "sequence_mean"
    c.step.micro_batch = 1

    c.train.evaluate_every = 20
    c.train.save_every = 20
    c.eval.attempts = 12
    c.eval.temperature = 1.0
    return c
