"""The official mode: what it accepts, what it does not, and that nothing breaks it."""

import json
from types import SimpleNamespace

import pytest

from sdpo_jax.envs.programming import official
from sdpo_jax.envs.programming.grader import PACKAGES, Programming
from sdpo_jax.envs.programming.official import _of_program
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Call, Execution, Limits, Stdin

CALL = Call("total", [])
FUNCTION = {
    "uid": "total",
    "prompt": "Write total(nums).",
    "tests": {
        "inputs": ["[1,2,3]", {"nums": []}],
        "outputs": ["6", "0"],
        "testtype": "functional",
        "fn_name": "total",
        "time_limit": 1,
    },
}
SCRIPT = {
    "uid": "sum",
    "prompt": "Print the sum and the double.",
    "tests": {
        "inputs": ["1 2\n", "3 4\n"],
        "outputs": ["3\n6\n", "7\n14\n"],
        "testtype": "stdin",
        "time_limit": 1,
    },
}
# A program has a second more than the limit of its row.
HURRIED = FUNCTION | {"tests": FUNCTION["tests"] | {"time_limit": 0.1}}


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(Limits(cpu_s=1.0), workers=2, packages=PACKAGES) as box:
        yield box


@pytest.fixture
def grade(sandbox, tmp_path):
    def grade(row, program):
        path = tmp_path / "questions.jsonl"
        path.write_text(json.dumps(row))
        environment = Programming({"train": path}, sandbox, grader="official")
        (question,) = environment.questions("train")
        return environment.start(question).act(f"```python\n{program}\n```", False)

    return grade


