import dataclasses
import functools
import threading

import pytest

from sdpo_jax import collect
from sdpo_jax.data.tokenizer import Tokenizer
from sdpo_jax.envs import grading_pool
from sdpo_jax.envs.base import Verdict
from sdpo_jax.envs.single_turn import SingleTurn
from sdpo_jax.questions.question import Question
from tests.data.test_tokenizer import CHATML, OPENS, byte_level, unigram, write
from tests.graded import (
    GROUP,
    QUESTIONS,
    Judges,
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


@pytest.mark.parametrize(
    "attempts, failing, stops",
    [(8, 1, False), (8, 2, True), (1, 1, True), (40, 2, False), (40, 3, True)],
)
def test_grader_that_fails_on_many_attempts_stops(tokenizer, attempts, failing, stops):
    broken, fine = "broken grader<|im_end|>", "right<|im_end|>"
    texts = [broken] * failing + [fine] * (attempts - failing)
    questions = QUESTIONS[:1] * attempts
    run = lambda: grade(Judges(), tokenizer, questions, written(tokenizer, texts))

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
    assert collect.encode(fitting, tokenizer, QUESTIONS) == expected

    message = f"question add takes {longest} .* more than rollout.max_prompt"
    with pytest.raises(ValueError, match=message):
        short = settings(rollout__max_prompt=longest - 1)
        collect.encode(short, tokenizer, QUESTIONS)


def test_questions_that_are_too_long_are_dropped_and_told_when_asked(tokenizer, caplog):
    longest = len(tokenizer.encode_chat("Be brief.", "Add 1 and 2."))
    drop = functools.partial(settings, rollout__long_prompts="drop")

    fits = collect.drop_long_prompts(
        drop(rollout__max_prompt=longest), tokenizer, QUESTIONS, "train"
    )
    assert fits == list(QUESTIONS) and not caplog.messages

    short = drop(rollout__max_prompt=longest - 1)
    kept = collect.drop_long_prompts(short, tokenizer, QUESTIONS, "heldout")
    assert kept == [q for q in QUESTIONS if q.uid != "add"]
    assert caplog.messages == [
        f"heldout: 1 of {len(QUESTIONS)} questions take more than rollout.max_prompt="
        f"{longest - 1} tokens and are dropped"
    ]

    with pytest.raises(ValueError, match="2 of 2 questions take more .*=1 tokens; rai"):
        collect.drop_long_prompts(
            drop(rollout__max_prompt=1), tokenizer, QUESTIONS, "train"
        )
    refuse = settings(rollout__max_prompt=longest - 1)
    assert collect.drop_long_prompts(refuse, tokenizer, QUESTIONS, "train") == list(
        QUESTIONS
    )


def test_graders_see_what_the_policy_wrote_and_whether_it_was_cut_off(tokenizer):
    seen = []
    record = lambda *args: seen.append(args) or Verdict(0.0, "Seen")
    texts = ["good<|im_end|>", "good", "<|im_start|>é\n<|im_end|>", ""]
    attempts = written(tokenizer, texts)

    graded = grade(Judges(record), tokenizer, QUESTIONS * 2, attempts)

    responses = ["good", "good", "é\n", ""]
    truncated = [False, True, False, True]
    expected = set(zip(["add", "b"] * 2, responses, truncated, strict=True))
    assert {(question.uid, *rest) for question, *rest in seen} == expected
    assert [g.response for g in graded] == responses
    assert [g.truncated for g in graded] == truncated
    # The stop token counts; "é" takes two bytes.
    assert [g.num_tokens for g in graded] == [5, 4, 5, 0]


# Whether the template opens the reasoning -> the answers in ENDINGS.
ENDINGS = ["right", "no</think>right<|im_end|>", "right</think>no<|im_end|>"]
ANSWERS = {True: ["", "right", "no"], False: ["right", "right", "no"]}


@pytest.mark.parametrize("opens", [True, False])
def test_graders_get_the_answer_however_the_reasoning_began(request, opens):
    tokenizer = request.getfixturevalue("reasoner" if opens else "tokenizer")
    seen, questions = {}, [dataclasses.replace(QUESTIONS[0], uid=n) for n in range(3)]
    record = lambda question, *args: seen.update({question.uid: args}) or Verdict(1, "")
    attempts = written(tokenizer, ENDINGS)
    run = lambda **reads: grade(
        SingleTurn({}, record, **reads), tokenizer, questions, attempts
    )

    graded = run()
    assert [seen[n] for n in range(3)] == [
        (answer, n == 0) for n, answer in enumerate(ANSWERS[opens])
    ]

    run(reads_reasoning=True)
    sampled = [ending.removesuffix("<|im_end|>") for ending in ENDINGS]
    assert [seen[n] for n in range(3)] == [(s, n == 0) for n, s in enumerate(sampled)]
    assert [g.response for g in graded] == sampled
    assert [g.turn for g in graded] == ["<think>" * opens + s for s in sampled]


PLAIN = "{{ messages[-1].content }}"


@pytest.mark.parametrize(
    "template, prompt, opened",
    [
        (OPENS, "Two?", True),
        (OPENS.replace("<think>\\n\\n", "<think>"), "Why </think>?", True),
        (CHATML, "Two?", False),
        (CHATML, "First write <think>", False),
        (CHATML.split("{%- if enable")[0], "First write <think>", False),
        (PLAIN, "Two?", False),
        (PLAIN + "<think>\n", "Two?", True),
    ],
)
@pytest.mark.parametrize("backend", [byte_level, unigram])
def test_reasoning_that_a_template_opens_is_known(
    tmp_path, backend, template, prompt, opened
):
    folder = write(tmp_path, backend(), chat_template=template)
    tokenizer = Tokenizer(folder, enable_thinking=template is not CHATML)
    questions, attempts = [Question("q", prompt)], written(tokenizer, ["right"])

    (graded,) = grade(Judges(), tokenizer, questions, attempts)

    assert graded.turn == "<think>" * opened + "right"


def test_words_of_the_environment_are_not_the_policys(tokenizer):
    attempts = written(tokenizer, ["one[obs]two<|im_end|>"])
    mask_BR = attempts.response_mask_BR.copy()
    mask_BR[0, 3:8] = False

    graded = grade(
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

    graded = grade(Judges(last_first), tokenizer, repeated(), written(tokenizer, texts))

    assert [g.verdict.outcome for g in graded] == list("01234567")
    assert [g.question.uid for g in graded] == ["add"] * 4 + ["b"] * 4


def test_pass_rates_count_what_is_known_of_each_question(tokenizer):
    questions = [q for q in QUESTIONS for _ in range(GROUP)]
    graded = grade(Judges(), tokenizer, questions, written(tokenizer))

    assert collect.pass_rates(settings(), graded) == {"add": 2 / 4, "b": 1 / 3}
    unknown = [dataclasses.replace(g, verdict=None) for g in graded[:GROUP]]
    found = collect.pass_rates(settings(), unknown + graded[GROUP:])
    assert found == {"b": 1 / 3}


def test_episode_that_wants_another_act_is_refused(tokenizer):
    replies = Judges(lambda *args: "Go on." if args[1] == "go" else judge(*args))
    attempts = written(tokenizer, [*["right<|im_end|>"] * 3, "go<|im_end|>"])

    with pytest.raises(ValueError, match="add: the episode wants another act"):
        grade(replies, tokenizer, QUESTIONS[:1] * 4, attempts)


@pytest.mark.parametrize("failing, stops", [(50, False), (51, True)])
def test_grader_that_fails_at_more_than_five_percent_stops(
    tokenizer, failing, stops, monkeypatch
):
    monkeypatch.setattr(grading_pool, "LIMIT_S", 3.0)
    *_, grade = faulty(tokenizer, failing)

    if stops:
        with pytest.raises(ValueError, match="the grader failed on 51 of 1000 attem"):
            grade()
    else:
        assert [graded.verdict for graded in grade()].count(None) == 50
