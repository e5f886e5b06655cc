"""How a sandbox and its workers start, are replaced, and end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from sdpo_jax.sandbox import process, tiers
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Limits, Packages, SandboxFailure, SandboxUnavailable
from sdpo_jax.sandbox.worker import pipes
from tests.sandbox.boxes import LIMITS, call, is_installed

ROOT = Path(__file__).parents[2]


def test_sets_of_strings_have_the_same_order_in_every_worker(tier):
    program = "def f():\n    return list({str(i) for i in range(50)})"
    orders = []
    for _ in range(2):
        with Sandbox(LIMITS, tier, workers=1) as box:
            orders.append(call(box, program).result)
    assert orders[0] == orders[1] != sorted(orders[0])


def test_run_answers_many_threads_at_once(sandbox):
    def square(n):
        return call(sandbox, "def f(n):\n    return n * n", n).result

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(square, range(40))) == [n * n for n in range(40)]


def children_of(pid):
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_close_leaves_no_process_behind(tier):
    box = Sandbox(LIMITS, tier, workers=2)
    workers = [box._free.get() for _ in range(2)]
    for worker in workers:
        box._free.put(worker)
    pids = [worker._process.pid for worker in workers]
    box.close()
    box.close()
    assert not any(map(alive, pids))
    with pytest.raises(ValueError, match="closed"):
        call(box, "def f(): pass")


def test_close_wakes_the_calls_that_wait_for_a_worker(tier):
    box = Sandbox(Limits(cpu_s=0.5), tier, workers=1)
    outcomes = []

    def run():
        try:
            outcomes.append(call(box, "def f():\n    while True: pass").status)
        except ValueError:
            outcomes.append("closed")

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    box.close()
    for thread in threads:
        thread.join(timeout=10.0)
    assert sorted(outcomes) == ["closed", "closed", "time_limit"]


def test_workers_and_programs_end_when_the_trainer_is_killed(tier):
    program = f"""
        import sys, threading, time
        sys.path.insert(0, {str(ROOT)!r})
        from sdpo_jax.sandbox.pool import Sandbox
        from sdpo_jax.sandbox.values import Call, Limits
        box = Sandbox(Limits(cpu_s=30, wall_s=60), {tier!r}, workers=1)
        endless = ("def f():\\n    while True: pass", [Call("f", [])])
        threading.Thread(target=box.run, args=endless).start()
        time.sleep(0.3)
        print(box._free.qsize(), flush=True)
        time.sleep(60)
        """
    code = textwrap.dedent(program)
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert trainer.stdout.readline() == b"0\n"
        family = [p for p in descendants(trainer.pid)]
        assert len(family) >= 2
    finally:
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
        trainer.stdout.close()
    deadline = time.monotonic() + 5.0
    while any(map(alive, family)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, family))


@pytest.mark.parametrize("is_held", [False, True])
def test_idle_worker_ends_with_its_trainer(is_held):
    """Also if a fork of the trainer holds the other end of the worker's pipe."""
    program = f"""
        import os, sys, time
        sys.path.insert(0, {str(ROOT)!r})
        from sdpo_jax.sandbox.process import Worker
        from sdpo_jax.sandbox.values import Limits, Packages
        worker = Worker("C", Limits(), Packages())
        worker.wait_until_ready()
        if not {is_held} or os.fork():
            print(worker._process.pid, flush=True)
            time.sleep(60)
        sys.stdout.close()
        time.sleep(20)
        """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as trainer:
        worker = int(trainer.stdout.readline())
        trainer.kill()
    deadline = time.monotonic() + 3 * pipes.IDLE_POLL_MS / 1000
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)


def descendants(pid):
    pids = []
    for task in os.listdir(f"/proc/{pid}/task"):
        text = Path(f"/proc/{pid}/task/{task}/children").read_text()
        for child in map(int, text.split()):
            pids += [child, *descendants(child)]
    return pids


def test_worker_is_killed_first_and_its_memory_is_unreadable():
    with Sandbox(LIMITS, "C", workers=1) as box:
        worker = box._free.get()
        box._free.put(worker)
        folder = Path(f"/proc/{worker._process.pid}")
        # If a process may not be dumped, these files belong to root.
        owners = [(folder / name).stat().st_uid for name in ("stat", "mem")]
        assert owners == [0, 0]
        assert (folder / "oom_score_adj").read_text() == "1000\n"


