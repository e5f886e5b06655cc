"""The methods: each a function of one chunk of positions.

A loss takes the config, the student's logits [B, C, V], a tuple of teachers' logits,
and `Tokens`; it returns the sum of weighted token losses and named sums for the log. A
new method is one file here and one line below.
"""

from sdpo_jax.methods.grpo import grpo
from sdpo_jax.methods.sdpo import sdpo

LOSSES = {"sdpo": sdpo, "grpo": grpo}
# Methods whose loss reads a self-teacher.
READS_TEACHER = frozenset({"sdpo"})
