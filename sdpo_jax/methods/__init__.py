"""The methods: one file each, and one line of this table.

A new method is a file here that makes a `Method`, its line below, and a subtree of the
same name in `config.py` with its knobs.
"""

from ml_collections import ConfigDict

from sdpo_jax.methods import grpo, sdpo
from sdpo_jax.methods.method import Method

METHODS: dict[str, Method] = {
    "sdpo": sdpo.METHOD,
    "grpo": grpo.METHOD,
}


def of(c: ConfigDict) -> Method:
    """The method that `config.method` names.

    Raises:
      ValueError: if it has knobs in `config.METHODS`, but no entry here.
    """
    if c.method not in METHODS:
        raise ValueError(f"method={c.method}: methods.METHODS has no such entry")
    return METHODS[c.method]
