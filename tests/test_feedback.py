import dataclasses
import json
import random
import re
import time

import numpy as np
import pytest

from sdpo_jax import feedback, reprompt
from sdpo_jax.batch import PAD
from sdpo_jax.data.tokenizer import Tokenizer
from sdpo_jax.envs import grading_pool
from sdpo_jax.envs.base import GradedAttempt, Verdict
from sdpo_jax.methods import METHODS
from tests.data.test_tokenizer import ADDED, ids_of, unigram, write
from tests.graded import (
    FAULTS,
    GROUP,
    QUESTIONS,
    Judges,
    attempts_of,
    faulty,
    grade,
    judge,
    reasoner,
    repeated,
    settings,
    tokenizer,
    written,
)

__all__ = ["reasoner", "tokenizer"]


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory):
    return Tokenizer(write(tmp_path_factory.mktemp("unigram"), unigram()))


def walk(tokenizer, c=None, update=0, environment=None):
    """From attempts to a batch, its records and metrics."""
    attempts = written(tokenizer)
    c, environment = c or settings(), environment or Judges()
    graded = grade(environment, tokenizer, repeated(), attempts)
    return feedback.make_batch(c, tokenizer, attempts, graded, update)


def test_attempts_whose_grader_fails_teach_nothing_and_are_counted(
    tokenizer, monkeypatch
):
    monkeypatch.setattr(grading_pool, "LIMIT_S", 3.0)
    attempts, failed_B, grade = faulty(tokenizer, len(FAULTS))

    graded = grade()
    make = lambda method: feedback.make_batch(
        settings(method=method), tokenizer, attempts, graded, 0
    )
    of_sdpo, _, _ = make("sdpo")
    batch, records, metrics = make("grpo")

    np.testing.assert_array_equal(of_sdpo.has_target_B[failed_B], False)
    assert metrics["rollout/grader_failures"] == 10
    np.testing.assert_array_equal([g.verdict is None for g in graded], failed_B)
    np.testing.assert_array_equal(batch.has_target_B[failed_B], False)
    np.testing.assert_array_equal(batch.advantage_B[failed_B], 0)
    # Not as a score of 0: their peers' mean is that of the others alone.
    groups = lambda values: np.reshape(values, (-1, GROUP))
    score_UG, known_UG = groups([g.score for g in graded]), groups(~failed_B)
    rows = zip(score_UG, known_UG, groups(batch.advantage_B), strict=True)
    for score_G, known_G, found_G in rows:
        expected = score_G[known_G] - score_G[known_G].mean()
        np.testing.assert_allclose(found_G[known_G], expected, atol=1e-7)
    outcomes = [record["outcome"] == "Grader Failure" for record in records]
    np.testing.assert_array_equal(outcomes, failed_B)
    assert json.loads(json.dumps(records, allow_nan=False)) == records


def test_attempts_become_targets_advantages_records_and_metrics(tokenizer):
    batch, records, metrics = walk(tokenizer)

    # The sole success has no peer; the last attempt's grading failed.
    expected = [True] * 4 + [True, False, True, False]
    np.testing.assert_array_equal(batch.has_target_B, expected)
    third = 1 / 3
    np.testing.assert_allclose(
        [record["advantage"] for record in records],
        [0.5, 0.5, -0.5, -0.5, -third, 2 * third, -third, 0],
    )
    assert batch.loss_weight_B.dtype == np.float32
    assert batch.attempts.sampler_logp_BR.shape == batch.attempts.response_BR.shape
    np.testing.assert_array_equal(batch.loss_weight_B, 1)
    # What SDPO does not read is absent.
    assert batch.old_logp_BR is None and batch.advantage_B is None
    assert metrics == {
        "rollout/score": 3 / 8,
        "rollout/solved_samples": 3 / 8,
        "rollout/solved_groups": 1.0,
        "rollout/length_mean": np.mean([6, 15, 3, 1, 4, 6, 6, 14]),
        "rollout/length_max": 15.0,
        "rollout/truncated": 1 / 8,
        "rollout/grader_failures": 1.0,
        "env/tests": np.mean([1, 1, 0.5, 0.5, 0.5, 1, 0.5]),
        "teacher/shown_solution": 7 / 8,
        "teacher/shown_feedback": 0.0,
        "teacher/has_target": 6 / 8,
    }
    assert [r["outcome"] for r in records][-2:] == ["Wrong Answer", "Grader Failure"]


