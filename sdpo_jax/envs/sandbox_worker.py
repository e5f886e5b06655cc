"""The process that runs untrusted programs, a fresh fork of itself for each test.

Started by `sandbox.py`, which sends this file's text; it needs the standard library
only. It confines itself first and then only ever loses rights: every test is a fork
that drops what the worker still may do (fork, signals, sockets) and reports over
pipes of its own. What a fork writes is passed on unread; `sandbox.py` judges it.

Limits: Linux, x86-64 and aarch64. The kernel is trusted, and programs can tell time.
"""

import _sitebuiltins
import atexit
import bisect  # noqa: F401
import builtins
import collections  # noqa: F401
import ctypes
import errno
import functools
import gc
import heapq  # noqa: F401
import io
import itertools  # noqa: F401
import json
import math
import os
import platform
import re  # noqa: F401
import resource
import select
import signal
import string  # noqa: F401
import struct
import sys
import time
import traceback
import types
import typing  # noqa: F401

FILENAME = "Solution.py"
MAX_FILES = 64  # Descriptors the worker itself may hold.
IDLE_POLL_MS = 5_000
STACK_BYTES = 64 << 20
MESSAGE_CHARS = 2_000
CHEAP_CPU_S = 0.2  # Above this a fork per test costs nothing in comparison.

PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER = 4, 22, 36
PR_SET_NO_NEW_PRIVS = 38

# System calls that nothing here may make. Columns: name, number on x86-64, number on
# aarch64; "-" where it does not exist.
DENIED_CALLS = """
execve 59 221               execveat 322 281            ptrace 101 117
process_vm_readv 310 270    process_vm_writev 311 271   process_madvise 440 440
process_mrelease 448 448    kcmp 312 272                pidfd_getfd 438 438
pidfd_send_signal 424 424   tkill 200 130               tgkill 234 131
rt_sigqueueinfo 129 138     rt_tgsigqueueinfo 297 240   setsid 112 157
socket 41 198               connect 42 203              bind 49 200
listen 50 201               accept 43 202               accept4 288 242
memfd_secret 447 447        keyctl 250 219              add_key 248 217
request_key 249 218         io_uring_setup 425 425      io_uring_enter 426 426
io_uring_register 427 427   bpf 321 280                 userfaultfd 323 282
perf_event_open 298 241     unshare 272 97              setns 308 268
mount 165 40                umount2 166 39              pivot_root 155 41
chroot 161 51               fsopen 430 430              fsconfig 431 431
fsmount 432 432             fspick 433 433              move_mount 429 429
open_tree 428 428           mount_setattr 442 442       open_by_handle_at 304 265
name_to_handle_at 303 264   openat2 437 437             kexec_load 246 104
kexec_file_load 320 294     init_module 175 105         finit_module 313 273
delete_module 176 106       reboot 169 142              swapon 167 224
swapoff 168 225             acct 163 89                 quotactl 179 60
quotactl_fd 443 443         syslog 103 116              sethostname 170 161
setdomainname 171 162       settimeofday 164 170        clock_settime 227 112
adjtimex 159 171            clock_adjtime 305 266       iopl 172 -
ioperm 173 -                modify_ldt 154 -            personality 135 92
setpriority 141 140         ioprio_set 251 30           sched_setaffinity 203 122
sched_setscheduler 144 119  sched_setparam 142 118      sched_setattr 314 274
migrate_pages 256 238       move_pages 279 239          shmget 29 194
shmat 30 196                shmctl 31 195               msgget 68 186
msgsnd 69 189               msgrcv 70 188               msgctl 71 187
semget 64 190               semop 65 193                semctl 66 191
semtimedop 220 192          mq_open 240 180             mq_unlink 241 181
mq_notify 244 184           inotify_init 253 -          inotify_init1 294 26
inotify_add_watch 254 27    fanotify_init 300 262       chmod 90 -
fchmod 91 52                fchmodat 268 53             fchmodat2 452 452
chown 92 -                  fchown 93 55                lchown 94 -
fchownat 260 54             utime 132 -                 utimes 235 -
utimensat 280 88            futimesat 261 -             setxattr 188 5
lsetxattr 189 6             fsetxattr 190 7             removexattr 197 14
lremovexattr 198 15         fremovexattr 199 16         truncate 76 45
creat 85 -                  flock 73 32                 vhangup 153 58
lookup_dcookie 212 18       uselib 134 -
"""
# What the worker needs and its tests must not have.
WORKER_CALLS = """
fork 57 -                   vfork 58 -                  pidfd_open 434 434
kill 62 129                 setpgid 109 154             prctl 157 167
memfd_create 319 279
"""
# Calls that are right with some arguments; the numbers are as above.
CONDITIONAL_CALLS = """
clone 56 220   clone3 435 435   prlimit64 302 261   fcntl 72 25   socketpair 53 199
openat 257 56  open 2 -
"""
FIRST_UNKNOWN_CALL = 453  # Newer calls answer ENOSYS; so does the x32 table.
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # In order of the columns.
CLONE_THREAD = 0x10000

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14

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