def test_ctrl_c_in_the_terminal_of_the_trainer_reaches_no_worker(tier):
    with Sandbox(LIMITS, tier, workers=1) as box:
        worker = box._free.get()
        box._free.put(worker)
        assert os.getsid(worker._process.pid) == worker._process.pid


def kill_worker(box):
    """Kill the only worker of a sandbox and the processes of bubblewrap around it."""
    worker = box._free.get()
    box._free.put(worker)
    for pid in (worker._process.pid, *descendants(worker._process.pid)):
        # The end of bubblewrap may already have ended the processes inside it.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_killed_worker_is_replaced_and_its_program_run_again(tier):
    with Sandbox(LIMITS, tier, workers=1) as box:
        kill_worker(box)
        assert call(box, "def f(): return 1").result == 1


def test_worker_that_dies_twice_raises_grader_failure(monkeypatch):
    with Sandbox(LIMITS, workers=1) as box:
        answers = []

        def die(worker, request):
            answers.append(request)
            raise SandboxFailure("a sandbox worker died")

        monkeypatch.setattr(process.Worker, "exchange", die)
        with pytest.raises(SandboxFailure, match="died"):
            call(box, "def f(): return 1")
        assert len(answers) == 2
        monkeypatch.undo()
        assert call(box, "def f(): return 1").result == 1


def test_worker_that_cannot_be_replaced_raises_grader_failure(monkeypatch):
    def refuse(box):
        raise SandboxUnavailable("no more processes")

    with Sandbox(LIMITS, workers=1) as box:
        kill_worker(box)
        monkeypatch.setattr(Sandbox, "_worker", refuse)
        with pytest.raises(SandboxFailure, match="no more processes"):
            call(box, "def f(): return 1")


def test_oversized_message_of_a_worker_is_refused(monkeypatch):
    with Sandbox(LIMITS, workers=1) as box:
        worker = box._free.get()
        reader, writer = os.pipe()
        os.write(writer, b"\xff\xff\xff\xff")
        monkeypatch.setattr(worker._process, "stdout", open(reader, "rb", buffering=0))
        with pytest.raises(SandboxFailure, match="allowed"):
            worker._read(1000, 1.0)
        worker._process.stdout.close()
        monkeypatch.undo()
        os.close(writer)
        box._free.put(worker)


@pytest.mark.parametrize(
    "count, sizes, message",
    [
        (2, (0, 0), "too many records"),
        (1, (1 << 20, 0), "65536 allowed"),
        (1, (0, 1 << 20), "65536 allowed"),
    ],
)
def test_oversized_answer_of_a_worker_is_refused(monkeypatch, count, sizes, message):
    request = {"program": "", "tests": [{"stdin": ""}], "limits": LIMITS.as_message()}
    with Sandbox(LIMITS, workers=1) as box:
        worker = box._free.get()
        reader, writer = os.pipe()
        os.write(writer, pipes.RECORD.pack(0, 0, 1, 0.0, *sizes) * count)
        monkeypatch.setattr(worker._process, "stdout", open(reader, "rb", buffering=0))
        monkeypatch.setattr(worker, "_write", lambda data: None)
        with pytest.raises(SandboxFailure, match=message):
            worker.exchange(request)
        worker._process.stdout.close()
        monkeypatch.undo()
        os.close(writer)
        box._free.put(worker)


def test_tier_d_is_refused_to_root_with_credentials(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "x")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(SandboxUnavailable, match="HF_TOKEN"):
        Sandbox(LIMITS, tier="D", workers=1)


def test_tier_d_still_ends_daemons_and_fork_bombs(monkeypatch):
    for name in tiers.CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    program = """
        import os, time
        def f():
            reader, writer = os.pipe()
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    os.write(writer, str(os.getpid()).encode())
                    time.sleep(60)
                os._exit(0)
            return int(os.read(reader, 9))
        """
    with Sandbox(LIMITS, tier="D", workers=1) as box:
        assert box.tier == "D"
        daemon = call(box, program).result
        assert daemon and not alive(daemon)
        worker = box._free.get()
        box._free.put(worker)
        assert children_of(worker._process.pid) == []


def test_tier_d_program_that_kills_its_group_ends_alone(monkeypatch):
    for name in tiers.CREDENTIALS:
        monkeypatch.delenv(name, raising=False)
    program = "import os, signal\ndef f(): os.killpg(0, signal.SIGTERM)"
    with Sandbox(LIMITS, tier="D", workers=1) as box:
        assert call(box, program).error_type == "Crash"


