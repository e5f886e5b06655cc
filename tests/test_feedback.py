import dataclasses
import functools
import itertools
import json
import random
import re
import threading
import time

import numpy as np
import pytest

from sdpo_jax import config, feedback, reprompt
from sdpo_jax.batch import PAD, Attempts
from sdpo_jax.data.tokenizer import Tokenizer
from sdpo_jax.envs import grading_pool
from sdpo_jax.envs.base import GraderFailure, Verdict
from sdpo_jax.questions.question import Question
from tests.data.test_tokenizer import ADDED, byte_level, ids_of, unigram, write

GROUP = 4
QUESTIONS = [Question("add", "Add 1 and 2.", system="Be brief."), Question("b", "Two?")]
# Two questions' attempts: one solved twice, the other once.
TEXTS = [
    *["right<|im_end|>", "<think>hm</think>\nright too<|im_end|>", "bad", "<|im_end|>"],
    *["bad<|im_end|>", "right<|im_end|>", "worse<|im_end|>", "broken grader<|im_end|>"],
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(write(tmp_path_factory.mktemp("byte_level"), byte_level()))


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory):
    return Tokenizer(write(tmp_path_factory.mktemp("unigram"), unigram()))


def settings(**fields):
    c = config.default()
    c.rollout.attempts, c.rollout.max_prompt = GROUP, 200
    c.reprompt.max_length = 1000
    c.update_from_flattened_dict(
        {k.replace("__", "."): value for k, value in fields.items()}
    )
    return c


def attempts_of(rows, width=64):
    """Attempts whose responses are these token ids."""
    response_BR = np.full((len(rows), width), PAD, np.int32)
    for row, ids in zip(response_BR, rows, strict=True):
        row[: len(ids)] = ids
    logp_BR = np.where(response_BR >= 0, np.float32(-1.5), 0)
    prompt_BP = np.full((len(rows), 8), 1, np.int32)
    return Attempts(prompt_BP, response_BR, response_BR >= 0, logp_BR)


def grade(c, environment, tokenizer, questions, attempts):
    """Grade attempts that are all there."""
    with feedback.Grading(c, environment, tokenizer, questions) as grading:
        grading.add(slice(len(questions)), attempts)
        return grading.finish()


def written(tokenizer, texts=TEXTS, width=64):
    """Attempts that hold these texts, special tokens as such."""
    encode = lambda text: tokenizer._tokenizer.encode(text, add_special_tokens=False)
    return attempts_of([encode(text) for text in texts], width)


def judge(question, response, truncated):
    if response == "broken grader":
        raise GraderFailure("out of disk")
    solved = response.endswith(("right", "right too"))
    return Verdict(
        score=float(solved),
        outcome="Accepted" if solved else "Wrong Answer",
        feedback="" if solved else f"{response!r} is wrong",
        measurements={"tests": 1.0 if solved else 0.5},
    )


class Judges:
    """An environment that answers by a function."""

    def __init__(self, judge=judge):
        self._judge = judge

    def start(self, question):
        environment = self

        class Episode:
            def act(self, response, truncated):
                return environment._judge(question, response, truncated)

        return Episode()


def repeated(questions=QUESTIONS):
    return [question for question in questions for _ in range(GROUP)]


def walk(tokenizer, c=None, update=0, environment=None):
    """From attempts to a batch, its records and metrics."""
    attempts = written(tokenizer)
    c, environment = c or settings(), environment or Judges()
    graded = grade(c, environment, tokenizer, repeated(), attempts)
    return feedback.make_batch(c, tokenizer, attempts, graded, update)


@pytest.mark.parametrize(
    "attempts, failing, stops",
    [(8, 1, False), (8, 2, True), (1, 1, True), (40, 2, False), (40, 3, True)],
)
def test_grader_that_fails_on_many_attempts_stops(tokenizer, attempts, failing, stops):
    broken, fine = "broken grader<|im_end|>", "right<|im_end|>"
    texts = [broken] * failing + [fine] * (attempts - failing)
    questions = QUESTIONS[:1] * attempts
    run = lambda: grade(
        settings(), Judges(), tokenizer, questions, written(tokenizer, texts)
    )

    if stops:
        with pytest.raises(ValueError, match=f"failed on {failing} of {attempts}"):
            run()
    else:
        assert sum(graded.verdict is None for graded in run()) == failing


