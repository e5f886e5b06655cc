"""What a test may not do, entered in two steps: landlock, seccomp, resource limits."""

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

MAX_FILES = 64  # Descriptors the worker itself may hold.
STACK_BYTES = 64 << 20
M_ARENA_MAX = -8

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14


def readable_paths(modules):
    """Pairs of path and landlock rights: the standard library and what it loads.

    Args:
      modules: files and folders of further modules.
    """
    for path in modules:
        yield path, READ_FILE | (READ_DIR if os.path.isdir(path) else 0)
    library = os.path.dirname(os.__file__)
    yield library, READ_DIR
    for entry in os.scandir(library):
        if entry.name not in ("site-packages", "dist-packages"):
            directory = READ_DIR if entry.is_dir() else 0
            yield entry.path, READ_FILE | directory
    shared = os.path.join(sys.base_prefix, "lib")
    for entry in os.scandir(shared):
        if ".so" in entry.name and entry.is_file():
            yield entry.path, READ_FILE
    multiarch = f"{platform.machine()}-linux-gnu"
    for path in (f"/usr/lib/{multiarch}", f"/lib/{multiarch}", "/lib64", "/usr/lib64"):
        yield path, READ_FILE | READ_DIR
    yield "/usr/share/zoneinfo", READ_FILE | READ_DIR
    for path in ("/etc/ld.so.cache", "/dev/zero", "/dev/urandom", "/dev/random"):
        yield path, READ_FILE
    yield os.devnull, READ_FILE | WRITE_FILE | TRUNCATE


def landlock_version():
    """The landlock ABI of this kernel; 0 when it has none."""
    return max(0, libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))


def create_ruleset(abi, modules):
    """A landlock ruleset: read these modules and the standard library, no more."""
    handled = (1 << 13) - 1
    handled |= sum(
        1 << bit for bit, since in ((13, 2), (14, 3), (15, 5)) if abi >= since
    )
    words = [handled]
    if abi >= 4:
        words.append(3)  # TCP bind and connect.
    if abi >= 6:
        words.append(3)  # Abstract sockets and signals to the outside.
    attributes = struct.pack(f"={len(words)}Q", *words)
    size = ctypes.c_size_t(len(attributes))
    ruleset = checked(libc.syscall(LANDLOCK_CREATE, attributes, size, 0))
    for path, rights in readable_paths(modules):
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # Layouts differ between distributions.
        rule = struct.pack("=Qi", rights & handled, fd)
        checked(libc.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0))
        os.close(fd)
    return ruleset


class Confinement:
    """What a test may not do: entered by the worker in part, by its forks in full.

    Args:
      setup: `landlock` ("required", "if_present" or "off"), `seccomp` (bool),
        `drops_uid` (bool: this worker has a user of its own) and `readable` (files and
        folders of modules that tests may import).
    """

    def __init__(self, setup):
        self.landlock_abi = 0 if setup["landlock"] == "off" else landlock_version()
        if setup["landlock"] == "required" and not self.landlock_abi:
            raise OSError(errno.ENOSYS, "this kernel has no landlock")
        if setup["seccomp"] and platform.machine() not in seccomp.MACHINES:
            raise OSError(errno.ENOSYS, f"no filter for {platform.machine()}")
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
        """Bind the worker, before it has seen a single program."""
        write_oom_score()
        prctl(kernel.PR_SET_DUMPABLE, 0)
        prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        for name in ("CORE", "MEMLOCK", "MSGQUEUE"):
            resource.setrlimit(*allowed_limit(name, 0))
        resource.setrlimit(*allowed_limit("NOFILE", MAX_FILES))
        # Programs may ask for more: it counts as memory.
        hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
        resource.setrlimit(resource.RLIMIT_STACK, (lesser(STACK_BYTES, hard), hard))
        # Each thread would reserve address space for a heap of its own.
        libc.mallopt(M_ARENA_MAX, 1)
        self._restrict()
        if self.worker_filter is not None:
            self.worker_filter.install()

    def bounds(self, limits):
        """What `enter_test` takes, found here: a fork copies all that it touches."""
        wanted = {
            "AS": limits["memory_mb"] << 20,
            "CPU": math.ceil(limits["cpu_s"]) + 1,
            "FSIZE": 0,
            "NOFILE": limits["open_files"],
        }
        if self.counts_processes:
            # Without a user of its own the limit would count the trainer's threads.
            wanted["NPROC"] = limits["processes"] + 1
        return [allowed_limit(name, value) for name, value in wanted.items()]

    def enter_test(self, bounds):
        """Bind the fork that runs one test."""
        os.setpgid(0, 0)
        for bound in bounds:
            resource.setrlimit(*bound)
        # A second, nested domain: the test cannot reach the worker through /proc.
        self._restrict()
        if self.fork_filter is not None:
            self.fork_filter.install()

    def _restrict(self):
        if self.ruleset is not None:
            checked(libc.syscall(LANDLOCK_RESTRICT, self.ruleset, 0))


def lesser(value, limit):
    """The lesser of a number and a resource limit, which may be none."""
    return value if limit == resource.RLIM_INFINITY else min(value, limit)


def allowed_limit(name, value):
    """RLIMIT_`name`, and both of its limits: `value`, at most what is allowed."""
    kind = getattr(resource, f"RLIMIT_{name}")
    value = lesser(value, resource.getrlimit(kind)[1])
    return kind, (value, value)


def write_oom_score():
    """Ask the kernel to kill a test before it kills the trainer."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # No /proc in here; the memory limit still holds.
