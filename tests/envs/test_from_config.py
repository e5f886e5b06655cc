"""Every name in env.name makes an environment, from a config and files alone."""

import importlib.util
import json

import pytest

from sdpo_jax import config, envs
from sdpo_jax.envs import task
from sdpo_jax.envs.base import Verdict
from sdpo_jax.questions import rows

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
    return envs.from_config(named(name, folder, tier, **fields))


def named(name, folder, tier="auto", **fields):
    """A config of a task, with a file of one row or seeds for every split."""
    c = config.default()
    c.model.path = "somewhere"
    c.env.name = name
    c.env.sandbox.tier = tier
    if name == "function":
        c.env.function.grade = "json:dumps"
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
    envs.validate(c)
    return c


def test_every_name_is_tried_here():
    assert envs.TASKS.keys() == ROWS.keys()


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


@pytest.mark.parametrize("name", ["multiple_choice", "function", "frozen_lake"])
def test_held_out_questions_may_be_absent_and_others_may_not(name, tmp_path):
    c = named(name, tmp_path)
    c.env.heldout = ""

    environment = envs.from_config(c)

    counts = [len(environment.questions(split)) for split in config.SPLITS]
    assert min(counts[:2]) > 0 and counts[2] == 0
    for split in ("train", "validation"):
        without = c.copy_and_resolve_references()
        without.env[split] = ""
        with pytest.raises(ValueError, match=f"^env.{split} is empty: give a file or"):
            envs.from_config(without)


def test_new_task_is_one_line_of_the_table(tmp_path, monkeypatch):
    grade = lambda question, response, truncated: Verdict(1.0, question.data["word"])
    data = lambda row, where: {"word": rows.field(row, "word", str, where)}
    monkeypatch.setitem(envs.TASKS, "echo", task.answered(data, fixed=grade))
    monkeypatch.setitem(ROWS, "echo", {"prompt": "?", "word": "ok"})

    environment = made("echo", tmp_path)

    attempt = environment.start(environment.questions("train")[0])
    assert attempt.act("x", False).outcome == "ok"


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


def changed(**fields):
    c = config.default()
    c.model.path = "somewhere"
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return c


JUDGE = {"env__judge__url": "u", "env__judge__model": "m"}


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"env__name": "progamming"}, "env.name='progamming': must be one of programm"),
        ({"env__name": "function"}, "env.function.grade is empty: env.name=function"),
        (
            {"env__function__grade": "a:b"},
            r"env.function.grade='a:b' \(leave it at ''\): env.name=programming does",
        ),
        ({"env__name": "judge", "env__judge__model": "m"}, "env.judge.url is empty"),
        ({"env__name": "judge", "env__judge__url": "u"}, "env.judge.model is empty"),
        (
            {"env__judge__url": "u"},
            r"env.judge.url='u' .*env.name=programming does not",
        ),
        (
            {"env__name": "", **JUDGE},
            "env.judge.model='m' .* env.judge.url='u' .*env.name= does",
        ),
        (
            {"env__name": "rules", "env__programming__wrong_answers_shown": 1},
            r"env.programming.wrong_answers_shown=1 \(leave it at 2\): env.name=rules "
            "does not read the options of another task",
        ),
        (
            {"env__name": "rules", "env__programming__packages": ()},
            r"env.programming.packages=\(\) .*env.name=rules does not",
        ),
        ({"env__grader": "official", "env__name": "rules"}, "env.name=rules has no su"),
        ({"env__grader": "official", "env__name": "privileged"}, "tool_use.* have one"),
        ({"env__grader": "official", "env__name": ""}, "env.name= has no such grader"),
    ],
)
def test_what_the_task_does_not_read_or_lacks_is_refused(fields, told):
    c = changed(**fields)
    config.validate(c)

    with pytest.raises(ValueError, match=f"^[^\n]*{told}[^\n]*$"):
        envs.validate(c)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"env__name": ""},
        {"env__name": "tool_use", "env__grader": "official"},
        {"env__name": "function", "env__function__grade": "a:b"},
        {"env__name": "judge", **JUDGE},
        {"env__programming__process_per": "program"},
        {"env__name": "rules", "env__sandbox__time_limit_s": 1.0},
    ],
)
def test_what_the_task_reads_is_accepted(fields):
    envs.validate(changed(**fields))


def test_options_of_tasks_stand_in_subtrees_of_their_names():
    of_env = [f.split(".")[1:] for f in config.KNOBS if f.startswith("env.")]
    subtrees = {name for name, *option in of_env if option}

    assert {"programming", "sandbox"} <= subtrees
    assert subtrees - {"sandbox"} <= envs.TASKS.keys()