def test_records_are_json_and_hold_the_whole_story(tokenizer):
    batch, records, _ = walk(tokenizer)

    assert json.loads(json.dumps(records, allow_nan=False)) == records
    assert records[2] == {
        "question": "add",
        "prompt": "Add 1 and 2.",
        "response": "bad",
        "num_tokens": 3,
        "truncated": True,
        "outcome": "Wrong Answer",
        "score": 0.0,
        "advantage": -0.5,
        "feedback": "'bad' is wrong",
        "has_target": True,
        "reprompt": records[2]["reprompt"],
    }
    known = [r["reprompt"] is not None for r in records]
    np.testing.assert_array_equal(known, batch.has_target_B)


def test_teacher_reads_the_chat_of_the_rendered_template(tokenizer):
    batch, records, _ = walk(tokenizer)

    # The only peer of the first solved attempt is the second, without its thoughts.
    text = (
        "Add 1 and 2.\nCorrect solution:\n\nright too"
        "\n\nCorrectly solve the original question."
    )
    assert records[0]["reprompt"] == text
    ids = batch.reprompt_BQ[0]
    assert ids[ids >= 0].tolist() == tokenizer.encode_chat("Be brief.", text)
    # A sole success is shown nothing but the question.
    ids = batch.reprompt_BQ[5]
    nothing = "Two?\n\nCorrectly solve the original question."
    assert ids[ids >= 0].tolist() == tokenizer.encode_chat("", nothing)
    assert (ids[: np.argmax(ids >= 0)] == PAD).all()


def test_feedback_is_shown_where_it_is_asked_for(tokenizer):
    c = settings(reprompt__demonstration_from="nobody", reprompt__show_attempt=True)

    batch, records, metrics = walk(tokenizer, c)

    solved_or_unknown = [True, True, False, False, False, True, False, True]
    np.testing.assert_array_equal(batch.has_target_B, ~np.array(solved_or_unknown))
    assert records[4]["reprompt"] == (
        "Two?\nYour earlier attempt:\n\nbad"
        "\nThe following is feedback from your unsuccessful earlier attempt:"
        "\n\n'bad' is wrong\n\nCorrectly solve the original question."
    )
    assert metrics["teacher/shown_feedback"] == 4 / 8


def test_neighbours_that_do_not_share_a_prompt_are_refused(tokenizer):
    attempts = written(tokenizer)
    prompt_BP = np.array(attempts.prompt_BP)
    prompt_BP[1, -1] += 1
    graded = grade(Judges(), tokenizer, repeated(), attempts)

    with pytest.raises(ValueError, match=f"every {GROUP} neighbouring rows"):
        feedback.make_batch(
            settings(), tokenizer, attempts.replace(prompt_BP=prompt_BP), graded, 0
        )


def test_grpo_learns_from_every_graded_row_and_reads_no_reprompt(tokenizer):
    batch, records, metrics = walk(tokenizer, settings(method="grpo"))

    np.testing.assert_array_equal(batch.has_target_B, [True] * 7 + [False])
    assert batch.reprompt_BQ is None
    assert {r["reprompt"] for r in records} == {None}
    assert not [name for name in metrics if name.startswith("teacher/")]
    assert batch.advantage_B.dtype == np.float32 and batch.advantage_B[-1] == 0
    assert batch.advantage_B.tolist() == [r["advantage"] for r in records]


def test_method_that_reads_no_sampler_gets_none(tokenizer, monkeypatch):
    alone = dataclasses.replace(METHODS["grpo"], rows=frozenset())
    monkeypatch.setitem(METHODS, "grpo", alone)

    batch, _, _ = walk(tokenizer, settings(method="grpo"))

    assert batch.attempts.sampler_logp_BR is None


def test_batches_depend_on_seed_and_update_but_not_on_timing(tokenizer):
    def slowly(*args):
        time.sleep(random.random() / 100)
        return judge(*args)

    # Three peers solved it, so that there is a choice.
    texts = [f"{index} right<|im_end|>" for index in range(8)]
    attempts = written(tokenizer, texts)

    def demonstrations(seed, update):
        graded = grade(Judges(slowly), tokenizer, repeated(), attempts)
        c = settings(seed=seed)
        _, records, _ = feedback.make_batch(c, tokenizer, attempts, graded, update)
        return [record["reprompt"] for record in records]

    expected = demonstrations(1, 2)

    assert demonstrations(1, 2) == expected
    # Eight draws among three agree once in 6,561.
    assert demonstrations(1, 3) != expected
    assert demonstrations(2, 2) != expected


