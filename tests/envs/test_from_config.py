"""Every name in env.name makes an environment, from a config and files alone."""

import importlib.util
import json

import pytest

from sdpo_jax import config, envs

MATHS = {"prompt": "2+2?", "answer": "4"}
ROWS = {
    "multiple_choice": {"prompt": "A: 1\nB: 2", "answer": "B"},
    "tool_use": {
        "prompt": "?",
        "answer": json.dumps([{"Action": "f", "Action_Input": "{}"}]),
    },
    "mathematics": MATHS,
    "function": {"prompt": "?"},
    "rules": {"prompt": "?", "rule": {"kind": "number", "answer": 4}},
    "judge": {"prompt": "?"},
    "privileged": {"prompt": "?", "solution": "It is 4."},
    "programming": {
        "prompt": "?",
        "tests": {"inputs": ["1"], "outputs": ["1"], "testtype": "stdin"},
    },
    "frozen_lake": {},
    "sokoban": {},
    "reasoning_gym": {"task": "leg_counting", "size": 2},
}


def made(name, folder, tier="auto", **fields):
    c = config.default()
    c.model.path = "somewhere"
    c.env.name = name
    c.env.sandbox_tier = tier
    if name == "function":
        c.env.function = "json:dumps"
    if name == "judge":
        c.env.judge.url, c.env.judge.model = "http://127.0.0.1:1/v1", "m"
    for number, split in enumerate(config.SPLITS):
        if name in ("frozen_lake", "sokoban"):
            c.env[split] = f"seeds:{10 * number}-{10 * number + 3}"
            continue
        row = {**ROWS[name], **fields} | (
            {"seed": 10 * number} if name == "reasoning_gym" else {"uid": split}
        )
        file = folder / f"{split}.json"
        file.write_text(json.dumps([row]))
        c.env[split] = str(file)
    config.validate(c)
    return envs.from_config(c)


def test_every_name_is_tried_here():
    assert set(config._CHOICES["env.name"]) - {""} == ROWS.keys()


SLOW = {"reasoning_gym"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in ROWS]
)
def test_name_makes_an_environment(name, tmp_path):
    if name == "reasoning_gym" and importlib.util.find_spec(name) is None:
        pytest.skip("reasoning-gym is not installed")

    environment = made(name, tmp_path)

    for split in config.SPLITS:
        assert environment.questions(split)[0].prompt
    environment.close()


# Name -> fields of a row that needs the sandbox.
SANDBOXED = {
    "programming": {},
    "mathematics": {},
    "rules": {"rule": {"kind": "regex", "pattern": "4"}},
    "privileged": {"answer": "4"},
}


@pytest.mark.parametrize("name", SANDBOXED)
def test_sandbox_is_of_the_tier_that_the_config_names(name, tmp_path):
    environment = made(name, tmp_path, tier="C", **SANDBOXED[name])

    assert environment.versions["sandbox_tier"] == "C"
    environment.close()
