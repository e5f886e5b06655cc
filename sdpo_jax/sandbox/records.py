"""Converts a worker's record of a test into an `Execution`.

The worker wrote the record, but the test wrote the report inside it: reports are
untrusted.
"""

import json
import re

from sdpo_jax.sandbox.values import MAX_DIGITS, Call, Execution, Stdin

MAX_DEPTH = 100  # Nesting of a returned value, far below Python's recursion limit.
_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# The time to read an integer grows with the square of its digits, 0.1 ms for 4300.
_LONG_INTEGER = re.compile(r"(?<![0-9])[0-9]{4301,}")


def execution(record: dict, test: Call | Stdin, cpu_limit_s: float) -> Execution:
    """The execution that a worker's record describes.

    Args:
      record: of `process.Worker.exchange`.
      test: that was run.
      cpu_limit_s: its limit of processor seconds.
    """
    measured = {"stdout": record["stdout"], "cpu_s": record["cpu_s"]}
    if record["ended"] == "output":
        return Execution("output_limit", **measured)
    # A test may pass its limit and end before the worker measures its time again.
    if record["ended"] in ("cpu", "wall") or record["cpu_s"] >= cpu_limit_s:
        return Execution("time_limit", **measured)
    # The kernel sends SIGKILL when memory is short. A program that sends it to itself
    # gets the same status.
    if record["signal"] == 9:
        return Execution("memory_limit", **measured)
    if record["signal"]:
        message = f"the interpreter crashed with signal {record['signal']}"
        return _error(measured, "Crash", message)
    # A report comes from calls, and from scripts that failed.
    if record["report"]:
        return _read_report(record["report"], measured)
    if isinstance(test, Call):
        return _error(
            measured, "SystemExit", f"the program ended inside {test.function}"
        )
    return Execution("ok", **measured)


def _error(measured: dict, kind: str, message: str) -> Execution:
    return Execution("error", error_type=kind, error_message=message, **measured)


def _read_report(report: str, measured: dict) -> Execution:
    """The execution that a report claims; a program may have written anything."""
    try:
        if _is_deep(report):
            return _error(
                measured, "ValueError", f"nested deeper than {MAX_DEPTH} levels"
            )
        if _is_slow(report):
            message = f"long integers have more than {MAX_DIGITS} digits in all"
            return _error(measured, "ValueError", message)
        claim = json.loads(report)
    except (ValueError, RecursionError) as error:
        return _error(measured, "ValueError", f"the result is not JSON: {error}")
    if isinstance(claim, dict) and "result" in claim:
        return Execution("ok", result=claim["result"], **measured)
    error = claim.get("error") if isinstance(claim, dict) else None
    if not isinstance(error, dict):
        return _error(measured, "ValueError", "the result is not JSON")
    line = error.get("line")
    kind = str(error.get("type", ""))
    return Execution(
        status="memory_limit" if kind == "MemoryError" else "error",
        error_type=kind,
        error_message=str(error.get("message", "")),
        error_line=line if type(line) is int and 0 < line < 1 << 31 else None,
        error_function=str(error.get("function", "")),
        error_source=str(error.get("source", "")),
        **measured,
    )


def _without_strings(text: str) -> str:
    """JSON text without its strings."""
    # The closing quote is optional, so that the pattern never fails. If it could, an
    # unclosed string would be tried again from each quote, in quadratic time.
    return re.sub(r'"(?:[^"\\]|\\.)*+"?', "", text)


def _is_slow(text: str) -> bool:
    """Whether the long integers in JSON text take long to read."""
    if not _LONG_INTEGER.search(text):
        return False
    integers = _LONG_INTEGER.findall(_without_strings(text))
    return sum(map(len, integers)) > MAX_DIGITS


def _is_deep(text: str) -> bool:
    """Whether JSON text is nested deeper than `MAX_DEPTH`."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    bare = _without_strings(text).encode("ascii", "replace")
    brackets = bare.translate(_SQUARE, _NO_BRACKETS)
    # Each pass removes one level. A Python loop over megabytes of brackets would take
    # seconds.
    for _ in range(MAX_DEPTH):
        if b"[]" not in brackets:
            break
        brackets = brackets.replace(b"[]", b"")
    return b"[]" in brackets or brackets.count(b"[") > MAX_DEPTH