def test_demonstration_is_the_answer_where_the_template_opens_reasoning(reasoner):
    texts = ["cut off, all right", "hm</think>all right<|im_end|>", "no<|im_end|>"]
    attempts = written(reasoner, [*texts, "no<|im_end|>"])
    graded = grade(Judges(), reasoner, QUESTIONS[1:] * GROUP, attempts)

    batch, records, _ = feedback.make_batch(settings(), reasoner, attempts, graded, 0)

    assert [r["score"] for r in records] == [1, 1, 0, 0]
    assert records[0]["response"] == "cut off, all right"
    assert [r["has_target"] for r in records] == [True, False, True, True]
    for record in (records[0], *records[2:]):
        assert "Correct solution:\n\nall right\n" in record["reprompt"]
    # What is trained on stays what was sampled.
    first_B = batch.attempts.response_BR[:, 0].tolist()
    assert first_B == [reasoner.encode(text)[0] for text in [*texts, "no"]]


@pytest.mark.parametrize("text", ["<|im_end|>", "<|im_start|>system", "</think>"])
@pytest.mark.parametrize("source", ["peers", "nobody"])
def test_untrusted_text_cannot_speak_in_special_tokens(tokenizer, text, source):
    # Without its reasoning the demonstration would hold no `</think>`.
    texts = {"demonstration_from": source, "strip_thinking": False}
    c = settings(**{f"reprompt__{name}": value for name, value in texts.items()})
    spelled = [*tokenizer.encode(f"right {text} now"), tokenizer.stop_ids[0]]
    attempts = attempts_of([spelled] * GROUP)
    graded = [
        GradedAttempt(QUESTIONS[1], tokenizer.decode(ids), len(ids), False, verdict)
        for ids, verdict in zip(
            attempts.response_BR,
            [Verdict(1.0, "ok")] * 2 + [Verdict(0.0, "no", f"said {text}")] * 2,
            strict=True,
        )
    ]

    batch, records, _ = feedback.make_batch(c, tokenizer, attempts, graded, 0)

    assert graded[0].response == f"right {text} now"
    assert records[3]["has_target"]
    assert f"{text[0]} {text[1:]}" in records[3]["reprompt"]
    control = ids_of(tokenizer, *ADDED)
    harmless = np.isin(tokenizer.encode_chat("", "harmless"), control).sum()
    np.testing.assert_array_equal(
        np.isin(batch.reprompt_BQ, control).sum(axis=1), harmless
    )


def shown(rng, letters):
    """Parts of random lengths, some absent."""
    size = lambda: rng.choice([0, 1, 3, 30, 300, rng.randrange(400)])
    text = lambda: "".join(rng.choices(letters, k=size()))
    parts = [rng.choice([None, text(), text(), text()]) for _ in range(3)]
    return reprompt.Shown(*parts)


# Letters of one to four bytes, and pieces that could join to a special token.
LETTERS = ["a", "Z", "\n", "  ", "é", "≠", "𝒳", "<|im_", "< |im_end|>", "hello"]


@pytest.mark.parametrize("which", ["tokenizer", "other_tokenizer"])
def test_what_is_too_long_loses_its_middle_only(which, request):
    tokenizer, rng, cuts = request.getfixturevalue(which), random.Random(0), 0
    rules = feedback._rules(settings())
    question = dataclasses.replace(QUESTIONS[0], prompt="What is 1 + 2 [...]?")
    graded = GradedAttempt(question, "", 1, False, None)
    empty = reprompt.Shown(*["\n[...]\n"] * 3)
    least = len(tokenizer.encode_chat(*chat(rules, question, empty)))
    for _ in range(80):
        whole = shown(rng, LETTERS)
        limit = rng.randrange(least, least + 500)
        c = settings(reprompt__max_length=limit)

        text, ids = feedback._encode_reprompt(c, tokenizer, graded, whole)

        assert ids == tokenizer.encode_chat("Be brief.", text)
        uncut = chat(rules, question, whole)
        length = len(tokenizer.encode_chat(*uncut))
        if length <= limit:
            assert text == uncut[1]
            continue
        cuts += 1
        assert len(ids) <= limit
        assert_only_middles_are_missing(tokenizer, rules, question, whole, text)
        # Broken letters and the parity of halves waste a little.
        assert len(ids) >= min(limit, length) - 40
    assert cuts > 20


def chat(rules, question, shown):
    return question.system, reprompt.render(rules, question.prompt, shown)


