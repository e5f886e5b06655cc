import logging

import pytest

from sdpo_jax.questions import seeds
from sdpo_jax.questions.question import Question

SOURCES = {"train": "seeds:0-9", "validation": "seeds:20-24", "heldout": "seeds:30-34"}


def load(draw=lambda seed: Question(f"q-{seed}", f"What is {seed}?"), **sources):
    return seeds.load_splits(SOURCES | sources, draw)


def uids(questions):
    return [int(q.uid.removeprefix("q-")) for q in questions]


def test_every_seed_of_a_range_draws_a_question_in_its_order(caplog):
    splits = load(heldout="seeds:30-30")

    assert uids(splits["train"]) == list(range(10))
    assert uids(splits["validation"]) == list(range(20, 25))
    assert uids(splits["heldout"]) == [30]
    assert not caplog.messages


def test_held_out_prompt_is_in_no_other_split(caplog):
    modulo = lambda seed: Question(f"q-{seed}", f"What is {seed % 7}?")

    with caplog.at_level(logging.WARNING):
        splits = load(modulo, heldout="seeds:35-36", validation="seeds:21-24")

    # 0 and 1 are held out, 2 and 3 validated.
    assert uids(splits["heldout"]) == [35, 36]
    assert uids(splits["validation"]) == [23, 24]
    assert uids(splits["train"]) == [4, 5, 6]
    assert caplog.messages == [
        "env.validation: dropped 2 of 4 seeds with a prompt of a split held out from "
        "it",
        "env.train: dropped 7 of 10 seeds with a prompt of a split held out from it",
    ]


def test_repeated_prompts_are_kept_and_logged(caplog):
    splits = load(lambda seed: Question(f"q-{seed}", f"What is {seed // 2}?"))

    assert uids(splits["train"]) == list(range(10))
    assert "env.train repeats 5 of its prompts" in caplog.messages


def test_split_that_is_left_empty_is_refused():
    with pytest.raises(ValueError, match="env.validation: every seed has a prompt of"):
        load(lambda seed: Question(f"q-{seed}", "What?"))


@pytest.mark.parametrize(
    "wrong",
    [
        *("train.jsonl", "share:0.1", "seeds:", "seeds:5", "seeds:5-4", "seeds:-1-4"),
        *("seeds:0-", "seeds: 0-4", "0-4", "seeds:0-4\n", "seeds:0-1234567890"),
        "seeds:\u0661-\u0662",
    ],
)
def test_malformed_range_of_seeds_is_refused(wrong):
    with pytest.raises(ValueError, match="env.validation=.*: expected seeds:FIRST-LA"):
        load(validation=wrong)


@pytest.mark.parametrize("heldout", ["seeds:9-12", "seeds:0-9", "seeds:3-4"])
def test_seeds_shared_by_two_splits_are_refused(heldout):
    with pytest.raises(
        ValueError, match="env.train=seeds:0-9 and env.heldout=.* share"
    ):
        load(heldout=heldout)
