"""Programs that try to access files, processes, the network and the kernel."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Packages, SandboxUnavailable
from sdpo_jax.sandbox.worker import confinement
from tests.sandbox.boxes import LIMITS, call, is_installed

ROOT = Path(__file__).parents[2]


def test_program_cannot_read_host_files(sandbox, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("42")
    secret.chmod(0o644)
    paths = ["/etc/passwd", str(secret), __file__, "/proc/self/environ", "/proc/1/maps"]
    program = """
        import os
        def f(paths):
            found = []
            for path in paths:
                try:
                    found.append(open(path, "rb").read().decode())
                except OSError:
                    pass
            return found
        """
    assert call(sandbox, program, paths).result == []


def test_program_sees_no_environment_and_no_spare_descriptors(sandbox):
    program = """
        import os
        def f():
            open_files = []
            for fd in range(64):
                try:
                    os.fstat(fd)
                    open_files.append(fd)
                except OSError:
                    pass
            return [sorted(os.environ), len(open_files)]
        """
    names, count = call(sandbox, program).result
    assert set(names) <= {"PYTHONHASHSEED", "LC_CTYPE", "PWD"}
    assert count == 4  # Standard input, output and error, and the report.


def test_program_sees_no_command_line(sandbox):
    program = "import sys\ndef f(): return [sys.argv, sys.orig_argv]"
    assert call(sandbox, program).result == [["Solution.py"]] * 2


def test_program_finds_no_setup_where_the_worker_started(sandbox):
    program = """
        import sys
        def f():
            return repr(vars(sys.modules["__main__"]))
        """
    found = call(sandbox, program).result
    assert "drops_uid" not in found


def test_program_writes_and_changes_no_file(sandbox, tmp_path):
    target = tmp_path / "target"
    target.write_text("kept")
    for path in (tmp_path, *tmp_path.parents[:2]):
        path.chmod(0o777)
    target.chmod(0o666)
    program = """
        import os
        def f(folder):
            target = folder + "/target"
            attempts = [
                lambda: open(target, "w"),
                lambda: open(folder + "/new", "w"),
                lambda: open("/tmp/sandbox_escape", "w"),
                lambda: open("/dev/shm/sandbox_escape", "w"),
                lambda: open("new", "w"),
                lambda: os.unlink(target),
                lambda: os.rename(target, folder + "/x"),
                lambda: os.truncate(target, 0),
                lambda: os.chmod(target, 0),
                lambda: os.utime(target),
                lambda: os.symlink("a", folder + "/b"),
                lambda: os.link(target, folder + "/c"),
                lambda: os.mkdir(folder + "/d"),
                lambda: os.mkfifo(folder + "/e"),
            ]
            found = []
            for number, attempt in enumerate(attempts):
                try:
                    attempt()
                    found.append(number)
                except OSError:
                    pass
            return found
        """
    assert call(sandbox, program, str(tmp_path)).result == []
    assert target.read_text() == "kept"
    assert os.listdir(tmp_path) == ["target"]


def test_program_has_no_network(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = """
            import socket
            def f(port):
                found = []
                for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX, 40):
                    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                        try:
                            socket.socket(family, kind)
                            found.append([family, kind])
                        except OSError:
                            pass
                try:
                    socket.create_connection(("127.0.0.1", port), 1)
                    found.append(port)
                except OSError:
                    pass
                return found
            """
        assert call(sandbox, program, server.getsockname()[1]).result == []


def test_program_starts_no_process(sandbox):
    program = """
        import ctypes, os, subprocess, multiprocessing
        def f():
            libc = ctypes.CDLL(None, use_errno=True)
            found = []
            def fork_bomb():
                while True:
                    os.fork()
            def raw(number, *arguments):
                result = libc.syscall(number, *arguments)
                if result == 0 and number in (56, 57, 58, 220, 435):
                    os._exit(0)
                if result < 0:
                    raise OSError
            attempts = {
                "fork": fork_bomb,
                "forkpty": os.forkpty,
                "spawn": lambda: subprocess.Popen(["/bin/true"]),
                "exec": lambda: os.execv("/bin/true", ["true"]),
                "vfork": lambda: raw(58),
                "clone": lambda: raw(56, 17, 0, 0, 0, 0),
                "clone in a new user": lambda: raw(56, 0x10000011, 0, 0, 0, 0),
                "clone3": lambda: raw(435, bytes(88), 88),
                "x32 fork": lambda: raw(0x40000000 + 57),
                "unshare": lambda: raw(272, 0x10000000),
                "multiprocessing": lambda: multiprocessing.Process(target=id).start(),
            }
            if os.uname().machine != "x86_64":  # The numbers differ.
                for name in ("vfork", "clone", "clone in a new user", "x32 fork"):
                    del attempts[name]
                del attempts["unshare"]
            for name, attempt in attempts.items():
                try:
                    attempt()
                    found.append(name)
                except OSError:
                    pass
            return found
        """
    assert call(sandbox, program).result == []


def test_program_cannot_touch_its_worker_or_forge_its_messages(sandbox):
    program = """
        import ctypes, fcntl, os, resource, signal, struct
        def f():
            parent = os.getppid()
            libc = ctypes.CDLL(None, use_errno=True)
            text = b'{"executions": [{"ended": "exit"}]}'
            forged = struct.pack(">I", len(text)) + text
            found = []
            def pipes(fd):
                os.write(os.open(f"/proc/{parent}/fd/{fd}", os.O_WRONLY), forged)
            def libc_call(name, *arguments):
                if getattr(libc, name)(*arguments) < 0:
                    raise OSError
            def own_signal():
                fcntl.fcntl(0, fcntl.F_SETOWN, parent)
            attempts = [
                lambda: pipes(0), lambda: pipes(1), lambda: pipes(3), lambda: pipes(4),
                lambda: os.kill(parent, signal.SIGKILL),
                lambda: os.killpg(0, signal.SIGKILL),
                lambda: os.kill(-1, signal.SIGKILL),
                lambda: resource.prlimit(parent, resource.RLIMIT_CPU, (0, 0)),
                lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE),
                lambda: libc_call("ptrace", 16, parent, None, None),
                lambda: libc_call("process_vm_readv", parent, None, 0, None, 0, 0),
                lambda: open(f"/proc/{parent}/mem", "r+b"),
                lambda: os.setpriority(os.PRIO_PROCESS, parent, 19),
                lambda: os.pidfd_open(parent),
                lambda: os.setsid(),
                lambda: libc_call("prctl", 4, 1, 0, 0, 0),
                own_signal,
            ]
            for number, attempt in enumerate(attempts):
                try:
                    attempt()
                    found.append(number)
                except OSError:
                    pass
            return found
        """
    execution = call(sandbox, program)
    assert (execution.status, execution.result) == ("ok", [])


def test_program_runs_as_an_unprivileged_user(sandbox):
    program = "import os\ndef f():\n    return [os.getuid(), os.getgroups()]"
    uid, groups = call(sandbox, program).result
    assert uid != 0 and 0 not in groups


@pytest.mark.skipif(os.geteuid() != 0, reason="others may trace no process here")
def test_landlock_alone_confines_the_worker_and_its_fork():
    """Without the seccomp filters, which would hide that landlock has a hole."""
    program = """
