"""libc calls that Python's standard library lacks."""

import ctypes
import os

# From Linux's prctl.h.
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER = 4, 22, 36
PR_SET_NO_NEW_PRIVS = 38

# Without `use_errno`, Python may change errno before it is read.
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def checked(value):
    """The result of a libc call; raises its OSError if it failed."""
    if value < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return value


def prctl(option, value, pointer=0):
    """Change a property of this process; some options take a pointer."""
    # As unsigned long: ctypes would pass 32-bit integers, and some options check that
    # unused arguments are zero.
    word = ctypes.c_ulong
    checked(libc.prctl(option, word(value), word(pointer), word(0), word(0)))