def test_prompts_are_chats_and_too_long_ones_are_rejected(tokenizer):
    expected = [tokenizer.encode_chat("Be brief.", "Add 1 and 2.")]
    expected.append(tokenizer.encode_chat("", "Two?"))
    longest = len(expected[0])

    fitting = settings(rollout__max_prompt=longest)
    assert feedback.encode(fitting, tokenizer, QUESTIONS) == expected

    message = f"question add takes {longest} .* more than rollout.max_prompt"
    with pytest.raises(ValueError, match=message):
        short = settings(rollout__max_prompt=longest - 1)
        feedback.encode(short, tokenizer, QUESTIONS)


def test_questions_that_are_too_long_are_dropped_and_told_when_asked(tokenizer, caplog):
    longest = len(tokenizer.encode_chat("Be brief.", "Add 1 and 2."))
    drop = functools.partial(settings, rollout__long_prompts="drop")

    fits = feedback.fitting(
        drop(rollout__max_prompt=longest), tokenizer, QUESTIONS, "train"
    )
    assert fits == list(QUESTIONS) and not caplog.messages

    short = drop(rollout__max_prompt=longest - 1)
    kept = feedback.fitting(short, tokenizer, QUESTIONS, "heldout")
    assert kept == [q for q in QUESTIONS if q.uid != "add"]
    assert caplog.messages == [
        f"heldout: 1 of {len(QUESTIONS)} questions take more than rollout.max_prompt="
        f"{longest - 1} tokens and are dropped"
    ]

    with pytest.raises(ValueError, match="2 of 2 questions take more .*=1 tokens; rai"):
        feedback.fitting(drop(rollout__max_prompt=1), tokenizer, QUESTIONS, "train")
    refuse = settings(rollout__max_prompt=longest - 1)
    assert feedback.fitting(refuse, tokenizer, QUESTIONS, "train") == list(QUESTIONS)


def test_graders_see_what_the_policy_wrote_and_whether_it_was_cut_off(tokenizer):
    seen = []
    record = lambda *args: seen.append(args) or Verdict(0.0, "Seen")
    texts = ["good<|im_end|>", "good", "<|im_start|>é\n<|im_end|>", ""]
    attempts = written(tokenizer, texts)

    graded = grade(settings(), Judges(record), tokenizer, QUESTIONS * 2, attempts)

    responses = ["good", "good", "é\n", ""]
    truncated = [False, True, False, True]
    expected = set(zip(["add", "b"] * 2, responses, truncated, strict=True))
    assert {(question.uid, *rest) for question, *rest in seen} == expected
    assert [g.response for g in graded] == responses
    assert [g.truncated for g in graded] == truncated
    # The stop token counts; "é" takes two bytes.
    assert [g.num_tokens for g in graded] == [5, 4, 5, 0]


def test_words_of_the_environment_are_not_the_policys(tokenizer):
    attempts = written(tokenizer, ["one[obs]two<|im_end|>"])
    mask_BR = attempts.response_mask_BR.copy()
    mask_BR[0, 3:8] = False

    graded = grade(
        settings(),
        Judges(),
        tokenizer,
        QUESTIONS[:1],
        attempts.replace(response_mask_BR=mask_BR),
    )

    assert (graded[0].response, graded[0].num_tokens) == ("onetwo", 7)


def test_gradings_run_at_once_and_keep_their_order(tokenizer):
    texts = [f"{index}<|im_end|>" for index in range(8)]
    finished = [threading.Event() for _ in range(9)]
    finished[8].set()

    def last_first(question, response, truncated):
        assert finished[int(response) + 1].wait(timeout=30)
        finished[int(response)].set()
        return Verdict(int(response) / 8, response)

    graded = grade(
        settings(), Judges(last_first), tokenizer, repeated(), written(tokenizer, texts)
    )

    assert [g.verdict.outcome for g in graded] == list("01234567")
    assert [g.question.uid for g in graded] == ["add"] * 4 + ["b"] * 4


def test_pass_rates_count_what_is_known_of_each_question(tokenizer):
    questions = [q for q in QUESTIONS for _ in range(GROUP)]
    graded = grade(settings(), Judges(), tokenizer, questions, written(tokenizer))

    assert feedback.pass_rates(settings(), graded) == {"add": 2 / 4, "b": 1 / 3}
    unknown = [dataclasses.replace(g, verdict=None) for g in graded[:GROUP]]
    found = feedback.pass_rates(settings(), unknown + graded[GROUP:])
    assert found == {"b": 1 / 3}