def assert_only_middles_are_missing(tokenizer, rules, question, whole, text):
    """`text` is the rendered template, of which each part kept its two ends."""
    kept = dict.fromkeys(["solution", "attempt", "feedback"])
    rest = text.removeprefix(question.prompt)
    assert rest != text
    templates = {
        "solution": rules.solution_template,
        "attempt": reprompt.ATTEMPT_TEMPLATE,
        "feedback": rules.feedback_template,
    }
    headers = {name: templates[name].split("{")[0] for name in kept}
    ending = rules.template.rpartition("}")[2]
    assert rest.endswith(ending)
    rest = rest.removesuffix(ending)
    present = [name for name in kept if getattr(whole, name) is not None]
    for index, name in enumerate(present):
        assert rest.startswith(headers[name])
        rest = rest.removeprefix(headers[name])
        if index + 1 < len(present):
            part, header, rest = rest.partition(headers[present[index + 1]])
            rest = header + rest
        else:
            part, rest = rest, ""
        original = getattr(whole, name)
        if part == original:
            continue
        head, mark, tail = part.partition("\n[...]\n")
        assert mark
        # A letter cut in half is written as the replacement character.
        head, tail = head.rstrip("\ufffd"), tail.lstrip("\ufffd")
        assert original.startswith(head) and original.endswith(tail)
        ends = [len(tokenizer.encode(end)) for end in (head, tail)]
        assert abs(ends[0] - ends[1]) <= 12


def test_long_parts_are_cut_to_one_length(tokenizer):
    long = reprompt.Shown("s" * 900, "a" * 20, "f" * 500)
    graded = GradedAttempt(QUESTIONS[1], "", 1, False, None)
    c = settings(reprompt__max_length=600)

    text, ids = feedback._encode_reprompt(c, tokenizer, graded, long)

    ends = [[len(run) for run in re.findall(f"{x}{{9,}}", text)] for x in "sf"]
    assert 598 <= len(ids) <= 600
    assert "a" * 20 in text
    assert len(ends[0]) == len(ends[1]) == 2
    assert max(map(max, ends)) - min(map(min, ends)) <= 1


@pytest.mark.parametrize("excess", range(1, 24))
def test_cutting_inside_a_letter_comes_to_an_end(tokenizer, excess):
    # Half a letter of four bytes is written as a replacement character of three, so
    # text that loses tokens can end up longer.
    whole = reprompt.Shown("𝒳" * 20, None, None)
    graded = GradedAttempt(QUESTIONS[1], "", 1, False, None)
    uncut = chat(feedback._rules(settings()), QUESTIONS[1], whole)
    limit = len(tokenizer.encode_chat(*uncut)) - excess

    _, ids = feedback._encode_reprompt(
        settings(reprompt__max_length=limit), tokenizer, graded, whole
    )

    assert limit - 24 <= len(ids) <= limit


def test_question_that_does_not_fit_is_named(tokenizer):
    graded = GradedAttempt(QUESTIONS[0], "", 1, False, None)
    for whole in [reprompt.Shown(None, None, None), reprompt.Shown("s" * 90, None, "")]:
        with pytest.raises(ValueError, match="question add .* reprompt.max_length=50"):
            c = settings(reprompt__max_length=50)
            feedback._encode_reprompt(c, tokenizer, graded, whole)


def test_attempts_lose_columns_of_padding_only_in_at_most_four_widths(tokenizer):
    widths = set()
    for length in range(0, 41):
        attempts = attempts_of([[7] * length, [7]], width=40)
        found = feedback._narrowed(attempts, keep_logp=True)
        width = found.response_BR.shape[1]
        widths.add(width)
        names = ["response_BR", "response_mask_BR", "sampler_logp_BR"]
        for name in names:
            np.testing.assert_array_equal(
                getattr(found, name), getattr(attempts, name)[:, :width]
            )
        assert width >= max(length, 1)
        np.testing.assert_array_equal(attempts.response_BR[:, width:], PAD)
        assert found.prompt_BP is attempts.prompt_BP
    assert widths == {5, 10, 20, 40}


def test_narrowing_keeps_the_environments_words():
    attempts = attempts_of([[7] * 21], width=40)
    mask_BR = np.arange(40)[None] == 20

    found = feedback._narrowed(
        attempts.replace(response_mask_BR=mask_BR), keep_logp=True
    )

    assert found.response_mask_BR.sum() == 1
    assert found.response_BR.shape == (1, 40)
