"""SDPO with rich feedback on LiveCodeBench v6, judged by questions it never saw.

  python -m sdpo_jax.main --config=configs/livecodebench_v6_heldout.py

The data are those of configs/livecodebench_v6.py. A tenth of the questions choose the
best checkpoint, a fifth are only reported, all hidden tests count everywhere, and right
programs pass that the official grader rejects. No result is published for this; not
run here.
"""

import pathlib

from sdpo_jax import config


def get_config():
    c = config.from_file(pathlib.Path(__file__).with_name("livecodebench_v6.py"))
    c.env.train = "datasets/lcb_v6/test.json"
    c.env.validation = "share:0.1"
    c.env.heldout = "share:0.2"
    c.env.grader = "fixed"
    return c
