"""Programs that exceed a limit are ended."""

import fcntl
import os
import time

import pytest

from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Call, Limits, Stdin
from sdpo_jax.sandbox.worker import pipes
from tests.sandbox.boxes import call

LIMIT_CASES = {
    "endless loop": ("def f():\n    while True: pass", "time_limit"),
    "loop that ignores signals": (
        """
        import signal
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)
        def f():
            while True: pass
        """,
        "time_limit",
    ),
    "slow compilation": ("x = " + "+".join(["1"] * 400_000), "time_limit|error"),
    "memory bomb": ("def f():\n    return len(bytearray(10**10))", "memory_limit"),
    "slow memory bomb": (
        "def f():\n    x = []\n    while True: x.append(bytearray(10**7))",
        "memory_limit",
    ),
    "output bomb": ("def f():\n    while True: print('x' * 1000)", "output_limit"),
    "result bomb": ("def f():\n    return 'x' * 10**6", "output_limit"),
    "closed pipes": (
        "import os\ndef f():\n    os.closerange(0, 64)\n    while True: pass",
        "time_limit",
    ),
}


@pytest.mark.parametrize("name", LIMIT_CASES)
def test_limit_ends_a_program(sandbox, name):
    program, statuses = LIMIT_CASES[name]
    start = time.monotonic()
    # On a busy machine, filling the memory takes more than the default second.
    cpu_s = {"memory_limit": 4.0, "time_limit": 0.3}.get(statuses)
    execution = call(sandbox, program, cpu_s=cpu_s)
    assert execution.status in statuses.split("|"), execution
    assert time.monotonic() - start < 8.0


def test_kernel_enforces_every_limit(tier):
    program = """
        import resource
        def f(names):
            numbers = [getattr(resource, f"RLIMIT_{name}") for name in names]
            return [resource.getrlimit(number) for number in numbers]
        """
    limits = Limits(cpu_s=1.5, memory_mb=300, processes=40, open_files=20)
    expected = {"AS": 300 << 20, "CPU": 3, "NOFILE": 20, "FSIZE": 0}
    expected |= {"CORE": 0, "MEMLOCK": 0, "MSGQUEUE": 0}
    if os.geteuid() == 0:  # One more than the limit: the test's main thread.
        expected["NPROC"] = 41

    with Sandbox(limits, tier, workers=1) as box:
        limits = call(box, program, list(expected)).result

    assert limits == [[value, value] for value in expected.values()]


def test_time_in_the_kernel_counts(sandbox):
    program = """
        import os, time
        def f():
            zero = os.open("/dev/zero", os.O_RDONLY)
            while time.process_time() < 0.1:
                os.read(zero, 1 << 20)
        """
    assert call(sandbox, program).cpu_s > 0.09


@pytest.mark.parametrize(
    "body, times", [("time.sleep(60)", 2), ("while True: pass", 1)]
)
def test_program_that_sleeps_is_run_twice_and_counted(
    sandbox, monkeypatch, body, times
):
    before, exchange, requests = sandbox.wall_retries, sandbox.exchange, []
    record_and_run = lambda r: requests.append(r) or exchange(r)
    monkeypatch.setattr(sandbox, "exchange", record_and_run)

    execution = call(sandbox, f"import time\ndef f():\n    {body}", cpu_s=0.1)

    assert execution.status == "time_limit"
    assert (len(requests), sandbox.wall_retries) == (times, before + times - 1)


def test_program_that_waits_costs_two_clock_limits_and_a_quarter(tier):
    program = "import time\ndef f(x):\n    time.sleep(60 * (x == 1))"
    tests = [Call("f", [index]) for index in range(4)]
    limits = Limits(cpu_s=0.4, wall_s=0.8)
    with Sandbox(limits, tier, workers=1, process_per="program") as box:
        box.run("def f(x): pass", tests)
        start = time.monotonic()
        executions = box.run(program, tests)
        spent_s = time.monotonic() - start

    statuses = [e.status for e in executions]
    assert statuses == ["ok", "time_limit", "skipped", "skipped"]
    # Once together, twice alone, and half a limit for a busy machine.
    assert spent_s < (0.25 + 2 + 0.5) * limits.wall_s


def test_clock_limit_scales_with_cpu_limit():
    default = {"cpu_s": 6.0, "wall_s": 30.0, "memory_mb": 1024, "output_kb": 4096}
    assert Limits().as_message() == default | {"processes": 128, "open_files": 32}
    message = Limits(cpu_s=2.0, wall_s=8.0).as_message(cpu_s=0.5, output_kb=7)
    assert (message["cpu_s"], message["wall_s"], message["output_kb"]) == (0.5, 2.0, 7)


def test_tests_after_a_reached_limit_are_skipped_unless_required(sandbox):
    program = "def f(x):\n    while x: pass\n    return x"
    tests = [Call("f", [0]), Call("f", [1]), Call("f", [0])]
    stopped = sandbox.run(program, tests, cpu_s=0.2)
    complete = sandbox.run(program, tests, cpu_s=0.2, stop_at_limit=False)
    assert [e.status for e in stopped] == ["ok", "time_limit", "skipped"]
    assert [e.status for e in complete] == ["ok", "time_limit", "ok"]


def test_thread_bomb_is_contained(sandbox):
    program = """
        import threading, time
        def f():
            count = 0
            try:
                while count < 100_000:
                    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
                    count += 1
            except (RuntimeError, MemoryError):
                pass
            return count
        """
    execution = call(sandbox, program, cpu_s=0.5)
    assert execution.status in ("time_limit", "memory_limit") or (
        execution.result <= 4096
    )


def test_one_run_may_have_a_larger_output_limit(sandbox):
    program = "def f():\n    return 'x' * 10**6"
    ended = [call(sandbox, program, output_kb=kb).status for kb in (None, 1024, None)]
    assert ended == ["output_limit", "ok", "output_limit"]


@pytest.mark.parametrize("max_bytes, is_too_much", [(300_000, False), (299_999, True)])
def test_output_of_an_ended_fork_is_read_to_its_end(max_bytes, is_too_much):
    reader, writer = os.pipe()
    # More than one read returns, and more than a pipe can hold by default.
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 1 << 20)
    os.write(writer, b"x" * 300_000)
    os.close(writer)
    output = pipes.Output()
    output.listen(reader, max_bytes)

    assert output.drain() == is_too_much
    assert bytes(output.view()) == b"x" * max_bytes
    os.close(reader)


def test_outputs_of_many_tests_need_not_fit_into_memory_together(tier):
    program = "import os\nfor _ in range(16):\n    os.write(1, b'\\xff' * 65536)"
    limits = Limits(memory_mb=64, output_kb=1024)
    with Sandbox(limits, tier, workers=1) as box:
        executions = box.run(program, [Stdin("")] * 20)
    assert {(e.status, len(e.stdout)) for e in executions} == {("ok", 1 << 20)}
