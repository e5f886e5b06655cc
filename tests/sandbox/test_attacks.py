"""Actions that the kernel must refuse to a program, one property each."""

import errno
import json
import os
import platform
import socket
import subprocess
import tempfile
import textwrap
from pathlib import Path

import pytest

from sdpo_jax.sandbox.values import Call
from sdpo_jax.sandbox.worker import seccomp

# "Does not exist" is as good as "not permitted"; other errors mean that the kernel
# started the call.
REFUSALS = {
    getattr(errno, name)
    for name in "EPERM EACCES ENOSYS ENOENT EROFS EFBIG EMFILE EXDEV".split()
}
PROGRAM = """
import ctypes, fcntl, mmap, multiprocessing.shared_memory, os, resource, signal, socket
import struct, subprocess, sys

def syscall(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    words = [a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result == -1:
        raise OSError(ctypes.get_errno(), "refused")

def attack(host, numbers):
    parent, folder, secret = os.getppid(), host["folder"], host["secret"]
    target, new = folder + "/target", folder + "/new"
{body}

def f(host, numbers):
    try:
        attack(host, numbers)
    except OSError as error:
        return error.errno
    return "got away"
"""

FILES = {
    "read a host file": "open(secret)",
    "read /etc/passwd": "open('/etc/passwd')",
    "read by way of O_PATH": """
        fd = os.open(secret, os.O_PATH)
        open(f"/proc/self/fd/{fd}")
        """,
    "read its own environ": "open('/proc/self/environ')",
    "read its own maps": "open('/proc/self/maps')",
    "read its own memory file": "open('/proc/self/mem', 'rb')",
    "read the command line of the worker": "open(f'/proc/{parent}/cmdline')",
    "read the memory of the worker": "open(f'/proc/{parent}/mem', 'r+b')",
    "read the environment of the trainer": "open(f'/proc/{host[\"trainer\"]}/environ')",
    "follow the trainer's folder": "os.readlink(f'/proc/{host[\"trainer\"]}/cwd')",
    "see another user's process": "open(f'/proc/{host[\"victim\"]}/cmdline')",
    "read control groups": "open('/sys/fs/cgroup/memory/memory.limit_in_bytes')",
    "read kernel messages": "open('/dev/kmsg')",
    "open a terminal": "open('/dev/tty')",
    "open physical memory": "open('/dev/mem', 'rb')",
    "list a host folder": "os.listdir(folder)",
    "list processes": "os.listdir('/proc')",
    "list devices": "os.listdir('/dev')",
    "write a new file": "open(new, 'w')",
    "write an existing file": "open(target, 'r+')",
    "append to the standard library": "open(os.__file__, 'a')",
    "write a file in /tmp": "open('/tmp/sdpo_attack', 'w')",
    "write a file in /var/tmp": "open('/var/tmp/sdpo_attack', 'w')",
    "write a file in /dev/shm": "open('/dev/shm/sdpo_attack', 'w')",
    "write a file here": "open('sdpo_attack', 'w')",
    "make a nameless file": "os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)",
    "make named shared memory": """
        multiprocessing.shared_memory.SharedMemory(create=True, size=4096)
        """,
    "map a host file": "mmap.mmap(os.open(target, os.O_RDWR), 0)",
    "truncate a file": "os.truncate(target, 0)",
    "remove a file": "os.unlink(target)",
    "rename a file": "os.rename(target, new)",
    "link a file": "os.link(target, new)",
    "link a name": "os.symlink(target, new)",
    "make a folder": "os.mkdir(new)",
    "remove a folder": "os.rmdir(folder + '/empty')",
    "make a pipe with a name": "os.mkfifo(new)",
    "make a device": "os.mknod(new, 0o20666, os.makedev(1, 3))",
    "change a file's mode": "os.chmod(target, 0)",
    "change a file's owner": "os.chown(target, os.getuid(), -1)",
    "change a file's times": "os.utime(target)",
    "change a file's attributes": "os.setxattr(target, 'user.x', b'1')",
    "change a library's flags": """
        fcntl.ioctl(os.open(os.__file__, os.O_RDONLY), 0x40086602, struct.pack("l", 0))
        """,
    "seal a library": """
        fcntl.ioctl(os.open(os.__file__, os.O_RDONLY), 0x40806685, bytes(128))
        """,
    "lock a library": """
        fcntl.flock(os.open(os.__file__, os.O_RDONLY), fcntl.LOCK_SH | fcntl.LOCK_NB)
        """,
    "write all disks": "syscall(numbers['sync'])",
    "flush a disk": "syscall(numbers['syncfs'], 0)",
}
PROCESSES = {
    "fork": "os._exit(0) if os.fork() == 0 else None",
    "fork with a terminal": "os._exit(0) if os.forkpty()[0] == 0 else None",
    "become a daemon": """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                open(new, "w")
            os._exit(0)
        """,
    "spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "start a shell": "subprocess.run('true', shell=True)",
    "start a worker of its own": "multiprocessing.Process(target=id).start()",
    "become a program": "os.execv('/bin/true', ['true'])",
    "become a program by descriptor": """
        os.execve(os.open("/usr/bin/env", os.O_PATH), ["env"], {})
        """,
    "kill its worker": "os.kill(parent, signal.SIGKILL)",
    "kill the trainer": "os.kill(host['trainer'], signal.SIGKILL)",
    "kill another user's process": "os.kill(host['victim'], signal.SIGKILL)",
    "kill everybody": "os.kill(-1, signal.SIGKILL)",
    "kill its group": "os.killpg(0, signal.SIGKILL)",
    "kill itself": "os.kill(os.getpid(), signal.SIGKILL)",
    "stop itself": "signal.raise_signal(signal.SIGSTOP)",
    "kill a thread of its worker": "syscall(numbers['tkill'], parent, 9)",
    "queue a signal": "syscall(numbers['rt_sigqueueinfo'], parent, 9, bytes(128))",
    "hold its worker": "os.pidfd_open(parent)",
    "signal by descriptor": "syscall(numbers['pidfd_send_signal'], 0, 9, 0, 0)",
    "take a descriptor": "syscall(numbers['pidfd_getfd'], 0, 0, 0)",
    "have the kernel signal": "fcntl.fcntl(0, fcntl.F_SETOWN, parent)",
    "have a socket signal": """
        fcntl.ioctl(socket.socketpair()[0], 0x8901, struct.pack("i", parent))
        """,
    "have a socket signal a group": """
        fcntl.ioctl(socket.socketpair()[0], 0x8902, struct.pack("i", -parent))
        """,
    "trace its worker": "syscall(numbers['ptrace'], 16, parent, 0, 0)",
    "ask to be traced": "syscall(numbers['ptrace'], 0, 0, 0, 0)",
    "read its worker's memory": """
        syscall(numbers["process_vm_readv"], parent, 0, 0, 0, 0, 0)
        """,
    "write its worker's memory": """
        syscall(numbers["process_vm_writev"], parent, 0, 0, 0, 0, 0)
        """,
    "compare with its worker": "syscall(numbers['kcmp'], os.getpid(), parent, 0, 0, 0)",
    "limit its worker": "resource.prlimit(parent, resource.RLIMIT_CPU, (0, 0))",
    "read its worker's limits": "resource.prlimit(parent, resource.RLIMIT_CPU)",
    "leave its session": "os.setsid()",
    "join another group": "os.setpgid(0, parent)",
    "become root": """
        try:
            os.setuid(0)
        except OSError:  # Where root is not mapped, the number is invalid.
            os.kill(os.getpid(), 0)
        """,
    "become the group of root": """
        try:
            os.setgid(0)
        except OSError:
            os.kill(os.getpid(), 0)
        """,
    "join groups": "os.setgroups([0])",
    "be polite to get time later": "os.nice(-5)",
    "choose its processor": "os.sched_setaffinity(0, {0})",
    "be in real time": "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    "outlive its worker": "syscall(numbers['prctl'], 1, 0, 0, 0, 0)",
    "be dumpable": "syscall(numbers['prctl'], 4, 1, 0, 0, 0)",
    "adopt orphans": "syscall(numbers['prctl'], 36, 1, 0, 0, 0)",
}
NETWORK = {
    **{
        f"open {family} {kind}": f"""
        socket.socket({family}, {kind})
        """
        for family, kind in [
            ("socket.AF_INET", "socket.SOCK_STREAM"),
            ("socket.AF_INET", "socket.SOCK_DGRAM"),
            ("socket.AF_INET", "socket.SOCK_RAW"),
            ("socket.AF_INET6", "socket.SOCK_STREAM"),
            ("socket.AF_UNIX", "socket.SOCK_STREAM"),
            ("socket.AF_UNIX", "socket.SOCK_DGRAM"),
            ("16", "socket.SOCK_RAW"),  # Netlink.
            ("17", "socket.SOCK_RAW"),  # Packets.
            ("38", "socket.SOCK_SEQPACKET"),  # Ciphers of the kernel.
            ("40", "socket.SOCK_STREAM"),  # Other virtual machines.
        ]
    },
    "connect": "socket.create_connection(('127.0.0.1', host['port']), 1)",
    "make an internet pair": "socket.socketpair(socket.AF_INET)",
    "write to a service's socket": """
        socket.socketpair(type=socket.SOCK_DGRAM)[0].sendto(b"x", folder + "/service")
        """,
    "write raw to a service's socket": """
        socket.socketpair(type=socket.SOCK_RAW)[0].sendto(b"x", folder + "/service")
        """,
    "write to an abstract socket": """
        pair = socket.socketpair(type=socket.SOCK_DGRAM)
        pair[0].sendto(b"x", host["abstract"])
        """,
    "send a signal by ioctl": "fcntl.ioctl(0, 0x5412, b'x')",
    "list network interfaces": """
        fcntl.ioctl(socket.socketpair()[0], 0x8912, bytes(16))
        """,
    "read a hardware address": """
        fcntl.ioctl(socket.socketpair()[0], 0x8927, b"lo".ljust(40, b"\\0"))
        """,
}
# Only the verdict of the filter matters, so the arguments are invalid.
KERNEL = [
    "memfd_create memfd_secret keyctl add_key request_key io_uring_setup io_setup bpf",
    "userfaultfd perf_event_open unshare setns mount umount2 pivot_root chroot swapon",
    "open_tree move_mount fsopen open_by_handle_at name_to_handle_at openat2 reboot",
    "init_module finit_module delete_module kexec_load acct quotactl syslog mq_open",
    "settimeofday clock_settime adjtimex personality shmget shmat msgget semget",
    "inotify_init1 fanotify_init sethostname ioprio_set process_madvise seccomp",
    "landlock_create_ruleset landlock_add_rule clone clone3 vfork fork",
    "migrate_pages move_pages",
]
NUMBERS = {
    name: number
    for table in (
        seccomp.DENIED_CALLS,
        seccomp.WORKER_CALLS,
        seccomp.CONDITIONAL_CALLS,
    )
    for name, number in seccomp.call_numbers(
        table, list(seccomp.MACHINES).index(platform.machine())
    ).items()
}
ATTACKS = {
    **FILES,
    **PROCESSES,
    **NETWORK,
    **{
        f"call {name}": f"syscall(numbers[{name!r}], 0, 0, 0, 0, 0)"
        for name in " ".join(KERNEL).split()
        if name in NUMBERS or name not in ("fork", "vfork")  # Not on every machine.
    },
}


