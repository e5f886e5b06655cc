"""What the tests of the sandbox share."""

import shutil
import textwrap

from sdpo_jax.envs.isolation import cgroup
from sdpo_jax.envs.sandbox import Call, Limits, Stdin

LIMITS = Limits(cpu_s=1.0, wall_s=4.0, memory_mb=512, output_kb=64)
TIERS = ["A", "B", "C"]


def is_installed(tier):
    """Whether this machine can have a tier; what has bubblewrap must hold with it."""
    if tier in ("A", "B") and not shutil.which("bwrap"):
        return False
    try:
        return tier != "A" or bool(cgroup.folders())
    except OSError:
        return False


def call(box, program, *arguments, **options):
    (execution,) = box.run(
        textwrap.dedent(program), [Call("f", list(arguments))], **options
    )
    return execution


def script(box, program, text=""):
    (execution,) = box.run(textwrap.dedent(program), [Stdin(text)])
    return execution
