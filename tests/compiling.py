"""How tests compile: quickly, and each program once.

Compiled programs are kept in `.cache/compiled` of the checkout, for later tests, the
other worker, the processes that tests start and the next run; deleting it costs time
only. A test whose claim is about compiling takes the fixture `compiles`.
"""

import contextlib
import importlib.metadata
import os
import pathlib

from packaging.version import Version

CACHE = pathlib.Path(__file__).parents[1] / ".cache" / "compiled"
DEVICES = "--xla_force_host_platform_device_count"
# The older code generator takes a third of the time. Only XLA for CPUs knows the flag;
# jaxlib 0.11.2 no longer does, and an unknown flag ends the process.
CPU_ONLY = "--xla_cpu_use_fusion_emitters=false"
HAS_OLDER_GENERATOR = Version(importlib.metadata.version("jaxlib")) < Version("0.11")
FLAGS = (
    f"{DEVICES}=8",
    # Tiny programs cost more to compile well than they take to run.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    *([CPU_ONLY] if HAS_OLDER_GENERATOR else []),
)
# For a program that takes longer to run than to compile well.
WELL = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
SETTINGS = {
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
# Of an entry that another process is writing, or that one was killed as it wrote: the
# program is compiled.
HARMLESS = "Error reading persistent compilation cache entry"


def set_environment():
    """For this process and those it starts; before JAX is imported."""
    given = os.environ.get("XLA_FLAGS", "").split()
    # Each flag once, as pytest's workers inherit them: they are part of an entry's key.
    os.environ["XLA_FLAGS"] = " ".join(dict.fromkeys([*given, *FLAGS]))
    os.environ.update(SETTINGS)
    # Processes whose stderr a test reads must not print it either.
    os.environ["PYTHONWARNINGS"] = f"ignore:{HARMLESS}"


def flags(devices):
    """XLA_FLAGS of a process that has another number of devices."""
    return os.environ["XLA_FLAGS"].replace(FLAGS[0], f"{DEVICES}={devices}")


@contextlib.contextmanager
def anew():
    """Nothing is taken from the cache of compiled programs, and nothing put there."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()
