"""Seccomp filters: which system calls a worker and its tests may make.

Limits: x86-64 and aarch64.
"""

import ctypes
import errno
import os
import struct

from sdpo_jax.sandbox.worker.kernel import PR_SET_SECCOMP, checked, libc

# System calls that neither the worker nor a test may make. Columns: name, number on
# x86-64, number on aarch64; "-" if the call does not exist there. The numbers are from
# the kernel's unistd headers.
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
lookup_dcookie 212 18       uselib 134 -               io_setup 206 0
sync 162 81                 syncfs 306 267              seccomp 317 277
landlock_create_ruleset 444 444                         landlock_add_rule 445 445
"""
# Calls that the worker needs and its tests may not make.
WORKER_CALLS = """
fork 57 -                   vfork 58 -                  pidfd_open 434 434
kill 62 129                 setpgid 109 154             prctl 157 167
memfd_create 319 279
"""
# Calls that are allowed with some arguments. Columns as above.
CONDITIONAL_CALLS = """
clone 56 220   clone3 435 435   prlimit64 302 261   fcntl 72 25   socketpair 53 199
openat 257 56  open 2 -        ioctl 16 29
"""
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: Python uses them on its own
# streams. Other requests send signals, show the host's network or change files.
IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# Calls from this number on fail with ENOSYS, because the tables do not know them. This
# includes x32 calls, whose numbers have bit 30 set.
FIRST_UNKNOWN_CALL = 453
# AUDIT_ARCH values from the kernel's audit.h, in the order of the columns.
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE_THREAD = 0x10000


def call_numbers(table, column):
    """Name -> number, for the system calls of `table` that exist in this column."""
    words = table.split()
    numbers = words[1 + column :: 3]
    pairs = zip(words[::3], numbers, strict=True)
    return {name: int(number) for name, number in pairs if number != "-"}


# A filter is a program of the kernel's BPF machine. A step is a tuple of operation,
# steps to skip if true, steps to skip if false, and operand. LOAD reads 32 bits of
# struct seccomp_data at an offset: the call's number is at 0, the machine at 4, and
# argument i at 16 + 8 * i. The others compare the loaded value or return a verdict.
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL = 0x7FFF0000, 0x80000000  # Kills the process, not only the thread.
REFUSE, UNKNOWN = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
LOAD_NUMBER = (LOAD, 0, 0, 0)


def refuse_all(table, column):
    """Filter steps that refuse every call of a table."""
    steps = []
    for number in call_numbers(table, column).values():
        steps += [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    return steps


def refuse_if(number, argument, *tests):
    """Filter steps that refuse a call if one of the tests of an argument is true.

    Each test is a step that skips the refusal if it is false.
    """
    # The low half is enough: the kernel reads these arguments as 32 bits.
    steps = [(LOAD, 0, 0, 16 + 8 * argument)]
    for test in tests:
        steps += [test, (RETURN, 0, 0, REFUSE)]
    steps.append(LOAD_NUMBER)
    return [(EQUAL, 0, len(steps), number), *steps]


def refuse_unless(number, argument, *values):
    """Filter steps that refuse a call unless an argument has one of these values."""
    steps = [(LOAD, 0, 0, 16 + 8 * argument)]
    # On a match, skip the remaining comparisons and the refusal.
    for index, value in enumerate(values):
        steps.append((EQUAL, len(values) - index, 0, value))
    steps += [(RETURN, 0, 0, REFUSE), LOAD_NUMBER]
    return [(EQUAL, 0, len(steps), number), *steps]


def worker_steps(landlock_abi, column):
    """The filter of the worker, which its tests inherit."""
    arch = list(MACHINES.values())[column]
    special = call_numbers(CONDITIONAL_CALLS, column)
    # A program could switch to 32-bit mode, where the numbers mean other calls.
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, arch), (RETURN, 0, 0, KILL)]
    steps += [LOAD_NUMBER, (AT_LEAST, 0, 1, FIRST_UNKNOWN_CALL)]
    steps += [(RETURN, 0, 0, UNKNOWN), *refuse_all(DENIED_CALLS, column)]
    # clone3 has its flags in memory, which a filter cannot read. If it is unknown,
    # glibc starts threads with clone.
    steps += [(EQUAL, 0, 1, special["clone3"]), (RETURN, 0, 0, UNKNOWN)]
    steps += refuse_unless(special["prlimit64"], 0, 0)  # Pid 0 is the caller itself.
    steps += refuse_unless(special["ioctl"], 1, *IOCTLS)
    # asyncio needs a pair of AF_UNIX (1) streams, which connects only to itself. With
    # datagrams, a program could send to any named socket of the host. The mask has the
    # bits of all types but SOCK_STREAM (1).
    steps += refuse_unless(special["socketpair"], 0, 1)
    steps += refuse_if(special["socketpair"], 1, (ANY_BIT, 0, 1, 0xE))
    # With F_SETOWN, F_SETSIG and F_SETOWN_EX, the kernel sends signals for a program.
    owners = [(EQUAL, 0, 1, command) for command in (8, 10, 15)]
    steps += refuse_if(special["fcntl"], 1, *owners)
    # Before version 3, landlock does not restrict truncation.
    if landlock_abi < 3:
        steps += refuse_if(special["openat"], 2, (ANY_BIT, 0, 1, os.O_TRUNC))
        if "open" in special:
            steps += refuse_if(special["open"], 1, (ANY_BIT, 0, 1, os.O_TRUNC))
    return [*steps, (RETURN, 0, 0, ALLOW)]


def fork_steps(column):
    """The filter that a test adds; short, because every fork installs it."""
    clone = call_numbers(CONDITIONAL_CALLS, column)["clone"]
    steps = [LOAD_NUMBER, *refuse_all(WORKER_CALLS, column)]
    # The reverse of other tests: the flag of a thread skips the refusal.
    steps += refuse_if(clone, 0, (ANY_BIT, 1, 0, CLONE_THREAD))
    return [*steps, (RETURN, 0, 0, ALLOW)]


class Filter:
    """A filter in the kernel's layout, so that each fork installs it with one call."""

    def __init__(self, steps):
        # struct sock_filter: eight bytes per step.
        code = b"".join(struct.pack("=HBBI", *step) for step in steps)
        self._code = ctypes.create_string_buffer(code, len(code))
        address = ctypes.addressof(self._code)
        # struct sock_fprog: the number of steps and their address. The kernel reads
        # both buffers at installation, so this object keeps them alive.
        self._program = ctypes.create_string_buffer(
            struct.pack("@HP", len(code) // 8, address)
        )
        # 2 is SECCOMP_MODE_FILTER.
        words = (2, ctypes.addressof(self._program), 0, 0)
        self._arguments = (PR_SET_SECCOMP, *map(ctypes.c_ulong, words))

    def install(self):
        """Confine the calling process; cannot be undone."""
        checked(libc.prctl(*self._arguments))
