"""Every grader reads the answer of a response, and not its reasoning."""

import functools
import json

import pytest

from sdpo_jax import config, envs
from sdpo_jax.envs import (
    feedback_text,
    function,
    judge,
    multiple_choice,
    privileged,
    reasoning_gym,
    tool_use,
)
from sdpo_jax.envs.base import Verdict
from sdpo_jax.envs.dialogue import play
from sdpo_jax.envs.games import grid_game
from sdpo_jax.envs.games.frozen_lake import Lake
from sdpo_jax.envs.mathematics import grader as mathematics
from sdpo_jax.envs.programming.grader import Programming
from sdpo_jax.envs.rules import grader as rules
from sdpo_jax.envs.single_turn import Listed, SingleTurn, sandboxed
from sdpo_jax.questions.question import Question
from sdpo_jax.sandbox.values import Execution


class Box:
    """A sandbox that compares texts and runs nothing."""

    tier = "none"

    def run(self, program, tests, **_):
        return [self._execution(program, test) for test in tests]

    def close(self):
        pass

    def _execution(self, program, test):
        printed = lambda text: text.partition("print(")[2].partition(")")[0]
        match getattr(test, "function", "stdin"):
            case "equal":
                return Execution("ok", result=len(set(test.arguments)) == 1)
            case "score":
                return Execution("ok", result=float(test.arguments["answer"] == "4"))
            case "script":
                return Execution("ok", result={"output": printed(test.arguments[0])})
        return Execution("ok", stdout=printed(program))


class Endpoint:
    """A judge to whom the attempts that hold "4 km" are right."""

    def ask(self, messages):
        score = int("4 km" in messages[1]["content"])
        return json.dumps({"score": score, "feedback": ""}), {}


CALLS = [{"Action": "add", "Action_Input": "{}"}]
LAKE = Lake(2, frozenset(), (0, 0), (0, 1))


def asked(**data):
    return Question("1", "A: 3\nB: 4", data=data)


def of_rows(make, folder, **row):
    """The environment that `make` builds from a file of one row, and its question."""
    file = folder / "train.jsonl"
    file.write_text(json.dumps({"uid": "1", "prompt": "?"} | row))
    environment = make({"train": file})
    return environment, environment.questions("train")[0]


def programming(grader, folder):
    tests = {"inputs": ["1"], "outputs": ["4"], "testtype": "stdin"}
    make = functools.partial(Programming, sandbox=Box(), grader=grader)
    return of_rows(make, folder, tests=tests)


def maths(grader, folder):
    make = functools.partial(
        mathematics.environment, grader=grader, make_sandbox=lambda packages: Box()
    )
    return of_rows(make, folder, answer="4")


def single(grade, question, **options):
    return SingleTurn({}, grade, **options), question


# Task -> (its environment and question, a right response, a wrong one).
GRADERS = {
    "multiple_choice": (
        lambda _: single(multiple_choice.fixed, asked(answer="B")),
        "<answer>B</answer>",
        "<answer>A</answer>",
    ),
    "tool_use": (
        lambda _: single(tool_use.fixed, asked(**tool_use.data({"answer": CALLS}, ""))),
        "Action: add\nAction Input: {}",
        "Action: I might add.",
    ),
    "mathematics": (functools.partial(maths, "fixed"), "\\boxed{4}", "\\boxed{5}"),
    "programming": (
        functools.partial(programming, "fixed"),
        "```python\nprint(4)\n```",
        "```python\nprint(5)  # a longer draft\n```",
    ),
    "rules": (
        lambda _: single(
            functools.partial(rules.grade, None),
            asked(**rules.data({"rule": {"kind": "exact", "answer": "4"}}, "")),
        ),
        "4",
        "5",
    ),
    "reasoning_gym": (
        lambda _: (
            sandboxed({}, reasoning_gym.grade, Box()),
            asked(arguments={"task": "leg_counting"}),
        ),
        "<answer>4</answer>",
        "<answer>5</answer>",
    ),
    "judge": (
        lambda _: single(
            functools.partial(judge.grade, Endpoint()), asked(reference="")
        ),
        "4 km",
        "5 km",
    ),
    "game": (
        lambda _: (
            Listed({}, lambda _: grid_game.GridGameEpisode(LAKE, "one")),
            asked(),
        ),
        "```Right```",
        "```Down```",
    ),
    "own function": (
        lambda _: single(
            functools.partial(function._grade, lambda row, response: response == "4"),
            asked(row={}),
        ),
        "4",
        "5",
    ),
}
# Those whose feedback on a response without an answer is not their own or the user's.
SAYS_WHY = [name for name in GRADERS if name != "own function"]


