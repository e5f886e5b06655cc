import json

import pytest

from sdpo_jax.envs.programming.asserts import Asserted, read
from sdpo_jax.envs.programming.cases import read_cases
from sdpo_jax.envs.programming.grader import PACKAGES, Programming, is_right, run
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Limits

HUMAN_EVAL = '''
METADATA = {"author": "jt", "dataset": "test"}

def check(candidate):
    """Of the tests."""
    # Simple cases.
    assert True, "This prints if this assert fails 1 (good for debugging!)"
    assert candidate([1.0, 2.0], 0.3) == False, "first"
    assert candidate("a", key=(1, -2)) == [(1, 'x'), {"a": None}]
    assert abs(candidate(3) - 0.5) < 1e-6
    assert candidate(4)

check(near)
'''


@pytest.mark.parametrize(
    "text, call, asserted",
    [
        ("assert f(1, 2) == 3", "f(1, 2)", Asserted("==", 3)),
        ("assert 3 == f(1, 2)", "f(1, 2)", Asserted("==", 3)),
        ("assert (f(1)) == (3), 'no'", "f(1)", Asserted("==", 3)),
        ("assert f() == -1.5", "f()", Asserted("==", -1.5)),
        ("assert f((1, [2]), x={3: 4}) == (1, 2)", None, Asserted("==", [1, 2])),
        ("assert f({1, 2}) == {1: None}", "f({1, 2})", Asserted("==", {"1": None})),
        ("assert f('a\\n\"') == 'b'", None, Asserted("==", "b")),
        ("assert f(1) is True", "f(1)", Asserted("is", True)),
        ("assert f(1) is None", "f(1)", Asserted("is", None)),
        ("assert f(1)", "f(1)", Asserted("true", True)),
        ("assert not f(1)", "f(1)", Asserted("true", False)),
        ("assert abs(f(1) - 2) <= 0.5", "f(1)", Asserted("close", 2, absolute=0.5)),
        ("assert abs(2 - f(1)) <= 0.5", "f(1)", Asserted("close", 2, absolute=0.5)),
        (
            "import math\nassert math.isclose(f(1), 2)",
            "f(1)",
            Asserted("close", 2, 1e-9),
        ),
        (
            "assert math.isclose(2.0, f(1), rel_tol=0.001, abs_tol=1)",
            "f(1)",
            Asserted("close", 2.0, 0.001, 1),
        ),
    ],
)
def test_assert_is_read_as_a_call_and_what_must_hold(text, call, asserted):
    ((found, said),) = read(text, "", "here")
    assert said == asserted
    assert call is None or found == call
    assert "==" not in found and eval(found, {"f": lambda *a, **b: 7}) == 7


def test_check_of_human_eval_is_read_for_its_function():
    calls, said = zip(*read(HUMAN_EVAL, "", "here"), strict=True)
    assert calls == (
        "near([1.0, 2.0], 0.3)",
        "near('a', key=(1, -2))",
        "near(3)",
        "near(4)",
    )
    assert said[0] == Asserted("==", False)
    assert said[1] == Asserted("==", [[1, "x"], {"a": None}])
    assert said[2].relation == "close" and 0 < said[2].absolute < 1e-6
    assert read(HUMAN_EVAL, "far", "here")[3][0] == "far(4)"


def test_asserts_joined_by_and_are_two():
    assert len(read("assert f(1) == 2 and not f(3)", "", "here")) == 2


@pytest.mark.parametrize(
    "text",
    [
        "assert f(1) == g(1)",
        "assert f(x) == 1",
        "assert f(*[1]) == 1",
        "assert f(**{'a': 1}) == 1",
        "assert f(g(1)) == 1",
        "assert f(1).x == 1",
        "assert f(1)[0] == 1",
        "assert a.f(1) == 1",
        "assert f(1) != 2",
        "assert f(1) < 2",
        "assert f(1) > 2",
        "assert f(1) in [2]",
        "assert 1 < f(1) < 3",
        "assert f(1) is 5",
        "assert f(1) is not None",
        "assert f(1) == {1, 2}",
        "assert f(1) == b'x'",
        "assert f(1) == 1j",
        "assert f(1) == float('nan')",
        "assert f(1) == 1 or f(1) == 2",
        "assert isinstance(f(1), int)",
        "assert sum([1]) == 1",
        "assert abs(f(1) + 2) < 1",
        "assert abs(f(1) - 2) < 0",
        "assert abs(f(1) - 2) < -1",
        "assert abs(f(1) - 'a') < 1",
        "assert abs(f(1) - 2) < True",
        "assert math.isclose(f(1), 2, rel_tol=-1)",
        "assert math.isclose(f(1), 2, tol=1)",
        "assert math.isclose(f(1))",
        "assert False",
        "assert 1",
        "x = f(1)\nassert x == 1",
        "for i in range(3):\n    assert f(i) == i",
        "f(1)",
        "def check(candidate):\n    assert candidate(1) == 1",
        "def check(a, b):\n    assert a(1) == 1\ncheck(f)",
        "def check(c):\n    for i in [1]:\n        assert c(i)\ncheck(f)",
        "def check(c):\n    def check(d):\n        assert d(1)\n    check(c)\ncheck(f)",
        "def test():\n    assert f(1) == 1\ntest()",
        "assert f(1) ==",
        "assert f(1)\0",
        "assert f(" + "[" * 1000 + "]" * 1000 + ") == 1",
        "assert " + "not " * 10000 + "f(1)",
    ],
)
def test_assert_that_says_more_is_refused_by_row_and_test(text):
    row = {"tests": {"testtype": "asserts", "inputs": ["assert f(1)", text]}}
    with pytest.raises(ValueError, match=r"row 3, field tests, field inputs\[1\]: "):
        read_cases(row, "row 3")


