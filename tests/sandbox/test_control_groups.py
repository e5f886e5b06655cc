import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdpo_jax.sandbox import control_groups
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.process import Worker
from sdpo_jax.sandbox.values import Limits, Packages, SandboxUnavailable
from tests.sandbox.boxes import is_installed

try:
    FOLDERS = control_groups.folders()
except OSError:
    FOLDERS = {}
needs_groups = pytest.mark.skipif(not FOLDERS, reason="no control groups here: tier A")
needs_tier_a = pytest.mark.skipif(not is_installed("A"), reason="no tier A here")


def groups():
    return [
        path for f in FOLDERS.values() for path in f.glob(f"sdpo_jax-{os.getpid()}-*")
    ]


def started(code):
    """A Python that runs `code`, with pipes to it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], **pipes)


@pytest.fixture
def group():
    assert not groups()
    group = control_groups.Group(0, memory_mb=32, tasks=4, folders=FOLDERS)
    yield group
    group.close()
    assert not groups()


def run_in(group, code):
    """The exit code and output of `code`, run inside the group."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"input()\n{code}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    group.add(process.pid)
    out, _ = process.communicate(b"\n", timeout=60)
    return process.returncode, out.decode().strip()


@needs_groups
def test_group_bounds_memory_spread_over_children(group):
    hoard = (
        "import os, signal, time\n"
        "pids = []\n"
        "for _ in range(4):\n"
        "    pids.append(os.fork())\n"
        "    if pids[-1] == 0:\n"
        "        block = b'x' * (100 << 20)\n"
        "        time.sleep(2)\n"
        "        os._exit(0)\n"
        "ends = [os.waitpid(pid, 0)[1] for pid in pids]\n"
        "print(ends.count(signal.SIGKILL))"
    )
    code, out = run_in(group, hoard)
    assert code == -9 or int(out) >= 2


@needs_groups
def test_group_bounds_the_number_of_processes(group):
    bomb = (
        "import os, time\n"
        "count = 0\n"
        "try:\n"
        "    while count < 100:\n"
        "        if os.fork() == 0:\n"
        "            time.sleep(1)\n"
        "            os._exit(0)\n"
        "        count += 1\n"
        "except OSError:\n"
        "    pass\n"
        "print(count)"
    )
    code, out = run_in(group, bomb)
    assert code == 0 and 0 < int(out) < 4 + control_groups.WORKER_TASKS
    time.sleep(1.2)  # Its children end, so that the group can be removed.


@needs_groups
def test_existing_children_of_a_process_move_with_it(group):
    code = (
        "import subprocess\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "print(child.pid, flush=True)\n"
        "input()\n"
        "child.kill()\n"
        "child.wait()\n"
    )
    with started(code) as process:
        child = int(process.stdout.readline())
        group.add(process.pid)
        for path in groups():
            held = (path / "cgroup.procs").read_text().split()
            assert {str(process.pid), str(child)} <= set(held)
        process.communicate("\n")


@needs_tier_a
def test_worker_is_in_a_group_of_its_own_while_it_lives():
    workers = [Worker("A", Limits(), Packages()) for _ in range(2)]
    try:
        for worker in workers:
            worker.wait_until_ready()
        held = [path for path in groups() if (path / "cgroup.procs").read_text()]
        assert len(held) == 2 * len(set(FOLDERS.values()))
        assert all(worker.is_in_control_group() for worker in workers)
    finally:
        for worker in workers:
            worker.close()
    assert not groups()


@needs_tier_a
def test_worker_without_a_group_is_refused_in_tier_a(monkeypatch):
    monkeypatch.setattr(Worker, "is_in_control_group", lambda worker: False)
    with pytest.raises(SandboxUnavailable, match="tier A: is in no control group"):
        Sandbox(tier="A", workers=1)


@needs_groups
def test_groups_of_trainers_that_were_killed_are_removed():
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = [folder / f"sdpo_jax-{ended.pid}-0" for folder in FOLDERS.values()]
    own = [folder / f"sdpo_jax-{os.getpid()}-99" for folder in FOLDERS.values()]
    for path in left + own:
        path.mkdir()

    control_groups.folders()

    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in own)
    for path in own:
        path.rmdir()


@needs_groups
def test_group_left_by_a_trainer_with_the_same_pid_is_reused():
    name = f"sdpo_jax-{os.getpid()}-98"
    left = [folder / name for folder in set(FOLDERS.values())]
    for path in left:
        path.mkdir()

    control_groups.Group(98, 64, 4, FOLDERS).close()

    assert not any(path.exists() for path in left)


