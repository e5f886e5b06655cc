import json

import pytest

from sdpo_jax import reprompt
from sdpo_jax.envs import privileged
from sdpo_jax.envs.mathematics import grader
from sdpo_jax.questions import openthoughts
from sdpo_jax.questions.question import Question
from sdpo_jax.sandbox.pool import Sandbox

ROW = {"uid": "a", "prompt": "2+2?", "solution": "Two and two are 4."}


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=1, packages=grader.packages("fixed")) as sandbox:
        yield sandbox


def asked(**row):
    return Question("a", "?", data=privileged.data(row, "here"))


@pytest.mark.parametrize(
    "response, truncated, score, outcome",
    [
        ("\\boxed{4}", False, 1, "Accepted"),
        ("\\boxed{8/2}", False, 1, "Accepted"),
        ("\\boxed{5}", False, 0, "Wrong Answer"),
        ("4", False, 0, "Incorrect Format"),
        ("4", True, 0, "Truncated"),
        ("", False, 0, "Incorrect Format"),
    ],
)
def test_every_attempt_gets_the_solution_and_the_score_of_its_answer(
    sandbox, response, truncated, score, outcome
):
    question = asked(solution="It is 4.", answer="4")

    verdict = privileged.grade(sandbox, question, response, truncated)

    assert (verdict.score, verdict.outcome) == (score, outcome)
    assert verdict.feedback == "It is 4."
    assert verdict.measurements["format"] == response.startswith("\\")


def test_without_an_answer_nothing_is_scored():
    verdict = privileged.grade(None, asked(solution="It is 4."), "\\boxed{4}", False)

    assert (verdict.score, verdict.outcome) == (0, "Not Graded")
    assert verdict.feedback == "It is 4."


def test_solution_is_made_harmless_and_never_cut():
    long = "Step.\n" * 5000
    question = asked(solution=f"<|im_end|>{long}Done.<think>")

    told = privileged.grade(None, question, "x", False).feedback

    assert told == f"< |im_end| >{long}Done.< think>"


def test_teacher_is_shown_the_solution_of_solved_attempts_too():
    c = {"demonstration_from": "nobody", "show_feedback": "always"}
    texts = dict.fromkeys(("template", "solution_template"), "")
    rules = reprompt.Rules(
        **c, **texts, feedback_template="", show_attempt=False, strip_thinking=True
    )

    shown = reprompt.choose(rules, ["x", "y"], [True, False], ["S", "S"], None)

    assert [(s.solution, s.feedback) for s in shown] == [(None, "S"), (None, "S")]


def write(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("answer", [None, "4"])
def test_environment_starts_a_sandbox_only_where_there_is_an_answer(tmp_path, answer):
    started = []

    def start(packages):
        started.append(Sandbox(workers=1, packages=packages))
        return started[0]

    file = write(tmp_path / "rows.jsonl", ROW | {"answer": answer})

    environment = privileged.environment({"train": file}, start)

    (question,) = environment.questions("train")
    verdict = environment.start(question).act("\\boxed{4}", False)
    assert (verdict.score, bool(started)) == (answer == "4",) * 2
    environment.close()


@pytest.mark.parametrize(
    "row, told",
    [
        ({"solution": None}, "row 2, field solution: expected str, got None"),
        ({"solution": ["x"]}, "row 2, field solution: expected str"),
        ({"solution": " \n"}, "row 2, field solution: is empty"),
        ({"solution": "\u200b"}, "row 2, field solution: is empty"),
        ({"solution": "", "answer": "4"}, "row 2, field solution: is empty"),
        ({"answer": ""}, "row 2, field answer: expected text or a number"),
        (
            {"solution": None, "answer": "4"},
            "env.train: question b has no solution .1 in all.; every training",
        ),
    ],
)
def test_row_that_cannot_teach_is_refused_by_name(tmp_path, row, told):
    file = write(tmp_path / "rows.jsonl", ROW, ROW | {"uid": "b"} | row)

    with pytest.raises(ValueError, match=told):
        privileged.environment({"train": file})


def test_questions_that_are_not_trained_on_do_with_an_answer(tmp_path):
    train = write(tmp_path / "train.jsonl", ROW)
    heldout = write(
        tmp_path / "heldout.jsonl", {"uid": "h", "prompt": "?", "answer": 4}
    )

    environment = privileged.environment({"train": train, "heldout": heldout})

    (question,) = environment.questions("heldout")
    verdict = environment.start(question).act("\\boxed{4}", False)
    assert (verdict.score, verdict.feedback) == (1, "")
    environment.close()


REASONED = {"problem": " 1+1? ", "deepseek_reasoning": "Hm.", "source": "s"}


@pytest.mark.parametrize(
    "row, solution, answer",
    [
        ({"solution": "So \\boxed{2}.", "Answer": "2"}, "So \\boxed{2}.", "2"),
        ({"solution": "So 2.", "Answer": "2"}, "So 2.", "2"),
        ({"solution": "So 2.", "Answer": 2}, "So 2.", "2"),
        ({"solution": "So \\boxed{2}.", "Answer": None}, "So \\boxed{2}.", "2"),
        ({"solution": "So \\boxed{2}.", "Answer": " "}, "So \\boxed{2}.", "2"),
        ({"solution": "\\boxed{1} or \\boxed{2}"}, "\\boxed{1} or \\boxed{2}", None),
        ({"solution": "\\boxed{ }"}, "\\boxed{ }", None),
        (
            {"ground_truth_solution": "\\boxed{2}", "deepseek_solution": "\\boxed{3}"},
            "\\boxed{2}",
            "2",
        ),
        # What a model wrote is shown, and graded by nobody.
        (
            {"ground_truth_solution": None, "deepseek_solution": "\\boxed{3}"},
            "\\boxed{3}",
            None,
        ),
    ],
)
def test_openthoughts_row_becomes_one_of_ours(row, solution, answer):
    converted = openthoughts.from_openthoughts(REASONED | {"domain": "math"} | row)

    assert converted["prompt"].startswith("1+1?\n\n")
    assert converted["prompt"].endswith("\\boxed{}.")
    assert converted["solution"] == solution
    assert converted.get("answer") == answer
    assert privileged.data(converted, "here")["solution"] == solution


@pytest.mark.parametrize("domain", ["code", "science", "puzzle"])
def test_only_mathematics_is_asked_for_in_a_box(domain):
    row = REASONED | {"domain": domain, "deepseek_solution": "\\boxed{x}"}

    converted = openthoughts.from_openthoughts(row)

    assert converted.keys() == {"uid", "prompt", "solution"}
    assert converted["prompt"] == "1+1?"


def test_uid_is_of_the_problem():
    uids = [
        openthoughts.from_openthoughts({"problem": text, "solution": "s"})["uid"]
        for text in ("a", "a ", "b", "\ud800")
    ]

    assert uids[0] == uids[1] == "ca978112ca1bbdca"
    assert len(set(uids)) == 3


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"problem": "?"},
        {"problem": " ", "solution": "s"},
        {"problem": "?", "solution": " ", "deepseek_solution": None},
        {"problem": "?", "solution": 5},
        {"problem": None, "solution": "s"},
    ],
)
def test_openthoughts_row_without_problem_or_solution_is_refused(row):
    with pytest.raises(ValueError, match="a row of OpenThoughts"):
        openthoughts.from_openthoughts(row)
