"""Official modes beside the code they follow, where a checkout of it is at hand.

OFFICIAL_SDPO=path/to/lasgroup/SDPO python -m pytest tests/envs/test_official_graders.py
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import random
import sys

import pytest

from sdpo_jax.envs import multiple_choice, tool_use
from sdpo_jax.envs.programming import official as official_programs
from sdpo_jax.envs.programming.grader import PACKAGES
from sdpo_jax.questions.question import Question
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Limits
from tests.envs.mathematics.test_grader import CASES
from tests.envs.programming import test_honest, test_official

CHECKOUT = os.environ.get("OFFICIAL_SDPO")
pytestmark = pytest.mark.skipif(
    not CHECKOUT, reason="OFFICIAL_SDPO names no checkout of lasgroup/SDPO"
)
COUNT = 20_000


def module(name):
    folder = pathlib.Path(CHECKOUT) / "verl" / "utils" / "reward_score" / "feedback"
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def official(name):
    theirs = module(name)
    return lambda response, answer: theirs.compute_score(response, answer)["score"]


@pytest.mark.parametrize("answer, given, official_score, _", CASES)
def test_mathematics_is_expected_to_score_as_the_official_code(
    answer, given, official_score, _
):
    folder = pathlib.Path(CHECKOUT) / "verl" / "utils" / "reward_score" / "feedback"
    spec = importlib.util.spec_from_file_location("math_", folder / "math.py")
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    response = "\\boxed{" + given + "}"

    found = theirs.compute_score(response, answer, {"split": "train"})

    assert found["score"] == official_score


CHOICE_PIECES = (
    *("<answer>", "</answer>", "<reasoning>", "</reasoning>", "\\boxed{", "}", "x"),
    *("A", "B", "C", "D", "E", "I", "J", "a", "b", "k", "(", ")", ".", "/", "\n", " "),
    *(" is ", "Answer: ", "answer is ", "The ANSWER IS ", "**", ", "),
)


@pytest.mark.parametrize(
    "dataset, name",
    [("sciknoweval", "mcq"), ("gpqa", "gpqa"), ("mmlu_pro", "mmlu_pro")],
)
def test_choices_score_as_in_the_official_code(dataset, name):
    theirs, rng, right = official(name), random.Random(0), 0
    for _ in range(COUNT):
        response = "".join(rng.choices(CHOICE_PIECES, k=rng.randint(0, 12)))
        letter = rng.choice("ABCD")
        asked = Question("1", "?", data={"answer": letter, "dataset": dataset})

        score = multiple_choice.official(asked, response, False).score

        assert score == theirs(response, letter), response
        right += score
    assert 50 < right < COUNT / 2


ARGUMENTS = ("{}", '{"x": 1}', '{"x": 2}', '{"x": {"y": 1}}', '{"z": [1, "a"]}')


def test_calls_score_as_in_the_official_code():
    theirs, rng, right = official("tooluse"), random.Random(0), 0
    asked = Question("1", "?")

    def calls():
        names = rng.choices(("search", "get", "[Optional]get"), k=rng.randint(1, 2))
        return [{"Action": n, "Action_Input": rng.choice(ARGUMENTS)} for n in names]

    for _ in range(COUNT):
        expected = calls()
        made = expected if rng.random() < 0.7 else calls()
        response = "\n".join(
            f"Action: {call['Action']}\nAction Input: {call['Action_Input']}"
            for call in made
        )
        written = list(response)
        for _ in range(rng.randint(0, 2)):
            written[rng.randrange(len(written))] = rng.choice('{}":, 1aA\n')
        response, answer = "".join(written), json.dumps(expected)
        data = tool_use.data({"answer": answer}, "here")

        score = tool_use.official(
            dataclasses.replace(asked, data=data), response, False
        ).score

        assert score == theirs(response, answer), response
        right += score
    assert 50 < right < COUNT / 2


FENCES = (
    *("```", "````", "~~~", "``", "\n", "\r\n", " ", "  ", "x", "yy\n", "- "),
    *("python", "c++", "<think>", "</think>", "\n```\n", "\n```python\n"),
)


def test_program_is_found_as_in_the_official_code():
    theirs, rng, found = module("code").extract_code, random.Random(0), 0
    for _ in range(COUNT):
        response = "".join(rng.choices(FENCES, k=rng.randint(0, 12)))

        program = official_programs.program(response, None)

        assert program == theirs(response), response
        found += program is not None
    assert COUNT / 20 < found < COUNT


def rows_of_programs():
    """Tests as the official rows have them, and a program."""
    for task, _, program in test_honest.PROGRAMS:
        tests = dict(test_honest.TESTS[task])
        if tests["testtype"] == "functional":
            tests["inputs"] = [
                row if isinstance(row, dict) else "[1,2]" for row in tests["inputs"]
            ]
            tests["outputs"] = [
                json.dumps(3 if row == "[1,2]" else value)
                if not isinstance(value, str)
                else value
                for row, value in zip(tests["inputs"], tests["outputs"], strict=True)
            ]
        yield tests, program
    for written in (
        test_official.ACCEPTED,
        test_official.REJECTED,
    ):
        for name, (row, program) in written.items():
            if name not in ("endless", "long time"):
                yield row["tests"], program


def test_programs_score_as_in_the_official_code(tmp_path):
    folder = pathlib.Path(CHECKOUT) / "verl" / "utils" / "reward_score" / "feedback"
    spec = importlib.util.spec_from_file_location("code_", folder / "code.py")
    theirs = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    found = []
    with Sandbox(Limits(), workers=2, packages=PACKAGES) as sandbox:
        # Their programs run in forks of this process, in which the sandbox raised it.
        sys.set_int_max_str_digits(4300)
        for tests, program in rows_of_programs():
            tests = {"fn_name": "", **tests, "time_limit": 5}
            read = official_programs.read_cases({"tests": tests}, "here")["tests"]
            executions = official_programs.run(sandbox, program, read)
            right = map(
                official_programs.is_right, executions, read.inputs, read.outputs
            )
            score = theirs.compute_score(
                f"```python\n{program}\n```",
                json.dumps(tests),
                {"split": "train"},
                sparse_rewards=True,
            )["score"]
            found.append((program, float(all(right)), score))

    differ = [(program, ours, score) for program, ours, score in found if ours != score]
    assert not differ, differ
    accepted = sum(score for _, _, score in found)
    assert len(found) / 4 < accepted < len(found)