def test_row_that_asserts_nothing_is_refused():
    row = {"tests": {"testtype": "asserts", "inputs": ["assert True", "import math"]}}
    with pytest.raises(ValueError, match="row 3, .* asserts nothing"):
        read_cases(row, "row 3")


@pytest.mark.parametrize(
    "asserted, result, holds",
    [
        (Asserted("==", 1), True, True),  # As in Python.
        (Asserted("==", [1, 2.0]), [1.0, 2], True),
        (Asserted("==", 0), None, False),
        (Asserted("==", 0), "", False),
        (Asserted("==", "1"), 1, False),
        (Asserted("==", None), None, True),
        (Asserted("is", True), True, True),
        (Asserted("is", True), 1, False),
        (Asserted("is", None), None, True),
        (Asserted("is", None), False, False),
        (Asserted("is", False), 0, False),
        (Asserted("true", True), "no", True),
        (Asserted("true", True), [], False),
        (Asserted("true", False), None, True),
        (Asserted("true", False), [0], False),
        (Asserted("close", 1, absolute=0.1), 1.05, True),
        (Asserted("close", 1, absolute=0.1), 1.2, False),
        (Asserted("close", 1, absolute=0.1), "1", False),
        (Asserted("close", 1, absolute=0.1), None, False),
        (Asserted("close", 1, absolute=0.1), [1], False),
        (Asserted("close", 1, absolute=0.1), float("nan"), False),
        (Asserted("close", 1, absolute=0.1), float("inf"), False),
        (Asserted("close", 1, absolute=0.1), 10**400, False),
    ],
)
def test_what_is_asserted_holds_or_not(asserted, result, holds):
    assert asserted.holds(result) is holds


def test_strictly_less_excludes_the_bound():
    ((_, strict),) = read("assert abs(f(1) - 3) < 1", "", "here")
    ((_, loose),) = read("assert abs(f(1) - 3) <= 1", "", "here")
    assert loose.holds(4) and not strict.holds(4)
    assert strict.holds(3.999)


# In the sandbox.

ROW = {
    "uid": "rotate",
    "prompt": "Write rotate(items, by).",
    "tests": {
        "testtype": "asserts",
        "inputs": [
            "assert rotate((1, 2, 3), by=1) == (2, 3, 1)",
            "assert rotate([], 5) == []",
            "assert not rotate(())",
        ],
    },
}
RIGHT = """
def rotate(items, by=1):
    by %= len(items) or 1
    return items[by:] + items[:by]
"""


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(Limits(cpu_s=1.0), workers=1, packages=PACKAGES) as box:
        yield box


@pytest.fixture
def grade(sandbox, tmp_path):
    def grade(program, **options):
        path = tmp_path / "questions.jsonl"
        path.write_text(json.dumps(ROW))
        environment = Programming({"train": path}, sandbox, **options)
        (question,) = environment.questions("train")
        return environment.start(question).act(f"```python\n{program}\n```", False)

    return grade


@pytest.mark.parametrize("grader", ["fixed", "official"])
def test_right_program_meets_its_asserts_with_tuples_as_tuples(grade, grader):
    verdict = grade(RIGHT, grader=grader)
    assert verdict.score == 1.0, verdict


def test_wrong_answer_shows_the_call_and_not_the_assert(grade):
    verdict = grade("def rotate(items, by=1):\n    return items")
    assert verdict.outcome == "Wrong Answer"
    assert verdict.feedback == (
        "Test Case 1: Wrong Answer\nInput\nrotate((1, 2, 3), by=1)\nOutput\n[1, 2, 3]\n"
        "Expected\n[2, 3, 1]"
    )


def test_error_outside_of_the_program_names_no_line_of_it(grade):
    verdict = grade("def rotated(items, by=1):\n    return items")
    assert verdict.feedback == (
        "Runtime Error\nNameError: name 'rotate' is not defined\n"
        "Last Executed Input\nrotate((1, 2, 3), by=1)"
    )


def test_line_that_goes_on_does_not_reach_the_tests(sandbox):
    tests = read_cases(ROW, "here")["tests"]
    executions = run(sandbox, "def rotate(items, by=1):\n    return \\", tests)
    assert [(e.status, e.result) for e in executions] == [("ok", None)] * 3


CHEATS = {
    "equal to everything": (
        "class E(list):\n    def __eq__(self, other): return True\n"
        "def rotate(*a, **b): return E()"
    ),
    "exit": "def rotate(*a, **b): exit(0)",
    "exit at the top": "exit(0)",
    "own functions of the tests' names": (
        "def asserted_0_(): return [2, 3, 1]\nasserted_1_ = asserted_2_ = list\n"
        "def rotate(*a, **b): return None"
    ),
    "text that swallows what follows": f"{RIGHT.replace('by:', 'by+1:')}\nx = '''",
    "line that goes on": "rotate = lambda *a, **b: \\",
    "own assert": "__debug__ or 1\ndef rotate(*a, **b): raise AssertionError",
    "constants of its caller": (
        "import sys\ndef rotate(*a, **b):\n    return sys._getframe(1).f_code.co_consts"
    ),
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheat_meets_no_assert_that_it_should_not(grade, name):
    assert grade(CHEATS[name]).score == 0.0


def test_what_is_expected_is_not_in_what_runs(sandbox):
    tests = read_cases(
        {"tests": {"testtype": "asserts", "inputs": ["assert f(1) == 'secret'"]}},
        "here",
    )["tests"]
    assert "secret" not in tests.appended
    program = "def f(x): return [*globals()['asserted_0_'].__code__.co_consts]"
    (execution,) = run(sandbox, program, tests)
    assert execution.result == [None, 1]
    assert not is_right(execution, tests.inputs[0], tests.outputs[0])
