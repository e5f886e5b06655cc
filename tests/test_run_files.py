"""Run files of the papers, on a tiny model and questions in the official formats."""

import json
import pathlib

import pytest

from sdpo_jax import config, train
from sdpo_jax.questions import openthoughts
from tests.runs import (
    ROOT,
    WRITTEN,
    base,
    lines_of,
    one_device,
    tiny,
)

__all__ = ["base", "one_device"]


def shrunk(base, name, **fields):
    """A run file of `configs`: its task and method stay, sizes are those of `tiny`."""
    c = config.from_file(ROOT / "configs" / f"{name}.py")
    small = tiny(base, train__updates=2, **fields)
    for part in ("model", "rollout", "eval", "train"):
        c[part].update(small[part])
    c.reprompt.max_length = small.reprompt.max_length
    c.step.questions, c.sdpo.top_k = 2, 20
    return c


CHOICES = {"prompt": "2+{n}?\n\nA: {n}\nB: 2{n}\n", "answer": "B"}
CALLS = {
    "prompt": "Call f with {n}.",
    "answer": json.dumps([{"Action": "f", "Action_Input": '{"n": 1}'}]),
}
PROGRAMS = {
    "prompt": "Print {n}.",
    "tests": json.dumps(
        {"inputs": ["", ""], "outputs": ["1", "1"], "testtype": "stdin", "fn_name": ""}
        | {"time_limit": 6}
    ),
}


@pytest.mark.parametrize(
    "name, row, fixed",
    [
        ("sciknoweval_chemistry", CHOICES, False),
        ("toolalpaca", CALLS, True),
        ("livecodebench_v6", PROGRAMS, False),
        *(
            pytest.param(name, row, False, marks=pytest.mark.slow)
            for name, row in [
                ("sciknoweval_biology", CHOICES),
                ("sciknoweval_materials", CHOICES),
                ("sciknoweval_physics", CHOICES),
                ("toolalpaca", CALLS),
                ("livecodebench_v6_heldout", PROGRAMS),
            ]
        ),
    ],
)
def test_run_files_of_the_paper_train_on_files_of_the_official_format(
    name, row, fixed, base, tmp_path, one_device
):
    c = shrunk(base, name, rollout__max_prompt=64)
    if fixed:
        c.env.grader, c.reprompt.show_feedback = "fixed", "always"
    files = [split for split in config.SPLITS if "share:" not in c.env[split]]
    for split in files:
        c.env[split] = str(tmp_path / f"{split}.json")
        rows = [
            {"idx": n, "system": None, "kind": "-", "tests": "-", "elo": 1500}
            | row
            | {"prompt": row["prompt"].format(n=n)}
            for n in range(60)
        ]
        text = "\n".join(map(json.dumps, rows if split == "train" else rows[:2]))
        pathlib.Path(c.env[split]).write_text(text)

    summary = train.run(c, tmp_path / "run")

    assert 0 <= summary["last"]["heldout"]["avg@4"] <= 1
    updates = [
        line for line in lines_of(tmp_path / "run", WRITTEN[0]) if "loss" in line
    ]
    outcomes = {line["outcome"] for line in lines_of(tmp_path / "run", WRITTEN[1])}
    assert len(updates) == 2
    # Random weights solve nothing: feedback is all there is to learn from.
    if c.reprompt.show_feedback != "never":
        assert all(line["loss"] > 0 for line in updates)
        assert outcomes <= {"Incorrect Format", "Truncated"}
    else:
        assert outcomes == {"Wrong Answer"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["frozen_lake", "sokoban"])
def test_run_files_of_games_train_on_seeds(name, base, tmp_path, one_device):
    # Prompts take 338 to 492 of this tokenizer's letters: one shape is compiled.
    sizes = dict(rollout__max_prompt=512, reprompt__max_length=620)
    c = shrunk(base, name, **sizes)
    c.env.train, c.eval.max_questions = "seeds:0-9", 2

    summary = train.run(c, tmp_path)

    assert 0 <= summary["last"]["heldout"]["avg@4"] <= 1
    updates = [line for line in lines_of(tmp_path, WRITTEN[0]) if "loss" in line]
    assert len(updates) == 2 and all(line["loss"] > 0 for line in updates)
    records = lines_of(tmp_path, WRITTEN[1])
    assert {record["question"].partition("-")[0] for record in records} == {name}
    assert {r["outcome"] for r in records} <= {"Incorrect Format", "Truncated"}


@pytest.mark.slow
def test_run_file_of_opsd_trains_on_converted_rows_of_openthoughts(
    base, tmp_path, one_device
):
    c = config.from_file(ROOT / "configs" / "openthoughts_opsd.py")
    small = tiny(base, train__updates=2, rollout__max_prompt=64)
    for part in ("model", "rollout", "eval", "train"):
        c[part].update(small[part])
    c.reprompt.max_length, c.step.questions, c.step.micro_batch = 96, 2, 0
    # The tiny tokenizer spends a token on every letter.
    c.reprompt.template = "{prompt}{feedback}"
    c.env.validation = "share:0.1"
    solution = "Twice {n} is \\boxed{{2{n}}}. " + "So it is. " * 40
    for split in ("train", "heldout"):
        c.env[split] = str(tmp_path / f"{split}.jsonl")
        rows = [
            openthoughts.from_openthoughts(
                {"problem": f"2*{n}?", "solution": solution.format(n=n), "Answer": n}
            )
            | {"prompt": f"2*{n}?"}
            for n in (range(10, 70) if split == "train" else range(70, 72))
        ]
        pathlib.Path(c.env[split]).write_text("\n".join(map(json.dumps, rows)))

    train.run(c, tmp_path / "run")

    updates = [
        line for line in lines_of(tmp_path / "run", WRITTEN[0]) if "loss" in line
    ]
    attempts = lines_of(tmp_path / "run", WRITTEN[1])
    assert len(updates) == 2 and all(line["loss"] > 0 for line in updates)
    assert updates[0]["teacher/has_target"] == updates[0]["teacher/shown_feedback"] == 1
    for attempt in attempts:
        assert "Twice" in attempt["feedback"] and attempt["has_target"]
        # What is too long is cut with a mark, and never silently.
        assert "[...]" in attempt["reprompt"]
