"""Reports are claims of an untrusted program, however it writes them."""

import json
import time

import pytest

from sdpo_jax.sandbox import records
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Call, Stdin
from tests.sandbox.boxes import call


def read(test=Stdin(""), **fields):  # noqa: B008
    """The execution of a record; without fields, of a script that ended well."""
    record = {"ended": "exit", "signal": 0, "cpu_s": 0.1, "stdout": "", "report": ""}
    return records.execution(record | fields, test, cpu_limit_s=1.0)


@pytest.mark.parametrize(
    "fields, status, kind",
    [
        ({}, "ok", ""),
        ({"cpu_s": 0.999}, "ok", ""),
        ({"cpu_s": 1.0}, "time_limit", ""),  # It ended before the worker measured.
        ({"ended": "wall"}, "time_limit", ""),
        ({"ended": "output", "cpu_s": 2.0}, "output_limit", ""),
        ({"signal": 9}, "memory_limit", ""),
        ({"signal": 11, "report": '{"result": 1}'}, "error", "Crash"),
        ({"signal": 15}, "error", "Crash"),
        ({"test": Call("f", [])}, "error", "SystemExit"),
    ],
)
def test_record_determines_status_and_error(fields, status, kind):
    execution = read(**fields)
    assert (execution.status, execution.error_type) == (status, kind)


@pytest.mark.parametrize(
    "line, read_as",
    [(3, 3), (True, None), (0, None), (-1, None), (1 << 31, None), ("3", None)],
)
def test_line_of_an_error_is_valid_or_unknown(line, read_as):
    report = json.dumps({"error": {"type": "E", "line": line}})
    assert read(report=report).error_line == read_as


def test_brackets_in_strings_do_not_count_as_nesting():
    text = "[{" * 500 + '"' + "]" * 7
    execution = read(Call("f", []), report=json.dumps({"result": text}))
    assert execution.result == text


@pytest.mark.parametrize(
    "text, status",
    [
        (f"[{'1' * 20_000}, {'1' * 30_000}]", "ok"),
        (f"[{'1' * 20_000}, -{'1' * 30_001}]", "error"),
        (f'"{"1" * 50_001}"', "ok"),  # Text takes no time to read.
        (f"[{','.join(['1' * 4300] * 100)}]", "ok"),
        (f"[{','.join(['1' * 50_000] * 80)}]", "error"),
        (f"[{','.join(['1'] * 10**6)}]", "ok"),
    ],
    ids=["most", "more", "text", "short", "many", "very many"],
)
def test_integers_of_a_result_are_read_within_a_second(text, status):
    with Sandbox(workers=1):  # Raises Python's own limit on digits.
        start = time.process_time()
        execution = read(Call("f", []), report=f'{{"result": {text}}}')
    assert execution.status == status
    assert time.process_time() - start < 1.0


def test_program_that_reads_its_own_pipes_harms_only_itself(sandbox):
    program = """
        import os, threading
        def f():
            os.write(1, b"x" * 1000)
            for fd in range(1, 32):
                try:
                    os.read(os.open(f"/proc/self/fd/{fd}", os.O_RDONLY), 5000)
                except OSError:
                    pass
            return 1
        """
    assert call(sandbox, program, cpu_s=0.2).status in ("ok", "error", "time_limit")


def test_forged_report_counts_only_as_a_result(sandbox):
    program = """
        import os
        def f():
            for fd in range(3, 32):
                try:
                    os.write(fd, b'{"result": 1, "status": "ok", "passed": true}')
                except OSError:
                    pass
            os._exit(0)
        """
    execution = call(sandbox, program)
    assert (execution.status, execution.result) == ("ok", 1)


@pytest.mark.parametrize(
    "report",
    [
        "[]",
        "3",
        "null",
        '{"error": 1}',
        "{" * 10**4,
        "[" * 200,
        '{"result": ',
        "\\xff",
        '{"error": {"line": 1e99, "type": [], "message": {}}}',
        "9" * 5000,
    ],
)
def test_malformed_report_is_an_error_of_the_program(sandbox, report):
    program = f"""
        import os
        def f():
            for fd in range(3, 32):
                try:
                    os.write(fd, b'{report}')
                except OSError:
                    pass
            os._exit(0)
        """
    assert call(sandbox, program).status == "error"


def test_expected_outputs_are_nowhere_in_the_process(sandbox):
    marker = "expected-" + "7391" * 3
    keep = [marker]  # In the memory of this process, like expected outputs.
    program = """
        import gc, sys
        def f(half):
            marker = half + "7391" * 3
            mine = id(marker)
            found = []
            frame = sys._getframe()
            while frame:
                for value in list(frame.f_locals.values()):
                    if marker in repr(value) and frame.f_code.co_name != "f":
                        found.append("frame")
                frame = frame.f_back
            for thing in gc.get_objects():
                if isinstance(thing, (list, dict, tuple)) and len(thing) < 50:
                    for value in thing.values() if isinstance(thing, dict) else thing:
                        if type(value) is str and value == marker and id(value) != mine:
                            found.append("gc")
            return found
        """
    assert call(sandbox, program, "expected-").result == []
    assert keep


def test_unclosed_strings_in_a_report_are_read_in_linear_time(sandbox):
    program = r"""
        import os
        report = b"[" * 101 + b'"' + b'\\"' * 30_000
        def f():
            for fd in range(3, 32):
                try:
                    os.write(fd, report)
                except OSError:
                    pass
            os._exit(0)
        """
    start = time.monotonic()
    assert call(sandbox, program).status == "error"
    assert time.monotonic() - start < 5.0


@pytest.mark.parametrize("value", ["[]", "{}", '[[1], {"a": []}]', '"[[{\\"["'])
def test_millions_of_brackets_in_a_report_are_read_in_a_second(value):
    count = (4 << 20) // (len(value) + 1)
    report = '{"result": [' + ",".join([value] * count) + "]}"
    start = time.process_time()
    assert not records._is_deep(report)
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(
    "opened, closed", [("[", "]"), ('{"a":', "}"), ('["]", ', "]")]
)
def test_nesting_is_allowed_up_to_its_limit(opened, closed):
    for depth, is_deep in ((records.MAX_DEPTH, False), (records.MAX_DEPTH + 1, True)):
        assert records._is_deep(opened * depth + "1" + closed * depth) == is_deep
        assert records._is_deep(opened * depth) == is_deep
        assert not records._is_deep(json.dumps(opened * depth))


def test_output_that_grows_when_escaped_is_no_failure_of_the_grader(sandbox):
    program = r"""
        import fcntl, os
        def f():
            for fd in range(1, 32):
                try:
                    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 1 << 20)
                except OSError:
                    pass
            for fd in range(3, 32):
                try:
                    os.write(fd, b"\xff" * (64 << 10))
                except OSError:
                    pass
            os.write(1, b"\xff" * (300 << 10))
            os._exit(0)
        """
    assert call(sandbox, program).status == "output_limit"
