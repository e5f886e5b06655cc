"""Our side of the benchmark does the work that was asked for; the table is right."""

import dataclasses
import functools

import jax
import pytest

from experiments.benchmark_trl import checkpoint, run, sdpo_jax_side
from experiments.benchmark_trl import workload as w
from sdpo_jax import distributed
from sdpo_jax.data.tokenizer import Tokenizer

TINY = dataclasses.replace(
    w.LARGE,
    name="tiny",
    vocab=256,
    width=16,
    mlp_width=24,
    layers=1,
    heads=2,
    kv_heads=1,
    head_width=8,
    questions=2,
    attempts=3,
    prompt=8,
    response=4,
    reprompt=20,
    steps=1,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "base"
    checkpoint.write(TINY, folder)
    return str(folder)


@pytest.mark.slow
def test_our_side_measures_the_steps_after_the_warm_up(base, monkeypatch):
    one = functools.partial(distributed.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(distributed, "make_mesh", one)

    found = sdpo_jax_side.measure(TINY, base)

    asked = dict(prompt=8, response=4, reprompt=20, rows=6, rows_with_target=4)
    assert found["seen"] == asked
    assert len(found["whole_s"]) == len(found["train_s"]) == 1
    parts_s = found["sample_s"][0] + found["grade_s"][0] + found["train_s"][0]
    assert 0 < parts_s <= found["whole_s"][0]
    assert found["peak_mib"] > 0 and found["compile_s"] > 0


@pytest.mark.parametrize("workload", w.WORKLOADS.values(), ids=w.WORKLOADS)
def test_prompts_are_as_long_as_the_workload_says(workload, tmp_path):
    checkpoint._write_tokenizer(workload, tmp_path)
    tokenizer = Tokenizer(tmp_path)
    prompt, solution = workload.prompts()[0], " ".join(["w5"] * workload.response)
    shown = prompt + workload.solution_template.format(solution=solution)

    assert len(tokenizer.encode_chat("", prompt)) == workload.prompt
    reprompt = tokenizer.encode_chat("", shown + workload.instruction)
    assert len(reprompt) == workload.reprompt
    # No response can stop early: the model has no such token.
    assert tokenizer.stop_ids == (workload.vocab,)


def test_a_side_that_did_other_work_is_refused():
    with pytest.raises(ValueError, match=r"expected \{.*\}, got \{'prompt': 8\}"):
        w.check(TINY, {"prompt": 8})


def test_table_compares_the_sides_turn_by_turn():
    side = lambda side, turn, s, mib: {
        "workload": "large",
        "side": side,
        "turn": turn,
        "whole_s": [s, s, 9.0],
        "sample_s": [s / 2, s / 2, 1.0],
        "peak_mib": mib,
        "compile_s": 20.0,
    }
    ours = [side("sdpo_jax", 1, 2.0, 500.0), side("sdpo_jax", 2, 3.0, 600.0)]
    theirs = [side("trl", 1, 4.0, 1000.0), side("trl", 2, 4.0, 1000.0)]
    # A turn that only one side has had is left out.
    lone = [side("sdpo_jax", 3, 99.0, 500.0)]

    compiled = [side("sdpo_jax", 0, 2.0, 800.0)]

    found = run.table(compiled + ours + theirs + lone, "large")

    *_, ratio, _, compiling = found.splitlines()

    cells = [cell.strip() for cell in ratio.strip("|").split("|")]
    assert cells[:3] == ["ratio", "0.62 (0.50 to 0.75)", "0.62 (0.50 to 0.75)"]
    assert cells[4] == "0.55 (0.50 to 0.60)"
    assert compiling == "The process that compiled: 20 s of it, peak memory 800 MiB."