def call_numbers(table, column):
    """Name -> number of the system calls of `table` that this machine has."""
    words = table.split()
    numbers = words[1 + column :: 3]
    pairs = zip(words[::3], numbers, strict=True)
    return {name: int(number) for name, number in pairs if number != "-"}


# Steps of a filter: operation, jumps if true and false, operand.
LOAD, EQUAL, AT_LEAST, ANY_BIT, GIVE = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSE, UNKNOWN = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
LOAD_NUMBER = (LOAD, 0, 0, 0)


def refuse_all(table, column):
    """Filter steps that refuse every call of a table."""
    steps = []
    for number in call_numbers(table, column).values():
        steps += [(EQUAL, 0, 1, number), (GIVE, 0, 0, REFUSE)]
    return steps


def refuse_if(number, argument, *tests):
    """Filter steps for one call; each test on the argument passes or refuses."""
    steps = [(LOAD, 0, 0, 16 + 8 * argument)]
    for test in tests:
        steps += [test, (GIVE, 0, 0, REFUSE)]
    steps.append(LOAD_NUMBER)
    return [(EQUAL, 0, len(steps), number), *steps]


def worker_steps(landlock_abi, column):
    """Filter steps for the worker, and so for every test."""
    arch = list(MACHINES.values())[column]
    special = call_numbers(CONDITIONAL_CALLS, column)
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, arch), (GIVE, 0, 0, KILL)]
    steps += [LOAD_NUMBER, (AT_LEAST, 0, 1, FIRST_UNKNOWN_CALL)]
    steps += [(GIVE, 0, 0, UNKNOWN), *refuse_all(DENIED_CALLS, column)]
    # glibc starts threads with clone when clone3 is unknown; only clone has flags
    # that a filter can read.
    steps += [(EQUAL, 0, 1, special["clone3"]), (GIVE, 0, 0, UNKNOWN)]
    steps += refuse_if(special["prlimit64"], 0, (EQUAL, 1, 0, 0))  # Only itself.
    # AF_UNIX pairs lead nowhere, and asyncio needs one.
    steps += refuse_if(special["socketpair"], 0, (EQUAL, 1, 0, 1))
    # F_SETOWN, F_SETSIG and F_SETOWN_EX make the kernel send signals for a program.
    owners = [(EQUAL, 0, 1, command) for command in (8, 10, 15)]
    steps += refuse_if(special["fcntl"], 1, *owners)
    if landlock_abi < 3:  # Such a landlock lets a reader truncate.
        steps += refuse_if(special["openat"], 2, (ANY_BIT, 0, 1, os.O_TRUNC))
        if "open" in special:
            steps += refuse_if(special["open"], 1, (ANY_BIT, 0, 1, os.O_TRUNC))
    return [*steps, (GIVE, 0, 0, ALLOW)]


def fork_steps(column):
    """Filter steps that a test adds: few, for they are installed in every fork."""
    clone = call_numbers(CONDITIONAL_CALLS, column)["clone"]
    steps = [LOAD_NUMBER, *refuse_all(WORKER_CALLS, column)]
    steps += refuse_if(clone, 0, (ANY_BIT, 1, 0, CLONE_THREAD))
    return [*steps, (GIVE, 0, 0, ALLOW)]