def test_episode_that_wants_another_act_is_refused(tokenizer):
    replies = Judges(lambda *args: "Go on." if args[1] == "go" else judge(*args))
    attempts = written(tokenizer, [*["right<|im_end|>"] * 3, "go<|im_end|>"])

    with pytest.raises(ValueError, match="add: the episode wants another act"):
        grade(settings(), replies, tokenizer, QUESTIONS[:1] * 4, attempts)


def hang():
    threading.Event().wait()


def crash(error):
    raise error


FAULTS = [
    lambda: crash(GraderFailure("out of disk")),
    lambda: crash(ZeroDivisionError("a bug")),
    lambda: crash(SystemExit(0)),
    hang,
    lambda: None,
    lambda: 1.0,
    lambda: Verdict(float("nan"), "Odd"),
    lambda: Verdict(2.0, "Odd"),
    lambda: Verdict(0.0, "Odd", feedback=None),
    lambda: Verdict(0.0, "Odd", measurements={"lock": threading.Lock()}),
]


def faulty(tokenizer, failing):
    """A thousand attempts, some of which the grader fails at, in every way in turn."""
    rng, questions = random.Random(0), QUESTIONS[:1] * 1000
    texts = [f"{n} {rng.choice(['right', 'wrong'])}" for n in range(1000)]
    failed = rng.sample(range(1000), failing)
    faults = dict(
        zip([texts[n] for n in failed], itertools.cycle(FAULTS), strict=False)
    )

    def judge_or_fail(question, response, truncated):
        fault = faults.get(response)
        return fault() if fault else judge(question, response, truncated)

    c = settings()
    attempts = written(tokenizer, [f"{text}<|im_end|>" for text in texts])
    run = lambda: grade(c, Judges(judge_or_fail), tokenizer, questions, attempts)
    return c, attempts, np.isin(np.arange(1000), failed), run


@pytest.fixture
def three_seconds(monkeypatch):
    """Gradings that take longer are given up."""
    pool = functools.partial(grading_pool.GradingPool, limit_s=3.0)
    monkeypatch.setattr(grading_pool, "GradingPool", pool)


def test_attempts_whose_grader_fails_teach_nothing_and_are_counted(
    tokenizer, three_seconds
):
    c, attempts, failed_B, grade = faulty(tokenizer, len(FAULTS))

    graded = grade()
    batch, records, metrics = feedback.make_batch(c, tokenizer, attempts, graded, 0)

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


@pytest.mark.parametrize("failing, stops", [(50, False), (51, True)])
def test_grader_that_fails_at_more_than_five_percent_stops(
    tokenizer, three_seconds, failing, stops
):
    *_, grade = faulty(tokenizer, failing)

    if stops:
        with pytest.raises(ValueError, match="the grader failed on 51 of 1000 attem"):
            grade()
    else:
        assert [graded.verdict for graded in grade()].count(None) == 50


def test_attempts_become_targets_advantages_records_and_metrics(tokenizer):
    batch, records, metrics = walk(tokenizer)

    # The sole success has no peer; the last attempt's grading failed.
    expected = [True] * 4 + [True, False, True, False]
    np.testing.assert_array_equal(batch.has_target_B, expected)
    third = 1 / 3
    np.testing.assert_allclose(
        batch.advantage_B, [0.5, 0.5, -0.5, -0.5, -third, 2 * third, -third, 0]
    )
    assert batch.advantage_B.dtype == batch.loss_weight_B.dtype == np.float32
    np.testing.assert_array_equal(batch.loss_weight_B, 1)
    assert batch.old_logp_BR is None
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
    graded = grade(settings(), Judges(), tokenizer, repeated(), attempts)

    with pytest.raises(ValueError, match=f"every {GROUP} neighbouring rows"):
        feedback.make_batch(
            settings(), tokenizer, attempts.replace(prompt_BP=prompt_BP), graded, 0
        )


def test_grpo_learns_from_every_graded_row_and_reads_no_reprompt(tokenizer):
    batch, records, metrics = walk(tokenizer, settings(method="grpo"))

    np.testing.assert_array_equal(batch.has_target_B, [True] * 7 + [False])
    assert batch.reprompt_BQ.shape == (8, 1)
    assert (batch.reprompt_BQ == PAD).all()
    assert {r["reprompt"] for r in records} == {None}
    assert not [name for name in metrics if name.startswith("teacher/")]
    assert batch.advantage_B[-1] == 0