import os
from sdpo_jax.sandbox.worker.confinement import Confinement
from sdpo_jax.sandbox.worker.kernel import libc, prctl

PTRACE_SEIZE = 0x4206
confinement = Confinement(
    {"landlock": "required", "seccomp": False, "drops_uid": False, "readable": []}
)
confinement.enter_worker()
prctl(4, 1)  # Dumpable: otherwise this alone would prevent tracing.
try:
    open("/etc/passwd")
except PermissionError:
    print("closed", flush=True)
for is_test in (False, True):
    if os.fork() == 0:
        if is_test:
            confinement.enter_test([])
        print(libc.ptrace(PTRACE_SEIZE, os.getppid(), 0, 0), flush=True)
        os._exit(0)
    os.wait()
"""
    command = [sys.executable, "-c", program]
    output = subprocess.check_output(command, cwd=ROOT, text=True)
    assert output.split() == ["closed", "0", "-1"]


@pytest.mark.skipif(not is_installed("B"), reason="no bubblewrap here")
def test_namespaces_confine_a_worker_that_has_not_confined_itself():
    """Trusted source runs before landlock and seccomp, and reports what it can do."""
    look = """
import os, socket
found = [name for _, name in socket.if_nameindex() if name != "lo"]
found += [path for path in ("/etc/passwd", "/proc/self", "/sys")
          if os.path.exists(path)]
found += [os.getuid()] * (os.getuid() == 0) + [os.getpid()] * (os.getpid() > 9)
for path in ("/x", "/usr/x", "/dev/x"):
    try:
        open(path, "w")
        found.append(path)
    except OSError:
        pass
raise OSError(str(found))
"""
    with pytest.raises(SandboxUnavailable, match=r"cannot confine itself: \[\]"):
        Sandbox(LIMITS, "B", workers=1, packages=Packages(prepare=look))


SETUP = {"landlock": "required", "seccomp": True, "drops_uid": True, "readable": []}


def test_kernel_without_landlock_is_refused_where_it_is_required(monkeypatch):
    monkeypatch.setattr(confinement, "landlock_version", lambda: 0)
    with pytest.raises(OSError, match="no landlock"):
        confinement.Confinement(SETUP)


def test_machine_without_a_filter_is_refused(monkeypatch):
    monkeypatch.setattr(confinement.platform, "machine", lambda: "riscv64")
    with pytest.raises(OSError, match="no seccomp filter for riscv64"):
        confinement.Confinement(SETUP | {"landlock": "off"})


def test_packages_of_the_host_are_not_in_the_standard_library(monkeypatch, tmp_path):
    for name in ("json", "site-packages", "dist-packages"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(os, "__file__", str(tmp_path / "os.py"))
    paths = dict(confinement.readable_paths([]))
    inside = [name for name in os.listdir(tmp_path) if str(tmp_path / name) in paths]
    assert inside == ["json"]