class Filter:
    """A seccomp program, laid out once, so that installing it is one call."""

    def __init__(self, steps):
        code = b"".join(struct.pack("=HBBI", *step) for step in steps)
        self._code = ctypes.create_string_buffer(code, len(code))
        address = ctypes.addressof(self._code)
        self._program = ctypes.create_string_buffer(
            struct.pack("@HP", len(code) // 8, address)
        )
        words = (2, ctypes.addressof(self._program), 0, 0)
        self._arguments = (PR_SET_SECCOMP, *map(ctypes.c_ulong, words))

    def install(self):
        """Confine the calling process; cannot be undone."""
        checked(libc.prctl(*self._arguments))


def readable_paths(packages):
    """Pairs of path and landlock rights: the standard library and what it loads.

    Args:
      packages: further folders of modules.
    """
    for path in packages:
        yield path, READ_FILE | READ_DIR
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


def create_ruleset(abi, packages):
    """A landlock ruleset: read these packages and the standard library, no more."""
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
    for path, rights in readable_paths(packages):
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
        `drops_uid` (bool: this worker has a user of its own) and `packages` (folders
        of modules that tests may import).
    """

    def __init__(self, setup):
        self.landlock_abi = 0 if setup["landlock"] == "off" else landlock_version()
        if setup["landlock"] == "required" and not self.landlock_abi:
            raise OSError(errno.ENOSYS, "this kernel has no landlock")
        if setup["seccomp"] and platform.machine() not in MACHINES:
            raise OSError(errno.ENOSYS, f"no filter for {platform.machine()}")
        self.counts_processes = setup["drops_uid"]
        self.ruleset = None
        if self.landlock_abi:
            self.ruleset = create_ruleset(self.landlock_abi, setup["packages"])
        self.worker_filter = self.fork_filter = None
        if setup["seccomp"]:
            column = list(MACHINES).index(platform.machine())
            self.worker_filter = Filter(worker_steps(self.landlock_abi, column))
            self.fork_filter = Filter(fork_steps(column))

    def enter_worker(self):
        """Bind the worker, before it has seen a single program."""
        write_oom_score()
        prctl(PR_SET_DUMPABLE, 0)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        for name in ("CORE", "MEMLOCK", "MSGQUEUE"):
            set_limit(name, 0)
        set_limit("NOFILE", MAX_FILES)
        set_limit("STACK", STACK_BYTES)
        self._restrict()
        if self.worker_filter is not None:
            self.worker_filter.install()

    def enter_test(self, limits):
        """Bind the fork that runs one test."""
        os.setpgid(0, 0)
        set_limit("AS", limits["memory_mb"] << 20)
        set_limit("CPU", math.ceil(limits["cpu_s"]) + 1)
        set_limit("FSIZE", 0)
        set_limit("NOFILE", limits["open_files"])
        if self.counts_processes:
            # Without a user of its own the limit would count the trainer's threads.
            set_limit("NPROC", limits["processes"] + 1)
        # A second, nested domain: the test cannot reach the worker through /proc.
        self._restrict()
        if self.fork_filter is not None:
            self.fork_filter.install()

    def _restrict(self):
        if self.ruleset is not None:
            checked(libc.syscall(LANDLOCK_RESTRICT, self.ruleset, 0))


def set_limit(name, value):
    """Set both limits of RLIMIT_`name`, at most to what is allowed."""
    kind = getattr(resource, f"RLIMIT_{name}")
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def write_oom_score():
    """Ask the kernel to kill a test before it kills the trainer."""
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:
        pass  # No /proc in here; the memory limit still holds.


@functools.lru_cache(maxsize=1)
def compiled(program):
    """The code of a program; called in forks only."""
    return compile(program, FILENAME, "exec", dont_inherit=True)


def load_program(program, name):
    """Run the program's top level in a new module called `name`."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compiled(program), module.__dict__)
    return module


def run_script(program):
    """Run a program that reads standard input, to the end of its threads."""
    try:
        load_program(program, "__main__")
    except SystemExit:
        pass
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()


def run_call(program, call):
    """The JSON text of what the called function returns."""
    dumps = json.dumps
    try:
        module = load_program(program, "solution")
    except SystemExit:
        module = sys.modules["solution"]
    name, arguments = call["function"], call["arguments"]
    function = getattr(module, name, None)
    if function is None and hasattr(module, "Solution"):
        function = getattr(module.Solution(), name, None)
    if function is None:
        raise NameError(f"name {name!r} is not defined")
    if isinstance(arguments, dict):
        return dumps(function(**arguments))
    return dumps(function(*arguments))


def describe(error, program):
    """What is said of an exception: type, message, and where in the program."""
    line, function = None, ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == FILENAME:
            line, function = number, frame.f_code.co_name
    if isinstance(error, SyntaxError) and error.filename == FILENAME:
        line, function = error.lineno, ""
    try:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
    except Exception:  # The program wrote this __str__.
        message = ""
    lines = program.split("\n")
    known = isinstance(line, int) and 0 < line <= len(lines)
    return {
        "type": type(error).__name__,
        "message": str(message)[:MESSAGE_CHARS],
        "line": line,
        "function": function,
        "source": lines[line - 1].strip()[:MESSAGE_CHARS] if known else "",
    }


def solve(program, test):
    """The report of one test: JSON text, empty for a script that ended."""
    out = sys.stdout
    try:
        if "stdin" in test:
            run_script(program)
            return ""
        return '{"result": ' + run_call(program, test) + "}"
    except MemoryError as error:
        # Its traceback keeps alive what filled the memory.
        traceback.clear_frames(error.__traceback__)
        return json.dumps({"error": describe(error, program)})
    except BaseException as error:
        return json.dumps({"error": describe(error, program)})
    finally:
        for stream in (out, sys.stdout):
            try:
                stream.flush()
            except Exception:  # The program may have put anything there.
                pass


def open_streams():
    """Standard streams over descriptors 0, 1 and 2, for the forks to inherit.

    The worker never uses them; opened in each fork they cost a quarter of a test.
    """
    for name, mode, fd in (("stdin", "r", 0), ("stdout", "w", 1), ("stderr", "w", 2)):
        raw = open(fd, mode + "b", closefd=False)
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors="surrogateescape")
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def provide_standard_files():
    """Let a program open "/dev/stdin" where there is no /proc to lead it there."""
    names = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
    real = builtins.open

    @functools.wraps(real)
    def open_file(file, *arguments, **options):
        file = names.get(file, file) if type(file) is str else file
        return real(file, *arguments, **options)

    builtins.open = open_file


