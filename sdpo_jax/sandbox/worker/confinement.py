"""Confines a worker and its tests with landlock, seccomp and resource limits.

In two steps: the worker confines itself once, and each fork adds the limits of its
test.
"""

import ctypes
import errno
import math
import os
import platform
import resource
import struct
import sys

from sdpo_jax.sandbox.worker import kernel, seccomp
from sdpo_jax.sandbox.worker.kernel import checked, libc, prctl

MAX_FILES = 64  # Limit on the worker's own descriptors; forks close all below it.
STACK_BYTES = 64 << 20
M_ARENA_MAX = -8  # From glibc's malloc.h.

# Numbers of landlock's system calls (the same on all machines) and of its rights.
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14


def readable_paths(modules):
    """Pairs of path and landlock rights, for the standard library and `modules`.

    Args:
      modules: files and folders of additional modules.
    """
    for path in modules:
        yield path, READ_FILE | (READ_DIR if os.path.isdir(path) else 0)
    library = os.path.dirname(os.__file__)
    # A rule covers everything below its path. So the files of the library need rules of
    # their own, which leave out the packages installed next to them.
    yield library, READ_DIR
    for entry in os.scandir(library):
        if entry.name not in ("site-packages", "dist-packages"):
            directory = READ_DIR if entry.is_dir() else 0
            yield entry.path, READ_FILE | directory
    shared = os.path.join(sys.base_prefix, "lib")
    for entry in os.scandir(shared):
        if ".so" in entry.name and entry.is_file():
            yield entry.path, READ_FILE
    # Shared libraries that extension modules of the standard library load.
    multiarch = f"{platform.machine()}-linux-gnu"
    for path in (f"/usr/lib/{multiarch}", f"/lib/{multiarch}", "/lib64", "/usr/lib64"):
        yield path, READ_FILE | READ_DIR
    yield "/usr/share/zoneinfo", READ_FILE | READ_DIR
    for path in ("/etc/ld.so.cache", "/dev/zero", "/dev/urandom", "/dev/random"):
        yield path, READ_FILE
    yield os.devnull, READ_FILE | WRITE_FILE | TRUNCATE


def landlock_version():
    """The version of landlock's interface in this kernel; 0 if it has none."""
    # Flag 1 asks for the version instead of a new ruleset.
    return max(0, libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))


def create_ruleset(abi, modules):
    """A landlock ruleset that allows reading only `readable_paths(modules)`."""
    # All rights that this version knows: what a ruleset does not handle is allowed.
    # Version 1 has bits 0 to 12; later ones add linking across folders (13), truncation
    # (14) and ioctl on devices (15). Unknown bits are an error.
    handled = (1 << 13) - 1
    handled |= sum(
        1 << bit for bit, since in ((13, 2), (14, 3), (15, 5)) if abi >= since
    )
    words = [handled]
    if abi >= 4:
        words.append(3)  # Handles TCP bind and connect, so that none is allowed.
    if abi >= 6:
        words.append(3)  # Blocks abstract sockets and signals outside the domain.
    attributes = struct.pack(f"={len(words)}Q", *words)
    size = ctypes.c_size_t(len(attributes))
    ruleset = checked(libc.syscall(LANDLOCK_CREATE, attributes, size, 0))
    for path, rights in readable_paths(modules):
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # The paths differ between distributions.
        # Packed, without padding. Rights that the kernel does not handle are an error.
        rule = struct.pack("=Qi", rights & handled, fd)
        checked(libc.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0))
        os.close(fd)
    return ruleset


