"""Right programs of every style are accepted."""

import pytest

from sdpo_jax.envs.programming.cases import read_cases
from sdpo_jax.envs.programming.grader import PACKAGES, is_right, run
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Limits
from tests.envs.programming.honest_programs import ORDER, SCRIPT, TOTAL

TESTS = {
    "total": {
        "inputs": [[[1, 2, 3]], "[-5, 5]", {"nums": []}, [[10**12] * 3]],
        "outputs": [6, 0, 0, 3 * 10**12],
        "testtype": "functional",
        "fn_name": "total",
    },
    "script": {
        "inputs": ["3\n3 1 2\n", "1\n-7"],
        "outputs": ["6\n1\n2\n3\n", "-7\n-7\n"],
        "testtype": "stdin",
    },
    "order": {
        "inputs": [{"words": ["b", "a"]}, {"words": ["y", "x"], "times": 2}],
        "outputs": [["a", "b"], '["x", "y", "x", "y"]'],
        "testtype": "functional",
        "fn_name": "order",
    },
}
PROGRAMS = [
    (task, name, program)
    for task, programs in (("total", TOTAL), ("script", SCRIPT), ("order", ORDER))
    for name, program in programs.items()
]


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(Limits(cpu_s=4.0), workers=2, packages=PACKAGES) as box:
        yield box


def graded(sandbox, task, program):
    tests = read_cases({"tests": TESTS[task]}, "here")["tests"]
    executions = run(sandbox, program, tests)
    right = map(is_right, executions, tests.inputs, tests.outputs)
    return list(zip(right, executions, strict=True))


def test_there_are_enough_of_them():
    assert len(PROGRAMS) > 100


@pytest.mark.parametrize(
    "task, name, program", PROGRAMS, ids=[f"{p[0]}: {p[1]}" for p in PROGRAMS]
)
def test_honest_program_is_accepted(sandbox, task, name, program):
    for right, execution in graded(sandbox, task, program):
        assert right, execution


@pytest.mark.parametrize("task, programs", [("total", TOTAL), ("order", ORDER)])
def test_honest_programs_are_accepted_when_calls_share_a_process(task, programs):
    limits = Limits(cpu_s=4.0)
    with Sandbox(limits, process_per="program", packages=PACKAGES) as box:
        for name, program in programs.items():
            assert all(right for right, _ in graded(box, task, program)), name