def run_fork(confinement, request, tests, fds):
    """The whole life of the process that runs `tests`; never returns."""
    stdin, stdout, report, confirm, devnull = fds
    write, leave = os.write, os._exit  # The program may replace them.
    try:
        for source, target in ((stdin, 0), (stdout, 1), (devnull, 2)):
            os.dup2(source, target)
        confinement.enter_test(request["limits"])
        os.write(confirm, b"!")
        os.closerange(3, report)
        os.closerange(report + 1, MAX_FILES)
        gc.enable()
        reports = [solve(request["program"], test) for test in tests]
        text = "\n".join(reports).encode("ascii", "replace")
        while text:
            text = text[write(report, text) :]
    finally:
        leave(0)


def cpu_seconds(pid):
    """CPU time of a process that has not been reaped."""
    return time.clock_gettime((~pid << 3) | 2)


class Watch:
    """Reads what one fork writes until it ends or spends a limit."""

    def __init__(self, pid, stdout, report, limits):
        self.pid, self.limits = pid, limits
        self.pidfd = os.pidfd_open(pid)
        self.written = {stdout: bytearray(), report: bytearray()}
        self.open = {stdout, report}
        self.poller = select.poll()
        for fd in (0, self.pidfd, stdout, report):
            self.poller.register(fd, select.POLLIN)

    def follow(self):
        """How it ended: "exit", "cpu", "wall" or "output"."""
        deadline = time.monotonic() + self.limits["wall_s"]
        while True:
            cpu_left = self.limits["cpu_s"] - cpu_seconds(self.pid)
            wall_left = deadline - time.monotonic()
            if cpu_left <= 0 or wall_left <= 0:
                return "cpu" if cpu_left <= 0 else "wall"
            ready = self.poller.poll(1 + 1000 * min(cpu_left, wall_left, 1.0))
            for fd, _ in ready:
                if fd in self.open and self._read(fd):
                    return "output"
            fds = [fd for fd, _ in ready]
            if 0 in fds:  # Nothing is sent before the answer: the trainer is gone.
                os.kill(self.pid, signal.SIGKILL)
                os._exit(0)
            if self.pidfd in fds:
                return "output" if any(map(self._drain, self.written)) else "exit"

    def _read(self, fd):
        """Read once; true when there is too much."""
        try:
            chunk = os.read(fd, 1 << 16)
        except BlockingIOError:  # The program may have read its own output.
            return False
        if not chunk:
            self.poller.unregister(fd)
            self.open.discard(fd)
        self.written[fd] += chunk
        return len(self.written[fd]) > self.limits["output_kb"] << 10

    def _drain(self, fd):
        """Read what the ended fork has left; true when there is too much."""
        while fd in self.open:
            size = len(self.written[fd])
            if self._read(fd):
                return True
            if len(self.written[fd]) == size:
                break
        return False