def tree(folder, *names):
    """A folder that looks like a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("")
    return folder


def group_of(*paths):
    """A group with existing folders."""
    group = control_groups.Group.__new__(control_groups.Group)
    group._paths = list(paths)
    return group


def test_version_2_is_used_if_its_controllers_are_delegated(tmp_path):
    own = tree(tmp_path / "user" / "run.scope")
    (own / "cgroup.subtree_control").write_text("cpu memory pids")
    mounts = f"30 23 0:26 / {tmp_path} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"

    folders = control_groups._version_2(mounts, "0::/user/run.scope\n")

    assert folders == {"memory": own, "pids": own}


def test_version_2_is_not_used_without_controllers(tmp_path):
    own = tree(tmp_path / "own")  # It lacks the file that the kernel would create.
    mounts = f"30 23 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw\n"

    assert own.exists() and control_groups._version_2(mounts, "0::/own\n") == {}


def test_limits_are_written_to_the_files_of_version_2(tmp_path):
    names = ["memory.max", "memory.swap.max", "pids.max"]
    group = group_of(tree(tmp_path / "g", *names))

    group._limit(memory_mb=32, tasks=4, has_version_2=True)

    read = lambda name: (tmp_path / "g" / name).read_text()
    assert read("memory.max") == str((32 + control_groups.WORKER_MB) << 20)
    assert (read("memory.swap.max"), read("pids.max")) == ("0", "12")


def test_limits_are_written_to_the_files_of_version_1(tmp_path):
    names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
    group = group_of(tree(tmp_path / "m", *names), tree(tmp_path / "p", "pids.max"))

    group._limit(memory_mb=32, tasks=4, has_version_2=False)

    limits = [(tmp_path / "m" / name).read_text() for name in names]
    assert limits == [str((32 + control_groups.WORKER_MB) << 20)] * 2
    assert (tmp_path / "p" / "pids.max").read_text() == "12"


@pytest.mark.parametrize("names", [["memory.max"], ["pids.max", "memory.swap.max"]])
def test_group_without_a_limit_is_refused(tmp_path, names):
    with pytest.raises(OSError, match="the kernel has no (pids|memory).max"):
        group_of(tree(tmp_path, *names))._limit(32, 4, has_version_2=True)


def test_group_that_cannot_be_limited_is_removed(tmp_path):
    folders = {"memory": tree(tmp_path / "m"), "pids": tree(tmp_path / "p")}

    with pytest.raises(OSError, match="no memory.limit_in_bytes"):
        control_groups.Group(0, 32, 4, folders)

    assert not list(tmp_path.glob("*/*"))


def test_group_holds_a_process_only_if_each_controller_does(tmp_path):
    group = group_of(tree(tmp_path / "m"), tree(tmp_path / "p"))
    for memory, pids, holds in (("1", "1", True), ("1", "\n", False)):
        (tmp_path / "m" / "cgroup.procs").write_text(memory)
        (tmp_path / "p" / "cgroup.procs").write_text(pids)
        assert group.holds_processes() == holds


def test_version_1_is_found_among_other_mounts(tmp_path):
    memory, pids = tree(tmp_path / "memory" / "job"), tree(tmp_path / "pids")
    mounts = (
        f"31 23 0:28 / {tmp_path} rw - tmpfs tmpfs rw\n"
        f"32 31 0:29 / {tmp_path}/cpu rw - cgroup cgroup rw,cpu\n"
        f"35 31 0:32 / {tmp_path}/memory rw - cgroup cgroup rw,memory\n"
        f"36 31 0:33 / {tmp_path}/pids rw - cgroup cgroup rw,pids\n"
    )

    folders = control_groups._version_1(mounts, "8:pids:/gone\n4:memory:/job\n0::/\n")

    assert folders == {"memory": memory, "pids": pids}


def test_children_of_every_thread_are_listed():
    code = (
        "import subprocess, threading\n"
        "started = []\n"
        "start = lambda: started.append(subprocess.Popen(['sleep', '5']))\n"
        "thread = threading.Thread(target=lambda: (start(), input()))\n"
        "thread.start()\n"
        "start()\n"
        "while len(started) < 2: pass\n"
        "print(*sorted(p.pid for p in started), flush=True)\n"
        "thread.join()\n"
        "[p.kill() for p in started]\n"
    )
    with started(code) as process:
        pids = sorted(map(int, process.stdout.readline().split()))
        assert sorted(control_groups.children(process.pid)) == pids
        assert Path(f"/proc/{pids[0]}").exists()
        process.communicate("\n")
