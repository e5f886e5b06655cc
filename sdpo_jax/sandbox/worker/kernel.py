"""Calls of libc that Python does not have."""

import ctypes
import os

PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER = 4, 22, 36
PR_SET_NO_NEW_PRIVS = 38

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def checked(value):
    """The result of a libc call, or the OSError it stands for."""
    if value < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return value


def prctl(option, value, pointer=0):
    """Change one property of this process; `pointer` is for options that take one."""
    word = ctypes.c_ulong
    checked(libc.prctl(option, word(value), word(pointer), word(0), word(0)))