ACCEPTED = {
    "function": (FUNCTION, "def total(nums):\n    return sum(nums)"),
    "function of another name, the first there is": (
        FUNCTION,
        "x = 1\ndef solve(nums):\n    return sum(nums)\ndef other():\n    pass",
    ),
    "annotations that name nothing": (
        FUNCTION,
        "def total(nums: List[Whatever]) -> Nothing:\n    return sum(nums)",
    ),
    "typing without import": (
        FUNCTION,
        "x: List[int] = []\ndef total(nums):\n    return sum(nums)",
    ),
    "class, decorator and closure": (
        FUNCTION,
        "import functools\nclass S:\n    @functools.lru_cache(None)\n"
        "    def f(self, nums): return sum(nums)\n"
        "def total(nums):\n    return S().f(tuple(nums))",
    ),
    "script": (SCRIPT, "s = sum(map(int, input().split()))\nprint(s)\nprint(2 * s)"),
    "script in one line": (
        SCRIPT,
        "s = sum(map(int, input().split()))\nprint(s, 2 * s)",
    ),
    "main guard": (
        SCRIPT,
        "import sys\nif __name__ == '__main__':\n"
        "    s = sum(map(int, sys.stdin.read().split()))\n    print(s, 2 * s)",
    ),
    "output replaced at the end": (
        SCRIPT,
        "import sys, io\ns = sum(map(int, input().split()))\nprint(s, 2 * s)\n"
        "sys.stdout = io.StringIO()\nprint('more')",
    ),
    "numpy": (FUNCTION, "import numpy\ndef total(nums): return int(numpy.sum(nums))"),
    "long time": (
        HURRIED,
        "import time\ndef total(nums):\n    end = time.process_time() + 0.4\n"
        "    while time.process_time() < end: pass\n    return sum(nums)",
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_program_that_the_official_code_accepts(grade, name):
    verdict = grade(*ACCEPTED[name])
    assert verdict.score == 1.0, verdict


SUM = "def total(nums):\n    "
REJECTED = {
    "class Solution": (
        FUNCTION,
        "class Solution:\n    def total(self, nums): return sum(nums)",
    ),
    "float": (FUNCTION, SUM + "return float(sum(nums))"),
    "true": (FUNCTION, SUM + "return sum(nums) if nums else False"),
    "text": (FUNCTION, SUM + "return str(sum(nums))"),
    "number of numpy": (
        FUNCTION,
        "import numpy\ndef total(nums): return numpy.int64(sum(nums))",
    ),
    "missing name": (FUNCTION, SUM + "return divmod(sum(nums), 1)[0]"),
    "missing exception": (
        FUNCTION,
        SUM + "try:\n        [][0]\n    except IndexError:\n        return sum(nums)",
    ),
    "property": (
        FUNCTION,
        "class A:\n    @property\n    def x(self): return 1\n"
        + SUM
        + "return sum(nums)",
    ),
    "names of collections without import": (
        FUNCTION,
        SUM + "return sum(deque(nums))",
    ),
    "deep recursion": (
        FUNCTION,
        "def down(n): return n and down(n - 1)\n"
        + SUM
        + "return sum(nums) + down(2000)",
    ),
    "byte-order mark": (FUNCTION, "\ufeff" + SUM + "return sum(nums)"),
    "more digits than Python converts": (
        FUNCTION,
        SUM + "return sum(nums) + 0 * len(str(10**5000))",
    ),
    "more digits in the source": (
        FUNCTION,
        SUM + f"return sum(nums) + 0 * {'1' * 5000}",
    ),
    "more digits in a script": (
        SCRIPT,
        "s = sum(map(int, input().split()))\nstr(10**5000)\nprint(s, 2 * s)",
    ),
    "named tuple": (
        FUNCTION,
        "import collections\nP = collections.namedtuple('P', 'x')\n"
        + SUM
        + "return sum(nums)",
    ),
    "subclass that cannot be pickled": (
        FUNCTION,
        "class M(int): pass\n" + SUM + "return M(sum(nums))",
    ),
    "module": (FUNCTION, "import copy\n" + SUM + "return sum(copy.copy(nums))"),
    "threads": (FUNCTION, "import threading\n" + SUM + "return sum(nums)"),
    "exit at the top": (FUNCTION, SUM + "return sum(nums)\nimport sys\nsys.exit()"),
    "main guard and exit": (
        SCRIPT,
        "import sys\ns = sum(map(int, input().split()))\nprint(s, 2 * s)\nsys.exit(0)",
    ),
    "error after the right output": (
        SCRIPT,
        "s = sum(map(int, input().split()))\nprint(s, 2 * s)\n1 / 0",
    ),
    "exit by name": (
        SCRIPT,
        "s = sum(map(int, input().split()))\nprint(s, 2 * s)\nexit()",
    ),
    "bytes of standard input": (
        SCRIPT,
        "import sys\ns = sum(map(int, sys.stdin.buffer.read().split()))\nprint(s, 2*s)",
    ),
    "open(0)": (SCRIPT, "s = sum(map(int, open(0).read().split()))\nprint(s, 2 * s)"),
    "open": (
        SCRIPT,
        "open('/dev/null')\ns = sum(map(int, input().split()))\nprint(s, 2 * s)",
    ),
    "spaces between": (SCRIPT, "s = sum(map(int, input().split()))\nprint(s, '', 2*s)"),
    "float of a script": (
        SCRIPT,
        "s = sum(map(float, input().split()))\nprint(s, 2*s)",
    ),
    "endless": (HURRIED, SUM + "while True: pass"),
    "too much memory": (FUNCTION, SUM + "[0] * 10**10"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_program_that_the_official_code_rejects(grade, name):
    verdict = grade(*REJECTED[name])
    assert verdict.score == 0.0 and verdict.feedback


@pytest.mark.parametrize(
    "response, block",
    [
        ("```python\nx\n```\n```text\nlonger\n```", "longer\n"),
        ("<think>```\ndraft\n```</think>\n```python\nx\n```", "draft\n"),
        (
            "```c++\nx\n```\nfour words of text\n```python\nx\n```",
            "four words of text\n",
        ),
        ("```python \nx\n```\n", None),
        ("```python\r\nx\r\n```", None),
        ("  ```python\n  x\n  ```", "  x\n  "),
        ("```python\nx", None),
    ],
)
def test_program_is_the_longest_block_as_officially(response, block):
    assert official.program(response, None) == block


@pytest.mark.parametrize("limit, seconds", [(None, 2.0), (1, 2.0), (6, 7.0)])
def test_time_limit_is_the_rows_or_a_second_and_one_more(limit, seconds):
    row = {"tests": SCRIPT["tests"] | {"time_limit": limit}}
    tests = official.read_cases(row, "here")["tests"]
    given = []
    box = SimpleNamespace(
        run=lambda program, calls, cpu_s: (
            given.append(cpu_s) or [Execution("ok", result={"output": ""})] * len(calls)
        )
    )
    official.run(box, "", tests)
    assert given == [seconds]


def test_arguments_written_with_spaces_fail_every_program(grade):
    tests = FUNCTION["tests"] | {"inputs": ["[1, 2, 3]", "[0]"]}
    verdict = grade(FUNCTION | {"tests": tests}, SUM + "return sum(nums)")
    assert (verdict.score, verdict.outcome) == (0.0, "Runtime Error")
    assert "JSONDecodeError" in verdict.feedback


def test_expected_text_ends_before_a_last_dash(grade):
    tests = SCRIPT["tests"] | {"outputs": ["3 6 -\n", "7 14\n-"]}
    program = "s = sum(map(int, input().split()))\nprint(s, 2 * s)"
    assert grade(SCRIPT | {"tests": tests}, program).score == 1.0


def test_feedback_names_the_program_and_not_what_runs_it(grade):
    verdict = grade(FUNCTION, "def total(nums):\n    x = 1\n    return nums[5]")
    assert verdict.feedback == (
        "Runtime Error\nIndexError: list index out of range\nreturn nums[5]\n"
        "Line 3 in total (Solution.py)\nLast Executed Input\n[1, 2, 3]"
    )
    verdict = grade(SCRIPT, "x = 1\ny = = 2")
    assert "SyntaxError" in verdict.feedback
    assert "\ny = = 2\nLine 2 in <module> (Solution.py)\n" in verdict.feedback
    verdict = grade(SCRIPT, "print(input())")
    assert verdict.feedback.startswith(
        "Test Case 1: Wrong Answer\nInput\n1 2\nOutput\n1 2\nExpected\n3\n6"
    )


@pytest.mark.parametrize(
    "status, outcome",
    [("[0] * 10**10", "Memory Limit"), ("while True: pass", "Time Limit")],
)
def test_limits_are_told_as_elsewhere(grade, status, outcome):
    assert grade(HURRIED, SUM + status).outcome == f"{outcome} Exceeded"


@pytest.mark.parametrize(
    "execution, test, expected, right",
    [
        (Execution("ok", stdout="3\r\n6\r\n"), Stdin(""), "3\n6", True),
        (Execution("ok", stdout="3\n6"), Stdin(""), "3 6", True),
        (Execution("ok", stdout="3  6"), Stdin(""), "3 6", False),
        (Execution("ok", result={"a": 1, "b": 2}), CALL, {"b": 2, "a": 1}, True),
        (Execution("ok", result={"a": 1}), CALL, {"a": 1.0}, False),
        (Execution("error"), CALL, None, False),
    ],
)
def test_official_comparison(execution, test, expected, right):
    assert official.is_right(execution, test, expected) == right


FORGED = (
    *(None, 1, [], "x", {}, {"output": 1}, {"output": None}, {"error": None}),
    *({"error": 5}, {"error": []}, {"error": [1, 2, 3, 4]}, {"error": ["a", "b"]}),
    *({"error": ["a", "b", 10**30, ""]}, {"error": ["a", "b", -1, ""]}),
    *({"error": ["a", "b", True, "f"]}, {"error": ["a", "b", 1.5, "f"]}),
    *({"error": ["a", "b", 1, None]}, {"error": ["a", "b", 1, "f", 2]}),
)


@pytest.mark.parametrize("result", FORGED, ids=str)
def test_report_that_a_program_forges_is_an_error(result):
    execution = _of_program(Execution("ok", result=result), "a\nb", True)
    assert execution.status == "error"
    assert execution.error_line in (None, 1)
    assert not official.is_right(execution, Stdin(""), "None")


CHEATS = {
    "caller": (
        "import sys\ndef total(nums):\n    f = sys._getframe(1)\n"
        "    return f.f_locals.get('expected', f.f_globals.get('expected'))"
    ),
    "json": "import json\njson.dumps = lambda *a, **k: '6'\ndef total(nums): return 0",
    "equal": (
        "class E(int):\n    def __eq__(self, other): return True\n"
        "def total(nums): return E(5)"
    ),
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheat_fails_here_too(grade, name):
    assert grade(FUNCTION, CHEATS[name]).score == 0.0
