import errno
import os
import re
from pathlib import Path

import pytest

from sdpo_jax.sandbox.worker import seccomp

# Calls that no program may make. Repeated here, so that removing a line of the tables
# fails a test: the other tests read the tables.
DENIED = """
accept accept4 acct add_key adjtimex bind bpf chmod chown chroot clock_adjtime
clock_settime connect creat delete_module execve execveat fanotify_init fchmod fchmodat
fchmodat2 fchown fchownat finit_module flock fremovexattr fsconfig fsetxattr fsmount
fsopen fspick futimesat init_module inotify_add_watch inotify_init inotify_init1
io_setup io_uring_enter io_uring_register io_uring_setup ioperm iopl ioprio_set kcmp
kexec_file_load kexec_load keyctl landlock_add_rule landlock_create_ruleset lchown
listen lookup_dcookie lremovexattr lsetxattr memfd_secret migrate_pages modify_ldt mount
mount_setattr move_mount move_pages mq_notify mq_open mq_unlink msgctl msgget msgrcv
msgsnd name_to_handle_at open_by_handle_at open_tree openat2 perf_event_open personality
pidfd_getfd pidfd_send_signal pivot_root process_madvise process_mrelease
process_vm_readv process_vm_writev ptrace quotactl quotactl_fd reboot removexattr
request_key rt_sigqueueinfo rt_tgsigqueueinfo sched_setaffinity sched_setattr
sched_setparam sched_setscheduler seccomp semctl semget semop semtimedop setdomainname
sethostname setns setpriority setsid settimeofday setxattr shmat shmctl shmget socket
swapoff swapon sync syncfs syslog tgkill tkill truncate umount2 unshare uselib
userfaultfd utime utimensat utimes vhangup
"""
OF_THE_WORKER = "fork vfork pidfd_open kill setpgid prctl memfd_create"
HEADERS = ["x86_64-linux-gnu/asm/unistd_64.h", "asm-generic/unistd.h"]


def test_tables_have_every_forbidden_call():
    assert set(seccomp.call_numbers(seccomp.DENIED_CALLS, 0)) == set(DENIED.split())
    worker_calls = set(seccomp.call_numbers(seccomp.WORKER_CALLS, 0))
    assert worker_calls == set(OF_THE_WORKER.split())


@pytest.mark.parametrize("column", [0, 1])
def test_numbers_are_those_of_the_kernels_headers(column):
    header = Path("/usr/include", HEADERS[column])
    if not header.exists():
        pytest.skip(f"no {header} here")
    pattern = r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$"
    known = dict(re.findall(pattern, header.read_text(), re.MULTILINE))
    tables = (seccomp.DENIED_CALLS, seccomp.WORKER_CALLS, seccomp.CONDITIONAL_CALLS)
    numbers = {}
    for table in tables:
        numbers |= seccomp.call_numbers(table, column)
    # An older header lacks newer calls.
    expected = {name: int(known[name]) for name in numbers if name in known}
    assert len(expected) > 100
    assert numbers == numbers | expected


def verdict(steps, machine, number, *arguments):
    """A filter's verdict on a call: 0 if allowed, an error number, or "kill"."""
    words = {0: number, 4: seccomp.MACHINES[machine]}
    words |= {16 + 8 * i: value for i, value in enumerate(arguments)}
    at = accumulator = 0
    while True:
        operation, when_true, when_false, operand = steps[at]
        at += 1
        if operation == seccomp.LOAD:
            accumulator = words.get(operand, 0)
            continue
        if operation == seccomp.RETURN:
            code = {seccomp.ALLOW: 0, seccomp.KILL: "kill"}
            return code.get(operand, operand & 0xFFFF)
        truth = {
            seccomp.EQUAL: accumulator == operand,
            seccomp.AT_LEAST: accumulator >= operand,
            seccomp.ANY_BIT: accumulator & operand,
        }[operation]
        at += when_true if truth else when_false


@pytest.mark.parametrize("column, machine", [(0, "x86_64"), (1, "aarch64")])
def test_filter_follows_the_tables(column, machine):
    common = seccomp.worker_steps(landlock_abi=2, column=column)
    forks = seccomp.fork_steps(column)

    def numbers(table):
        return seccomp.call_numbers(table, column)

    for number in numbers(seccomp.DENIED_CALLS).values():
        assert verdict(common, machine, number) == errno.EPERM
    for number in numbers(seccomp.WORKER_CALLS).values():
        assert verdict(common, machine, number) == 0
        assert verdict(forks, machine, number) == errno.EPERM
    special = numbers(seccomp.CONDITIONAL_CALLS)
    assert verdict(common, machine, special["clone3"]) == errno.ENOSYS
    assert verdict(common, machine, special["prlimit64"], 0) == 0
    assert verdict(common, machine, special["prlimit64"], 7) == errno.EPERM
    stream, flags = 1, 0x80800  # SOCK_CLOEXEC and SOCK_NONBLOCK.
    assert verdict(common, machine, special["socketpair"], 1, stream | flags) == 0
    for family, kind in ((2, stream), (1, 2), (1, 3 | flags), (1, 5)):
        code = verdict(common, machine, special["socketpair"], family, kind)
        assert code == errno.EPERM
    for request in seccomp.IOCTLS:
        assert verdict(common, machine, special["ioctl"], 0, request) == 0
    for request in (0, 0x8901, 0x8902, 0x8912, 0x5412, 0x40086602):
        assert verdict(common, machine, special["ioctl"], 0, request) == errno.EPERM
    for command, code in ((1, 0), (8, 1), (10, 1), (15, 1), (1030, 0)):
        assert verdict(common, machine, special["fcntl"], 0, command) == code
    truncate = (0, 0, os.O_TRUNC)
    assert verdict(common, machine, special["openat"], *truncate) == errno.EPERM
    newer = seccomp.worker_steps(landlock_abi=3, column=column)
    assert verdict(newer, machine, special["openat"], *truncate) == 0
    if "open" in special:
        assert verdict(common, machine, special["open"], 0, os.O_TRUNC) == errno.EPERM
    for number in (453, 460):
        assert verdict(common, machine, number) == errno.ENOSYS
    assert verdict(common, machine, 0x40000000 + 57) == errno.ENOSYS
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[machine]
    assert verdict(common, other, 0) == "kill"


@pytest.mark.parametrize("column, machine", [(0, "x86_64"), (1, "aarch64")])
def test_forks_start_threads_and_no_process(column, machine):
    clone = seccomp.call_numbers(seccomp.CONDITIONAL_CALLS, column)["clone"]
    forks = seccomp.fork_steps(column)
    assert verdict(forks, machine, clone, 0x3D0F00) == 0  # A thread.
    # A process, and all flags of a thread but CLONE_THREAD.
    for flags in (0x1200011, 0x3C0F00):
        assert verdict(forks, machine, clone, flags) == errno.EPERM