class Confinement:
    """The restrictions of a worker and its tests, prepared before any is entered.

    Args:
      setup: `landlock` ("required", "if_present" or "off"), `seccomp` (bool),
        `drops_uid` (bool: this worker has a user of its own) and `readable` (files and
        folders of modules that tests may import).

    Raises:
      OSError: if the kernel or the machine lacks something that `setup` requires.
    """

    def __init__(self, setup):
        self.landlock_abi = 0 if setup["landlock"] == "off" else landlock_version()
        if setup["landlock"] == "required" and not self.landlock_abi:
            raise OSError(errno.ENOSYS, "this kernel has no landlock")
        if setup["seccomp"] and platform.machine() not in seccomp.MACHINES:
            raise OSError(errno.ENOSYS, f"no seccomp filter for {platform.machine()}")
        self.counts_processes = setup["drops_uid"]
        self.ruleset = None
        if self.landlock_abi:
            self.ruleset = create_ruleset(self.landlock_abi, setup["readable"])
        self.worker_filter = self.fork_filter = None
        if setup["seccomp"]:
            column = list(seccomp.MACHINES).index(platform.machine())
            self.worker_filter = seccomp.Filter(
                seccomp.worker_steps(self.landlock_abi, column)
            )
            self.fork_filter = seccomp.Filter(seccomp.fork_steps(column))

    def enter_worker(self):
        """Confine the worker, before it reads the first program."""
        write_oom_score()
        # Other processes of this user cannot trace the worker or open its /proc files.
        prctl(kernel.PR_SET_DUMPABLE, 0)
        # Orphans of a test become children of the worker, which can then kill them.
        prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        # Landlock and seccomp require it from processes without privileges.
        prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        # These would use disk or kernel memory that the address space does not count.
        for name in ("CORE", "MEMLOCK", "MSGQUEUE"):
            resource.setrlimit(*allowed_limit(name, 0))
        resource.setrlimit(*allowed_limit("NOFILE", MAX_FILES))
        # The hard limit stays, so that a program can raise its stack, which counts as
        # its address space.
        hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
        resource.setrlimit(resource.RLIMIT_STACK, (lesser(STACK_BYTES, hard), hard))
        # glibc would reserve 64 MiB of address space for a heap per thread, and a
        # program with many threads would reach its memory limit.
        libc.mallopt(M_ARENA_MAX, 1)
        self._restrict()
        if self.worker_filter is not None:
            self.worker_filter.install()

    def resource_limits(self, limits):
        """The argument of `enter_test`, computed by the worker to keep forks cheap.

        A fork copies each page of memory that it touches.
        """
        values = {
            "AS": limits["memory_mb"] << 20,
            # In full seconds; the worker ends a test earlier and more precisely.
            "CPU": math.ceil(limits["cpu_s"]) + 1,
            # Pipes have no size, so output still works.
            "FSIZE": 0,
            "NOFILE": limits["open_files"],
        }
        # The kernel counts the tasks of a user. Without a user of its own, the limit
        # would count the trainer's threads. One more for the test's main thread.
        if self.counts_processes:
            values["NPROC"] = limits["processes"] + 1
        return [allowed_limit(name, value) for name, value in values.items()]

    def enter_test(self, resource_limits):
        """Confine the fork that runs a test."""
        # A program that signals its process group must not reach the worker.
        os.setpgid(0, 0)
        for limit in resource_limits:
            resource.setrlimit(*limit)
        # A second domain inside the worker's: a process can trace only its own domain
        # and those inside it, so a test cannot reach its worker through /proc.
        self._restrict()
        if self.fork_filter is not None:
            self.fork_filter.install()

    def _restrict(self):
        if self.ruleset is not None:
            checked(libc.syscall(LANDLOCK_RESTRICT, self.ruleset, 0))


def lesser(value, limit):
    """The smaller of a number and a resource limit, which may be infinite."""
    return value if limit == resource.RLIM_INFINITY else min(value, limit)


def allowed_limit(name, value):
    """Arguments of `setrlimit` that lower RLIMIT_`name` to at most `value`."""
    kind = getattr(resource, f"RLIMIT_{name}")
    # Raising the hard limit would be an error.
    value = lesser(value, resource.getrlimit(kind)[1])
    return kind, (value, value)


def write_oom_score():
    """Make the kernel kill a worker or test before the trainer if memory is short."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # Bubblewrap has no /proc; the memory limit still applies.