def test_auto_selects_the_strongest_tier_that_works():
    with Sandbox(LIMITS, workers=1) as box:
        assert box.tier == next(tier for tier in "ABC" if is_installed(tier))


def test_tier_with_holes_is_refused_with_a_remedy(monkeypatch):
    monkeypatch.setattr(tiers, "probe", lambda worker: ["can open a socket"])
    with pytest.raises(SandboxUnavailable, match="can open a socket.*bubblewrap") as e:
        Sandbox(LIMITS, tier="auto", workers=1)
    assert "tier C: can" in str(e.value) and "tier D: can" not in str(e.value)


def test_worker_that_cannot_confine_its_tests_is_refused(tier):
    """Such a failure must not run the program nor be blamed on it."""
    broken = """
import sys
module = sys.modules["sdpo_jax.sandbox.worker.confinement"]
def refuse(self, resource_limits):
    raise OSError
module.Confinement.enter_test = refuse
"""
    with pytest.raises(SandboxUnavailable, match="could not confine a test"):
        Sandbox(LIMITS, tier, workers=1, packages=Packages(prepare=broken))


def test_preparation_may_be_longer_than_a_command_line_allows(tier):
    long = Packages(prepare="x = 1  # " + "x" * 300_000)
    with Sandbox(LIMITS, tier, workers=1, packages=long) as sandbox:
        assert call(sandbox, "def f(): return 1").result == 1


def test_probe_finds_the_holes_of_tier_d():
    worker = process.Worker("D", LIMITS, Packages())
    try:
        holes = tiers.probe(worker)
    finally:
        worker.close()
    assert {"can open a socket", "can start a process"} <= set(holes)


ENDED = {"ended": "exit", "signal": 0, "cpu_s": 0.1, "stdout": ""}


@pytest.mark.parametrize(
    "fields, writes, holes",
    [
        ({"report": '{"result": []}'}, False, []),
        ({"report": '{"result": ["be root"]}'}, False, ["can be root"]),
        ({"report": '{"result": []}'}, True, ["wrote a file"]),
        (
            {"signal": 11, "report": ""},
            False,
            ["Crash: the interpreter crashed with signal 11"],
        ),
    ],
)
def test_probe_needs_a_result_and_checks_for_files_itself(fields, writes, holes):
    def exchange(request):
        _, folder = request["tests"][0]["arguments"]
        if writes:
            Path(folder, "x").write_text("")
        return [ENDED | fields]

    assert tiers.probe(SimpleNamespace(exchange=exchange)) == holes


def test_unsupported_platform_is_refused_with_a_remedy(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="needs Linux.*container"):
        Sandbox(LIMITS)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Limits(cpu_s=0), "cpu_s must be positive"),
        (lambda: Limits(cpu_s=10, wall_s=5), "raise wall_s"),
        (lambda: Sandbox(tier="Z"), "tier must be"),
        (lambda: Sandbox(workers=0), "workers must be"),
        (lambda: Sandbox(process_per="x"), "process_per must be"),
        (lambda: Sandbox(tier="R"), "tier must be auto, a URL or one of A, B, C, D"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_sandbox_can_be_made_and_used_in_short_lived_threads(tier):
    boxes = []
    maker = threading.Thread(
        target=lambda: boxes.append(Sandbox(LIMITS, tier, workers=1))
    )
    maker.start()
    maker.join()
    time.sleep(0.1)
    with boxes[0] as box:
        assert call(box, "def f(): return 1").result == 1


def test_environments_import_no_jax():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import sdpo_jax.envs.programming.grader, sdpo_jax.sandbox.pool\n"
        "print([m for m in ('jax', 'jaxlib', 'numpy', 'flax') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(ROOT)]
    assert json.loads(subprocess.check_output(command)) == []


def test_signals_that_the_trainer_ignores_reach_programs():
    program = (
        "import signal\n"
        "def f():\n"
        "    names = ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1')\n"
        "    found = [signal.getsignal(getattr(signal, name)) for name in names]\n"
        "    return [found[0] is signal.default_int_handler, found[1:]]"
    )
    ignored = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = [signal.signal(number, signal.SIG_IGN) for number in ignored]
    try:
        with Sandbox(LIMITS, workers=1) as box:
            execution = call(box, program)
    finally:
        for number, handler in zip(ignored, before, strict=True):
            signal.signal(number, handler)
    assert execution.result == [True, [0, 0, 0]], execution
