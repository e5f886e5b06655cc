"""How a run ends on the screen."""

import pathlib

import pytest

from sdpo_jax import summary

FOLDER = pathlib.Path("runs/a run")


def content(**of_last):
    of = lambda validation, heldout: {
        "validation": {"avg@4": 0.5, "pass@1": validation, "pass@2": 1.0},
        "heldout": {"avg@4": 0.5, "pass@1": heldout, "pass@2": 1.0},
    }
    return {
        "method": "sdpo",
        "updates": 100,
        "generations": 6400,
        "seconds": 96.6,
        "base": of(0.004, 0.0),
        "last": of(0.93, 0.934) | of_last,
        "best": {"update": 95, **of(0.9512, 0.93)},
    }


def test_a_run_ends_with_a_short_table_its_folder_and_the_next_commands():
    text = summary.describe(content(), FOLDER)

    assert text.splitlines() == [
        "runs/a run is finished: sdpo, 100 updates, 6,400 generations, 97 s",
        "",
        "pass@1                  validation  held-out",
        "base                         0.004         0",
        "last, after update 100        0.93     0.934",
        "best, after update 95       0.9512      0.93",
        "",
        "Every number is in runs/a run/summary.json, every attempt in runs/a run/"
        "attempts.jsonl. Next:",
        "",
        "  python -m sdpo_jax.main --workdir='runs/a run' --job=evaluate "
        "--checkpoint=best",
        "  python -m sdpo_jax.main --workdir='runs/a run' --job=export "
        "--checkpoint=best",
    ]


@pytest.mark.parametrize("absent", [{}, None])
def test_a_split_that_was_not_measured_is_a_dash(absent):
    of_run = content(heldout=absent)

    text = summary.describe(of_run, FOLDER)

    assert "last, after update 100        0.93         -" in text


def test_without_pass_at_k_the_mean_score_is_shown():
    of_run = content()
    for part in ("base", "last", "best"):
        for split in ("validation", "heldout"):
            of_run[part][split] = {"avg@4": 0.125, "length_mean": 9.0}

    lines = summary.describe(of_run, FOLDER).splitlines()

    assert lines[2].split() == ["avg@4", "validation", "held-out"]
    assert lines[3].split() == ["base", "0.125", "0.125"]