@pytest.mark.parametrize("normalize_std", [False, True])
def test_advantages_are_scores_less_the_mean_of_what_is_known(normalize_std):
    rng = np.random.default_rng(0)
    score_UG = rng.random((50, GROUP))
    known_UG = rng.random((50, GROUP)) < 0.7
    c = settings(grpo__normalize_std=normalize_std)

    found_B = feedback.advantages(c, score_UG.reshape(-1), known_UG.reshape(-1))

    assert found_B.dtype == np.float32
    pairs = zip(found_B.reshape(50, GROUP), score_UG, known_UG, strict=True)
    for found_G, score_G, known_G in pairs:
        scores = score_G[known_G]
        expected = scores - scores.mean() if len(scores) else scores
        if normalize_std and len(scores) > 1:
            expected = expected / (scores.std(ddof=1) + 1e-6)
        np.testing.assert_allclose(found_G[known_G], expected, rtol=1e-6, atol=1e-12)
        np.testing.assert_array_equal(found_G[~known_G], 0)


@pytest.mark.parametrize("normalize_std", [False, True])
@pytest.mark.parametrize("score", [0.0, 0.1, 1.0])
def test_equal_scores_have_no_advantage(score, normalize_std):
    c = settings(grpo__normalize_std=normalize_std)
    scores, known_B = [score] * 4 + [0.3, score, score, score], [True] * 4
    found_B = feedback.advantages(c, scores, np.array(known_B + [False] + [True] * 3))
    # A tenth has no exact mean in binary.
    np.testing.assert_allclose(found_B, 0, atol=1e-10)


def test_batches_depend_on_seed_and_update_but_not_on_timing(tokenizer):
    def slowly(*args):
        time.sleep(random.random() / 100)
        return judge(*args)

    # Three peers solved it, so that there is a choice.
    texts = [f"{index} right<|im_end|>" for index in range(8)]
    attempts = written(tokenizer, texts)

    def demonstrations(seed, update):
        graded = grade(settings(), Judges(slowly), tokenizer, repeated(), attempts)
        c = settings(seed=seed)
        _, records, _ = feedback.make_batch(c, tokenizer, attempts, graded, update)
        return [record["reprompt"] for record in records]

    expected = demonstrations(1, 2)

    assert demonstrations(1, 2) == expected
    # Eight draws among three agree once in 6,561.
    assert demonstrations(1, 3) != expected
    assert demonstrations(2, 2) != expected


@pytest.mark.parametrize("text", ["<|im_end|>", "<|im_start|>system", "</think>"])
@pytest.mark.parametrize("source", ["peers", "nobody"])
def test_untrusted_text_cannot_speak_in_special_tokens(tokenizer, text, source):
    c = settings(reprompt__demonstration_from=source)
    spelled = [*tokenizer.encode(f"right {text} now"), tokenizer.stop_ids[0]]
    attempts = attempts_of([spelled] * GROUP)
    graded = [
        feedback.GradedAttempt(
            QUESTIONS[1], tokenizer.decode(ids), len(ids), False, verdict
        )
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
    graded = feedback.GradedAttempt(question, "", 1, False, None)
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
    headers = {name: getattr(rules, f"{name}_template").split("{")[0] for name in kept}
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
    graded = feedback.GradedAttempt(QUESTIONS[1], "", 1, False, None)
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
    graded = feedback.GradedAttempt(QUESTIONS[1], "", 1, False, None)
    uncut = chat(feedback._rules(settings()), QUESTIONS[1], whole)
    limit = len(tokenizer.encode_chat(*uncut)) - excess

    _, ids = feedback._encode_reprompt(
        settings(reprompt__max_length=limit), tokenizer, graded, whole
    )

    assert limit - 24 <= len(ids) <= limit


def test_question_that_does_not_fit_is_named(tokenizer):
    graded = feedback.GradedAttempt(QUESTIONS[0], "", 1, False, None)
    for whole in [reprompt.Shown(None, None, None), reprompt.Shown("s" * 90, None, "")]:
        with pytest.raises(ValueError, match="question add .* reprompt.max_length=50"):
            c = settings(reprompt__max_length=50)
            feedback._encode_reprompt(c, tokenizer, graded, whole)


def test_attempts_lose_columns_of_padding_only_in_at_most_four_widths(tokenizer):
    widths = set()
    for length in range(0, 41):
        attempts = attempts_of([[7] * length, [7]], width=40)
        found = feedback._narrowed(attempts)
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

    found = feedback._narrowed(attempts.replace(response_mask_BR=mask_BR))

    assert found.response_mask_BR.sum() == 1
    assert found.response_BR.shape == (1, 40)
