"""Selects the tier of isolation by running a program that tries to escape."""

import functools
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path

from sdpo_jax.sandbox import records
from sdpo_jax.sandbox.process import Worker
from sdpo_jax.sandbox.values import (
    Call,
    Limits,
    Packages,
    SandboxFailure,
    SandboxUnavailable,
    as_message,
)

LOCAL = ("A", "B", "C", "D")  # Best first.
CREDENTIALS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "GOOGLE_APPLICATION_CREDENTIALS")

# Tries everything that no program may do; returns the names of what succeeded.
_PROBE = """
import ctypes, os, resource, socket, threading

def escapes(secret, folder):
    libc = ctypes.CDLL(None, use_errno=True)
    def call(function, *arguments):
        if function(*arguments) < 0:
            raise OSError(ctypes.get_errno(), function.__name__)
    def fork():
        if os.fork() == 0:
            os._exit(0)
    def replace():
        try:
            os.execv("/nonexistent", ["x"])
        except FileNotFoundError:
            pass
    def be_root():
        if os.getuid():
            raise OSError
    parent = os.getppid()
    forbidden = {
        "read a file": lambda: open(secret).close(),
        "write a file": lambda: open(os.path.join(folder, "x"), "w").close(),
        "list a folder": lambda: os.listdir(folder),
        "open a socket": lambda: socket.socket().close(),
        "start a process": fork,
        "become another program": replace,
        "signal its worker": lambda: os.kill(parent, 0),
        "limit its worker": lambda: resource.prlimit(parent, resource.RLIMIT_CORE),
        "trace its worker": lambda: call(libc.ptrace, 16, parent, None, None),
        "use its worker's pipes": lambda: os.open(f"/proc/{parent}/fd/1", 1),
        "make a memory file": lambda: os.memfd_create("x"),
        "be root": be_root,
    }
    succeeded = []
    for name, action in forbidden.items():
        try:
            action()
        except (OSError, AttributeError):
            continue
        succeeded.append(name)
    # Honest programs start threads: where that fails, the tier is of no use.
    thread = threading.Thread(target=succeeded.append, args=("",))
    thread.start()
    thread.join()
    return [name for name in succeeded if name]
"""

logger = logging.getLogger(__name__)


def choose(tier: str, limits: Limits, packages: Packages) -> tuple[str, Worker]:
    """The strongest allowed tier that stops the probe, and its first worker.

    Args:
      tier: one of `LOCAL`, or "auto" for any of them but D.
      limits: of the worker.
      packages: of the worker.

    Raises:
      SandboxUnavailable: if there is none; says why and what to change.
    """
    if tier not in ("auto", *LOCAL):
        raise ValueError(
            f"tier must be auto, a URL or one of {', '.join(LOCAL)}, got {tier!r}"
        )
    if sys.platform != "linux":
        raise SandboxUnavailable(
            f"the sandbox needs Linux, this is {sys.platform}; run in a Linux container"
        )
    if tier == "D":
        _refuse_unsafe_limits_only()
        return "D", Worker("D", limits, packages)
    reasons = []
    for candidate in ("A", "B", "C") if tier == "auto" else (tier,):
        if candidate in ("A", "B") and shutil.which("bwrap") is None:
            reasons.append(f"tier {candidate}: bwrap is not installed")
            continue
        worker = None
        try:
            worker = Worker(candidate, limits, packages)
            holes = probe(worker)
            if candidate == "A" and not worker.is_in_control_group():
                holes.append("is in no control group")
        except (SandboxFailure, SandboxUnavailable) as failure:
            holes = [str(failure)]
        if not holes:
            _announce(candidate)
            return candidate, worker
        if worker is not None:
            worker.close()
        reasons.append(f"tier {candidate}: {', '.join(holes)}")
    raise SandboxUnavailable(
        "no sandbox tier works on this machine (" + "; ".join(reasons) + "). Install "
        "bubblewrap, or use a kernel with landlock (5.13 or later), or, only if "
        "programs can reach nothing of value, set env.sandbox.tier=D"
    )


def _refuse_unsafe_limits_only() -> None:
    """Raise SandboxUnavailable if tier D would expose credentials to root programs."""
    present = [name for name in CREDENTIALS if name in os.environ]
    if os.geteuid() == 0 and present:
        raise SandboxUnavailable(
            f'tier "D" does not isolate programs, so root may not use it while '
            f"{present[0]} is set; unset it, or run as another user"
        )
    logger.warning(
        "SANDBOX TIER D: resource limits only. Model-written programs can read this "
        "user's files and use the network."
    )


@functools.cache
def _announce(tier: str) -> None:
    """Log once per process which tier is in use."""
    if tier == "C":
        logger.warning(
            "SANDBOX TIER C: landlock and seccomp, no namespaces. Install bubblewrap "
            "for a second layer of isolation."
        )
    else:
        logger.info("sandbox tier %s", tier)


def probe(worker: Worker) -> list[str]:
    """What an escaping program can do in a worker; empty if the worker is confined."""
    # Open to all users: a missing permission must not hide a hole of the sandbox.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        secret = os.path.join(folder, "secret")
        Path(secret).write_text("x")
        os.chmod(secret, 0o644)
        call = Call("escapes", [secret, folder])
        limits = Limits().as_message()
        request = {
            "program": _PROBE,
            "tests": [as_message(call)],
            "limits": limits,
            "stop_at_limit": True,
            "process_per": "test",
        }
        (record,) = worker.exchange(request)
        execution = records.execution(record, call, limits["cpu_s"])
        # Checked from outside, because the program's own report is untrusted.
        wrote_file = os.listdir(folder) != ["secret"]
    if execution.status != "ok":
        return [f"{execution.error_type}: {execution.error_message}"]
    return [f"can {name}" for name in execution.result] + ["wrote a file"] * wrote_file