@pytest.fixture(scope="module")
def host():
    """Targets of the attacks, open to every user."""
    other = {"user": 65534} if os.geteuid() == 0 else {}
    with (
        tempfile.TemporaryDirectory() as name,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract,
        subprocess.Popen(["sleep", "600"], **other) as victim,
    ):
        folder = Path(name)
        (folder / "secret").write_text("42")
        (folder / "target").write_text("kept")
        (folder / "empty").mkdir()
        service.bind(f"{folder}/service")
        abstract.bind(f"\0sdpo-{os.getpid()}")
        for path in (folder, *folder.iterdir()):
            path.chmod(0o777)
        yield {
            "folder": name,
            "secret": f"{folder}/secret",
            "port": server.getsockname()[1],
            "abstract": f"\0sdpo-{os.getpid()}",
            "trainer": os.getpid(),
            "victim": victim.pid,
        }
        assert (folder / "target").read_text() == "kept"
        names = {"secret", "target", "empty", "service"}
        assert {path.name for path in folder.iterdir()} == names
        assert victim.poll() is None
        victim.kill()
        for heard in (server, service, abstract):
            heard.setblocking(False)
            with pytest.raises(BlockingIOError):
                heard.accept() if heard is server else heard.recv(1)


@pytest.mark.parametrize("name", ATTACKS)
def test_kernel_refuses_a_program_to(sandbox, host, name):
    body = textwrap.indent(textwrap.dedent(ATTACKS[name]), "    ")
    program = PROGRAM.replace("{body}", body)

    (execution,) = sandbox.run(program, [Call("f", [host, NUMBERS])])

    assert execution.status == "ok", execution
    assert execution.result in REFUSALS, execution


def test_program_of_another_architecture_is_killed(sandbox):
    if platform.machine() != "x86_64":
        pytest.skip("there is no second architecture here")
    program = """
import ctypes, mmap
def f():
    code = mmap.mmap(-1, 4096, prot=7)
    code.write(bytes.fromhex("b814000000cd80c3"))  # getpid
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    return ctypes.CFUNCTYPE(ctypes.c_long)(address)()
"""
    (execution,) = sandbox.run(program, [Call("f", [])])
    assert execution.error_type == "Crash", execution


def test_every_attack_is_a_program():
    for name, body in ATTACKS.items():
        body = textwrap.indent(textwrap.dedent(body), "    ")
        compile(PROGRAM.replace("{body}", body), name, "exec")
    assert json.dumps(NUMBERS) and len(ATTACKS) >= 90
