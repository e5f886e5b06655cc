import errno
import os

import pytest

from sdpo_jax.envs.isolation.worker import seccomp


def answer(steps, machine, number, *arguments):
    """What a filter says to a call: 0 for yes, an error number, or "kill"."""
    words = {0: number, 4: seccomp.MACHINES[machine]}
    words |= {16 + 8 * i: value for i, value in enumerate(arguments)}
    at = accumulator = 0
    while True:
        operation, when_true, when_false, operand = steps[at]
        at += 1
        if operation == seccomp.LOAD:
            accumulator = words.get(operand, 0)
            continue
        if operation == seccomp.GIVE:
            code = {seccomp.ALLOW: 0, seccomp.KILL: "kill"}
            return code.get(operand, operand & 0xFFFF)
        truth = {
            seccomp.EQUAL: accumulator == operand,
            seccomp.AT_LEAST: accumulator >= operand,
            seccomp.ANY_BIT: accumulator & operand,
        }[operation]
        at += when_true if truth else when_false


@pytest.mark.parametrize("column, machine", [(0, "x86_64"), (1, "aarch64")])
def test_filter_answers_each_call_as_the_tables_say(column, machine):
    common = seccomp.worker_steps(landlock_abi=1, column=column)
    forks = seccomp.fork_steps(column)

    def numbers(table):
        return seccomp.call_numbers(table, column)

    for number in numbers(seccomp.DENIED_CALLS).values():
        assert answer(common, machine, number) == errno.EPERM
    for number in numbers(seccomp.WORKER_CALLS).values():
        assert answer(common, machine, number) == 0
        assert answer(forks, machine, number) == errno.EPERM
    special = numbers(seccomp.CONDITIONAL_CALLS)
    thread, process = 0x3D0F00, 0x1200011
    assert answer(forks, machine, special["clone"], thread) == 0
    assert answer(forks, machine, special["clone"], process) == errno.EPERM
    assert answer(common, machine, special["clone3"]) == errno.ENOSYS
    assert answer(common, machine, special["prlimit64"], 0) == 0
    assert answer(common, machine, special["prlimit64"], 7) == errno.EPERM
    stream, flags = 1, 0x80800  # SOCK_CLOEXEC and SOCK_NONBLOCK.
    assert answer(common, machine, special["socketpair"], 1, stream | flags) == 0
    for family, kind in ((2, stream), (1, 2), (1, 3 | flags), (1, 5)):
        code = answer(common, machine, special["socketpair"], family, kind)
        assert code == errno.EPERM
    for request in seccomp.IOCTLS:
        assert answer(common, machine, special["ioctl"], 0, request) == 0
    for request in (0, 0x8901, 0x8902, 0x8912, 0x5412, 0x40086602):
        assert answer(common, machine, special["ioctl"], 0, request) == errno.EPERM
    for command, code in ((1, 0), (8, 1), (10, 1), (15, 1), (1030, 0)):
        assert answer(common, machine, special["fcntl"], 0, command) == code
    truncate = (0, 0, os.O_TRUNC)
    assert answer(common, machine, special["openat"], *truncate) == errno.EPERM
    newer = seccomp.worker_steps(landlock_abi=3, column=column)
    assert answer(newer, machine, special["openat"], *truncate) == 0
    assert answer(common, machine, 460) == errno.ENOSYS
    assert answer(common, machine, 0x40000000 + 57) == errno.ENOSYS
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[machine]
    assert answer(common, other, 0) == "kill"