@pytest.mark.parametrize("name", GRADERS)
def test_answer_counts_and_reasoning_does_not(name, tmp_path):
    make, right, wrong = GRADERS[name]
    environment, question = make(tmp_path)
    score = lambda response: environment.start(question).act(response, False).score

    assert score(right) == score(f"<think>{wrong}</think>\n\n{right}") == 1
    assert score(f"{wrong}\n</think>\n\n{right}") == 1
    assert score(wrong) == score(f"{right}\n</think>\n\n{wrong}") == 0
    assert score(f"<think>{right}</think>{wrong}") == 0
    assert score(f"<think>{right}") == score(f"{right}</think>\n") == 0


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("name", SAYS_WHY)
def test_feedback_says_that_all_is_reasoning(name, truncated, tmp_path):
    make, right, _ = GRADERS[name]
    environment, question = make(tmp_path)
    told = lambda response: environment.start(question).act(response, truncated)

    assert feedback_text.ALL_REASONING in told(f"<think>{right}").feedback
    for other in ("", "hm", f"<think>{right}</think>hm"):
        assert feedback_text.ALL_REASONING not in told(other).feedback


def test_reference_solution_stays_the_only_feedback():
    grade = functools.partial(privileged.grade, Box())
    environment, question = single(grade, asked(answer="4", solution="It is 4."))

    verdict = environment.start(question).act("<think>\\boxed{4}", True)

    assert (verdict.score, verdict.feedback) == (0, "It is 4.")


@pytest.mark.parametrize(
    "make, response",
    [
        (functools.partial(maths, "official"), "<think>\\boxed{4}"),
        (functools.partial(programming, "official"), "<think>\n```\nprint(4)\n```"),
    ],
)
def test_published_graders_read_the_entire_response(make, response, tmp_path):
    environment, question = make(tmp_path)

    assert environment.reads_reasoning
    assert environment.start(question).act(response, False).score == 1


@pytest.mark.parametrize("grader", ["fixed", "official"])
@pytest.mark.parametrize("name", ["multiple_choice", "tool_use"])
def test_only_the_official_mode_of_rows_reads_the_reasoning(name, grader, tmp_path):
    c = config.default()
    c.env.name, c.env.grader = name, grader
    for split in config.SPLITS:
        row = {"uid": split, "prompt": "?", "answer": CALLS}
        row |= {"answer": "B", "dataset": "gpqa"} if name == "multiple_choice" else {}
        c.env[split] = str(tmp_path / f"{split}.jsonl")
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))

    environment = envs.from_config(c)

    right = {"multiple_choice": "B", "tool_use": "Action: add\nAction Input: {}"}[name]
    act = environment.start(environment.questions("train")[0]).act
    assert act(f"<think>{right}", False).score == (grader == "official")


def test_every_act_of_a_game_is_read_without_its_reasoning():
    environment = Listed({}, lambda _: grid_game.GridGameEpisode(LAKE, "many"))
    policy = lambda turns: ("<think>```Down```</think>```Right```", False)

    _, verdict = play(environment, asked(), policy, 1)

    assert verdict == Verdict(1.0, "Accepted", measurements=verdict.measurements)