def standard_input(text, devnull):
    """A descriptor that reads `text`; None reads as nothing."""
    if text is None:
        return os.dup(devnull)
    fd = os.memfd_create("stdin")
    text = memoryview(text.encode("utf-8", "surrogatepass"))
    while text:
        text = text[os.write(fd, text) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def kill_descendants():
    """End the processes that a fork without a filter has left behind."""
    path = f"/proc/self/task/{os.getpid()}/children"
    while True:
        with open(path) as file:
            pids = [int(pid) for pid in file.read().split()]
        if not pids:
            return
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def run_tests(confinement, request, tests, devnull):
    """Run tests in one fork; what it wrote, how it ended, what it cost."""
    stdin = standard_input(tests[0].get("stdin"), devnull)
    (out, out_w), (report, report_w), (confirm, confirm_w) = (os.pipe() for _ in "123")
    pid = os.fork()
    if pid == 0:
        fds = (stdin, out_w, report_w, confirm_w, devnull)
        run_fork(confinement, request, tests, fds)
    for fd in (stdin, out_w, report_w, confirm_w):
        os.close(fd)
    os.set_blocking(out, False)
    os.set_blocking(report, False)
    watch = Watch(pid, out, report, request["limits"])
    ended = watch.follow()
    os.kill(pid, signal.SIGKILL)  # A zombie takes it without harm.
    _, status, usage = os.wait4(pid, 0)
    if confinement.fork_filter is None:
        kill_descendants()
    confirmed = os.read(confirm, 1) == b"!"
    for fd in (out, report, confirm, watch.pidfd):
        os.close(fd)
    return {
        "ended": ended,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
        "confined": confirmed,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "stdout": watch.written[out].decode("utf-8", "replace"),
        "report": watch.written[report].decode("ascii", "replace"),
    }


def run_together(confinement, request, devnull):
    """Run all calls in one fork, if that tells them apart; None if it does not.

    A program that prints, crashes or is not cheap is left to one fork per test.
    """
    tests, limits = request["tests"], dict(request["limits"])
    if len(tests) < 2 or any("stdin" in test for test in tests):
        return None
    limits["cpu_s"] = min(limits["cpu_s"], CHEAP_CPU_S)
    record = run_tests(confinement, {**request, "limits": limits}, tests, devnull)
    reports = record["report"].split("\n")
    clean = record["ended"] == "exit" and not record["signal"] and not record["stdout"]
    if not clean or len(reports) != len(tests) or "MemoryError" in record["report"]:
        return None
    cpu_s = record["cpu_s"] / len(tests)
    return [{**record, "cpu_s": cpu_s, "report": report} for report in reports]


def run_program(confinement, request, devnull):
    """Run the tests in order; stop after one that spent a limit, if so asked."""
    if request["process_per"] == "program":
        together = run_together(confinement, request, devnull)
        if together is not None:
            return together
    executions = []
    for test in request["tests"]:
        executions.append(run_tests(confinement, request, [test], devnull))
        if request["stop_at_limit"] and executions[-1]["ended"] != "exit":
            break
    return executions


def read_exactly(size):
    """`size` bytes of standard input; exits at its end, or when orphaned."""
    parent, chunks = os.getppid(), bytearray()
    poller = select.poll()
    poller.register(0, select.POLLIN)
    while len(chunks) < size:
        if not poller.poll(IDLE_POLL_MS):
            # A fork of the trainer may hold the other end open for ever.
            if os.getppid() != parent:
                os._exit(0)
            continue
        chunk = os.read(0, min(size - len(chunks), 1 << 20))
        if not chunk:
            os._exit(0)
        chunks += chunk
    return bytes(chunks)


def send(message):
    """Write one message to the trainer: four bytes of length, then JSON."""
    text = json.dumps(message).encode()
    data = memoryview(struct.pack(">I", len(text)) + text)
    while data:
        data = data[os.write(1, data) :]


def main():
    """Confine, say so, and serve until standard input ends."""
    devnull = os.open(os.devnull, os.O_RDWR)
    # Without `site`, which would read the host's packages, these are missing.
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")
    try:
        if sys.version_info < (3, 10):  # noqa: UP036 - not the Python of the trainer.
            raise OSError(errno.ENOSYS, f"needs Python 3.10, this is {sys.version}")
        setup = json.loads(sys.argv[2])
        sys.path += setup["packages"]
        exec(setup["prepare"], {})
        confinement = Confinement(setup)
        confinement.enter_worker()
    except (OSError, ImportError) as error:
        send({"refused": str(error)})
        return
    open_streams()
    if not os.path.exists("/dev/stdin"):
        provide_standard_files()
    gc.collect()
    gc.freeze()
    gc.disable()
    send({"landlock_abi": confinement.landlock_abi})
    while True:
        (size,) = struct.unpack(">I", read_exactly(4))
        request = json.loads(read_exactly(size))
        send({"executions": run_program(confinement, request, devnull)})


if __name__ == "__main__":
    main()
