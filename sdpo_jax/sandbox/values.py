"""What goes into a sandbox and comes out of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

STATUSES = (
    "ok",  # The call returned, or the script ended.
    "error",
    "time_limit",
    "memory_limit",
    "output_limit",
    "skipped",  # A test before it spent a limit.
)
WALL_PER_CPU = 5.0
START_S = 30.0  # Of a worker.


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one test may spend.

    Args:
      cpu_s: processor seconds, which decide the time-limit verdict.
      wall_s: seconds on the clock, a backstop for programs that wait; well above
        `cpu_s`, because a busy machine stretches them. None for five times `cpu_s`.
      memory_mb: address space in MiB.
      output_kb: KiB of standard output, and of the returned value.
      processes: threads; enforced when the trainer is root.
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
        """What a worker is told; `cpu_s` moves both time limits in proportion."""
        message = dataclasses.asdict(self)
        message["cpu_s"] = self.cpu_s if cpu_s is None else cpu_s
        message["output_kb"] = self.output_kb if output_kb is None else output_kb
        stretch = (self.wall_s or WALL_PER_CPU * self.cpu_s) / self.cpu_s
        message["wall_s"] = stretch * message["cpu_s"]
        return message


@dataclasses.dataclass(frozen=True)
class Packages:
    """Modules beyond the standard library.

    Args:
      modules: names of installed ones; programs can read and import all of each.
      prepare: source, trusted, that each worker runs before it confines itself, so
        that its forks find modules imported.
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
    """What one test of one program did; everything in it is untrusted text.

    Args:
      status: one of `STATUSES`.
      stdout: what was printed.
      result: what the called function returned, as JSON gives it back.
      error_type: name of the exception.
      error_message: its message.
      error_line: line of the program it came from, from 1; None if unknown.
      error_function: function of the program that it came from.
      error_source: that line.
      cpu_s: processor seconds spent.
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
    """A sandbox failed in mid-run; nothing is known of the program."""


class SandboxUnavailable(OSError):
    """No tier that was allowed works on this machine."""


def as_message(test: Call | Stdin) -> dict:
    """A test as a worker is told it."""
    if isinstance(test, Stdin):
        return {"stdin": test.text}
    arguments = test.arguments
    if not isinstance(arguments, Mapping):
        arguments = list(arguments)
    return {"function": test.function, "arguments": arguments}


def most_bytes(request: Mapping[str, Any]) -> int:
    """The size that no honest answer to a request exceeds."""
    # Escaped as JSON, a byte of output is at most six long.
    per_test = 12 * request["limits"]["output_kb"] * 1024 + 4096
    return len(request["tests"]) * per_test + 4096


def most_seconds(request: Mapping[str, Any]) -> float:
    """The time after which an answer will not come any more."""
    return START_S + len(request["tests"]) * (request["limits"]["wall_s"] + 1.0)
