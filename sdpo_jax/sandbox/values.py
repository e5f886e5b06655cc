"""The inputs and outputs of a sandbox, and its errors."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

STATUSES = (
    "ok",  # The call returned, or the script ended.
    "error",
    "time_limit",
    "memory_limit",
    "output_limit",
    "skipped",  # An earlier test reached a limit.
)
WALL_PER_CPU = 5.0  # Default of wall_s / cpu_s.
START_S = 30.0  # Time limit for the start of a worker.
MAX_DIGITS = 50_000  # Of an integer in a call or its result, as in LiveCodeBench.


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of one test.

    Args:
      cpu_s: processor seconds, which decide the status "time_limit".
      wall_s: seconds on the clock, which end programs that sleep. Must be well above
        `cpu_s`, because a program takes longer on a busy machine. None for five times
        `cpu_s`.
      memory_mb: address space in MiB.
      output_kb: KiB of standard output, and of the returned value.
      processes: threads; enforced only if the trainer is root.
      open_files: file descriptors.
    """

    cpu_s: float = 6.0
    wall_s: float | None = None
    memory_mb: int = 1024
    output_kb: int = 4096
    processes: int = 128
    open_files: int = 32

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"Limits.{name} must be positive, got {value}")
        if self.wall_s is not None and self.wall_s < self.cpu_s:
            raise ValueError(
                f"Limits.wall_s ({self.wall_s}) must not be below cpu_s "
                f"({self.cpu_s}); raise wall_s"
            )

    def as_message(
        self, cpu_s: float | None = None, output_kb: int | None = None
    ) -> dict[str, float]:
        """The limits as a worker reads them; `cpu_s` also scales the clock's limit."""
        message = dataclasses.asdict(self)
        message["cpu_s"] = self.cpu_s if cpu_s is None else cpu_s
        message["output_kb"] = self.output_kb if output_kb is None else output_kb
        stretch = (self.wall_s or WALL_PER_CPU * self.cpu_s) / self.cpu_s
        message["wall_s"] = stretch * message["cpu_s"]
        return message


@dataclasses.dataclass(frozen=True)
class Packages:
    """Modules that programs can import in addition to the standard library.

    Args:
      modules: names of installed modules; programs can read all of their files.
      prepare: trusted source that each worker runs before it confines itself, such as
        imports that all of its forks then share.
    """

    modules: Sequence[str] = ()
    prepare: str = ""


@dataclasses.dataclass(frozen=True)
class Call:
    """A test that calls a function of the program.

    Args:
      function: a function of the program, or a method of its class `Solution`.
      arguments: JSON values, by position or by name.
    """

    function: str
    arguments: Sequence[Any] | Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Stdin:
    """A test that runs the program as a script.

    Args:
      text: what the script reads from standard input.
    """

    text: str


@dataclasses.dataclass(frozen=True)
class Execution:
    """The outcome of one test of one program; all of its texts are untrusted.

    Args:
      status: one of `STATUSES`.
      stdout: the standard output.
      result: the returned value of the called function, after a round trip in JSON.
      error_type: name of the exception's class.
      error_message: its message.
      error_line: line of the program that raised it, from 1; None if unknown.
      error_function: name of the function that raised it.
      error_source: text of that line.
      cpu_s: processor seconds used.
    """

    status: str
    stdout: str = ""
    result: Any = None
    error_type: str = ""
    error_message: str = ""
    error_line: int | None = None
    error_function: str = ""
    error_source: str = ""
    cpu_s: float = 0.0


class SandboxFailure(RuntimeError):
    """The sandbox failed during a run; says nothing about the program."""


class SandboxUnavailable(OSError):
    """No allowed tier works on this machine."""


def as_message(test: Call | Stdin) -> dict:
    """A test as a worker reads it."""
    if isinstance(test, Stdin):
        return {"stdin": test.text}
    arguments = test.arguments
    if not isinstance(arguments, Mapping):
        arguments = list(arguments)
    return {"function": test.function, "arguments": arguments}


def max_answer_bytes(request: Mapping[str, Any]) -> int:
    """An upper bound of the size of an honest answer to a request, in JSON."""
    # A byte of output is at most six bytes in JSON (\u0000), and a test has two
    # outputs, stdout and report.
    per_test = 12 * request["limits"]["output_kb"] * 1024 + 4096
    return len(request["tests"]) * per_test + 4096


def max_answer_s(request: Mapping[str, Any]) -> float:
    """An upper bound of the time until a working server answers, in seconds."""
    # One more than the tests, for all calls in one process.
    num_runs = 1 + len(request["tests"])
    return START_S + num_runs * (request["limits"]["wall_s"] + 1.0)
