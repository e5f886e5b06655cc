"""The quickstart task: a list of words, and the program that each word stands for."""

import json
import random
from collections.abc import Mapping, Sequence

OPERATIONS = (
    "x + 1",
    "x + 2",
    "x + 3",
    "x + 5",
    "x - 1",
    "x - 2",
    "x - 4",
    "x * 2",
    "x * 3",
    "x * x",
    "x // 2",
    "x % 3",
)

# Words whose meaning training must find; each seed draws it.
MADE_UP = (
    *("zib", "dax", "pok", "wug", "fep", "tiv", "lom", "gub"),
    *("nux", "kez", "vam", "rof", "bly", "quo", "jat", "sny"),
)

# Words whose meaning the base model knows.
KNOWN = dict(
    zip(
        (
            *("inc", "inc2", "inc3", "inc5", "dec", "dec2"),
            *("dec4", "dbl", "tpl", "sqr", "half", "mod3"),
        ),
        OPERATIONS,
        strict=True,
    )
)

REQUEST = "Write solve(x) returning the list: "
OPENING = "```python\ndef solve(x):\n    return ["
CLOSING = "]\n```"
FUNCTION = "solve"
# No two operations agree on any of these, so one failed test identifies an operation.
INPUTS = range(9, 15)
NUM_INPUTS = 4


def prompt(words: Sequence[str]) -> str:
    """The user turn that asks for `words`."""
    return REQUEST + ", ".join(words)


def answer(operations: Sequence[str]) -> str:
    """The fenced program that returns the values of `operations`."""
    return OPENING + ", ".join(operations) + CLOSING


def values(operations: Sequence[str], x: int) -> list[int]:
    """What the program of `operations` returns for `x`."""
    return [eval(operation, {"x": x}) for operation in operations]


def tests(operations: Sequence[str], inputs: Sequence[int]) -> dict:
    """The tests that the program of `operations` passes, in the format of a row."""
    return {
        "inputs": [json.dumps(x) for x in inputs],
        "outputs": [json.dumps(values(operations, x)) for x in inputs],
        "testtype": "functional",
        "fn_name": FUNCTION,
    }


def draw_meaning(rng: random.Random) -> dict[str, str]:
    """An operation for every made-up word; at most two words share an operation."""
    return dict(zip(MADE_UP, rng.sample(OPERATIONS * 2, len(MADE_UP)), strict=True))


def row(name: str, words: Sequence[str], meaning: Mapping[str, str], inputs) -> dict:
    """One question as a row in the format of the SDPO code data."""
    return {
        "uid": name,
        "kind": "code",
        "system": "",
        "prompt": prompt(words),
        "tests": tests([meaning[word] for word in words], inputs),
    }
