import functools
import importlib.metadata
import importlib.util
import inspect
import json
import re
import sys
import time

import pytest

from sdpo_jax.envs import installed_packages, reasoning_gym
from sdpo_jax.envs.base import GraderFailure
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Call, Execution, Limits, Packages

IS_INSTALLED = importlib.util.find_spec("reasoning_gym") is not None


def needs_library(test):
    """Importing the library alone takes seconds in every worker."""
    skip = pytest.mark.skipif(not IS_INSTALLED, reason="reasoning-gym is not installed")
    return pytest.mark.slow(skip(test))


TASKS = (
    *("leg_counting", "countdown", "n_queens", "string_insertion", "spiral_matrix"),
    *("polynomial_multiplication", "simple_integration", "prime_factorization"),
)


def write(path, *wanted):
    path.write_text(json.dumps(wanted))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Task -> (its environment, its first question)."""
    file = tmp_path_factory.mktemp("files") / "train.json"
    write(file, *({"task": task, "seed": 7, "size": 1} for task in TASKS))
    make_sandbox = functools.partial(Sandbox, Limits(cpu_s=2.0))
    environment = reasoning_gym.environment({"train": file}, make_sandbox)
    yield {
        question.uid.split("/")[0]: (environment, question)
        for question in environment.questions("train")
    }
    environment.close()


@pytest.fixture(scope="module")
def entries():
    """Task -> what the library knows of the first question, answer and all."""
    # In the sandbox, too: some questions depend on the order of Python's sets.
    program = reasoning_gym._PROGRAM + (
        "def entry(task):\n"
        "    made_up = create(task, 7, 1, {})[0]\n"
        "    solved = made_up['metadata'].get('valid_answers', [made_up['answer']])\n"
        "    return [made_up['question'], str(solved[0])]\n"
    )
    packages = Packages(
        installed_packages.modules("", "reasoning-gym", ""), reasoning_gym._PREPARE
    )
    with Sandbox(workers=1, packages=packages) as sandbox:
        ran = sandbox.run(program, [Call("entry", [task]) for task in TASKS])
    return {task: found.result for task, found in zip(TASKS, ran, strict=True)}


def verdict(made, task, response, truncated=False):
    environment, question = made[task]
    return environment.start(question).act(response, truncated)


def score(made, task, answer):
    return verdict(made, task, f"So <answer>{answer}</answer>").score


@needs_library
@pytest.mark.parametrize("task", TASKS)
def test_library_accepts_its_own_answer_and_no_other(made, entries, task):
    question, answer = entries[task]

    assert made[task][1].prompt.startswith(question)
    assert score(made, task, answer) == 1
    for wrong in ("", "7 7", "x", "none of them", "[" * 5000):
        assert score(made, task, wrong) < 0.1


# Programs that would pass, or stop the grader, if the library evaluated them.
ATTACKS = {
    "n_queens": [
        "[r.split() for r in entry['metadata']['valid_answers'][0].split(chr(10))]",
        "exec('raise SystemExit')",
    ],
    "string_insertion": ["entry['answer']", "list(entry['answer'])", "oracle_answer"],
    "spiral_matrix": ["entry['answer'].split()", "__import__('os').getpid()"],
    "countdown": [
        "__import__('os')._exit(0)",
        "exec(chr(49))",
        "9**9**9**9",
        "Integer(5)",
        "Max(1, 2)",
        "(lambda: 5)()",
    ],
    "simple_integration": [
        "exec(chr(112)+chr(97))",
        "globals()",
        "().__class__",
        "(1). real",
        "Symbol('x').diff()",
        "lambda x: x",
        "open(0)",
        "integrate(x)",
    ],
    "polynomial_multiplication": ["eval(chr(49))", "S('1')", "vars()", "print(1)"],
}


@needs_library
@pytest.mark.parametrize(
    "task, attack", [(task, text) for task, texts in ATTACKS.items() for text in texts]
)
def test_answer_that_is_a_program_is_never_evaluated(made, task, attack):
    assert score(made, task, attack) < 0.1


@needs_library
@pytest.mark.parametrize(
    "task, answer",
    [
        ("simple_integration", "x**3/3 + C"),
        ("simple_integration", "2*X^2 - 0.5*x + sin(x) + exp(2*x)/2 + C"),
        ("simple_integration", "sqrt(x)*log(x) + acos(x) + sinh(x) - pi"),
        ("polynomial_multiplication", "x**2 + 3*x*y - 10"),
        ("countdown", "(25 + 5)*3 - 8/4"),
    ],
)
def test_answer_of_the_right_form_is_read(task, answer):
    assert re.fullmatch(reasoning_gym._EVALUATED[task], answer)


@needs_library
def test_expression_that_takes_for_ever_says_nothing_and_stops(made):
    start = time.monotonic()

    with pytest.raises(GraderFailure, match="could not score question simple_integ"):
        score(made, "simple_integration", "x**(9**9**9**9)")

    assert time.monotonic() - start < 60
    assert score(made, "leg_counting", "x") < 0.1


@needs_library
def test_answer_that_the_scorer_cannot_read_is_wrong_and_no_failure(made):
    found = verdict(made, "prime_factorization", "<answer>two times x</answer>")

    assert (found.score, found.measurements) == (0, {"format": 0.0})
    assert "is no answer to such a question" in found.feedback


@needs_library
@pytest.mark.parametrize(
    "response, truncated, outcome",
    [
        ("It is 7.", False, "Incorrect Format"),
        ("<answer></answer>", False, "Incorrect Format"),
        ("<answer>" + "7" * 10_001 + "</answer>", False, "Incorrect Format"),
        ("<answer>7", True, "Truncated"),
        ("<answer>7</answer>", False, "Wrong Answer"),
    ],
)
def test_feedback_says_what_is_wrong_and_never_the_answer(
    made, entries, response, truncated, outcome
):
    found = verdict(made, "leg_counting", response, truncated)

    assert (found.outcome, found.score) == (outcome, 0)
    assert entries["leg_counting"][1] not in found.feedback


@needs_library
@pytest.mark.parametrize(
    "execution",
    [
        Execution("error", error_type="KeyError"),
        Execution("time_limit"),
        Execution("ok", result=1.5),
        Execution("ok", result=-0.1),
        Execution("ok", result=float("nan")),
        Execution("ok", result=True),
        Execution("ok", result="1"),
    ],
)
def test_score_that_is_none_says_nothing(made, execution):
    class Broken:
        def run(self, *_, **__):
            return [execution]

    with pytest.raises(GraderFailure, match="could not score question leg_counting"):
        reasoning_gym._score(Broken(), made["leg_counting"][1], "7")


@needs_library
def test_question_that_is_made_otherwise_than_before_says_nothing(made):
    environment, question = made["leg_counting"]
    question.data["arguments"]["question"] += " "
    try:
        with pytest.raises(GraderFailure, match="another question than before"):
            environment.start(question).act("<answer>7</answer>", False)
    finally:
        arguments = question.data["arguments"]
        arguments["question"] = arguments["question"][:-1]


@needs_library
def test_questions_are_the_same_every_time_and_follow_the_seed(tmp_path):
    wanted = {"task": "word_sorting", "seed": 3, "size": 4, "config": {"max_words": 5}}
    file = write(tmp_path / "a.json", wanted)
    other = write(tmp_path / "b.json", wanted | {"seed": 7})

    found = []
    for _ in range(2):
        environment = reasoning_gym.environment({"train": file, "heldout": other})
        found.append([environment.questions(s) for s in ("train", "heldout")])
        environment.close()

    assert found[0] == found[1]
    train, heldout = found[0]
    assert [q.uid.rpartition("/")[2] for q in train] == ["3", "4", "5", "6"]
    uids = {q.uid for q in train + heldout}
    assert len(uids) == 8 and len({q.prompt for q in train + heldout}) == 8


@needs_library
@pytest.mark.parametrize(
    "wanted, told",
    [
        ({"task": "no_such_task"}, "row 1: reasoning-gym cannot generate it: error"),
        (
            {"config": {"no_such_field": 1}},
            "row 1: reasoning-gym cannot generate it: error",
        ),
        (
            {"config": {"min_animals": -1}},
            "row 1: reasoning-gym cannot generate it: error",
        ),
    ],
)
def test_what_the_library_cannot_make_is_refused_by_row(tmp_path, wanted, told):
    wanted = {"task": "leg_counting", "seed": 1, "size": 2} | wanted
    file = write(tmp_path / "train.json", wanted)

    with pytest.raises(ValueError, match=told):
        reasoning_gym.environment({"train": file})


@needs_library
def test_every_scorer_that_evaluates_answers_is_known():
    factory = importlib.import_module("reasoning_gym.factory")
    evaluates = re.compile(r"\b(?:eval|exec|compile|parse_expr|sympify)\(")
    found = set()
    for name, (dataset, _) in factory.DATASETS.items():
        if evaluates.search(inspect.getsource(dataset.score_answer)):
            found.add(name)

    # Number sorting evaluates its own answer only.
    known = reasoning_gym._EVALUATED.keys() | {"puzzle24", "number_sorting"}
    assert found == known
    assert "reasoning_gym" in sys.modules


LEGS = {"task": "leg_counting", "seed": 1, "size": 10}


@pytest.mark.parametrize(
    "text, told",
    [
        ("{", "train.json is not JSON"),
        ("[]", "expected a JSON list of tasks with"),
        ("{}", "expected a JSON list of tasks with"),
        ("[5]", "row 1: expected an object, got int"),
        ([{}], "row 1, field task: expected str"),
        ([LEGS | {"task": 5}], "row 1, field task: expected str, got 5"),
        ([LEGS, LEGS | {"seed": -1}], "row 2, field seed: expected at least 0, got -1"),
        ([LEGS | {"seed": "1"}], "field seed: expected int, got '1'"),
        ([LEGS | {"seed": True}], "field seed: expected at least 0, got True"),
        ([LEGS | {"size": 0}], "field size: expected at least 1, got 0"),
        ([LEGS | {"config": []}], "field config: expected dict"),
        ([LEGS | {"config": {"seed": 5}}], "field config: seed belongs next to c"),
        ([LEGS | {"sizes": 5}], "field sizes: unknown; expected task, seed, size, con"),
        ([LEGS | {"task": "puzzle24"}], "puzzle24 is refused: its scorer accepts any"),
        ([LEGS | {"task": "composite"}], "composite is refused"),
    ],
)
def test_malformed_file_is_refused_by_row_and_field(tmp_path, text, told):
    file = tmp_path / "train.json"
    file.write_text(text if isinstance(text, str) else json.dumps(text))

    with pytest.raises(ValueError, match=f"train.json.*{told}|{told}"):
        reasoning_gym._specs(file)


def test_share_of_another_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="share:0.1: is no file; every split"):
        reasoning_gym._specs(reasoning_gym.Path("share:0.1"))


@pytest.mark.parametrize(
    "other, overlaps",
    [
        ({"seed": 1}, True),
        ({"seed": 10}, True),
        ({"seed": 0, "size": 2}, True),
        ({"seed": 11}, False),
        ({"seed": 0, "size": 1}, False),
        ({"task": "countdown"}, False),
        ({"config": {"max_animals": 3}}, False),
    ],
)
def test_splits_that_would_make_the_same_questions_are_refused(other, overlaps):
    row = {"config": {}} | LEGS
    specs = [(row, "a.json, row 1"), (row | other, "b.json, row 1")]

    if not overlaps:
        return reasoning_gym._refuse_overlaps(specs)
    with pytest.raises(
        ValueError, match="field seed: .* generates questions that .* too"
    ):
        reasoning_gym._refuse_overlaps(specs)


def test_missing_library_is_told_with_its_remedy(tmp_path, monkeypatch):
    def missing(distribution):
        raise importlib.metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(importlib.metadata, "requires", missing)

    with pytest.raises(ValueError, match='reasoning-gym: pip install "reasoning-gym'):
        reasoning_gym.environment({"train": tmp_path / "train.json"})
