"""From what a worker saw to an execution; what a test says of itself is untrusted."""

import json
import re

from sdpo_jax.sandbox.values import Call, Execution, Stdin

MAX_DEPTH = 100  # Nesting of a returned value.
_SQUARE = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def execution(record: dict, test: Call | Stdin, cpu_limit_s: float) -> Execution:
    """Turn what a worker saw into an execution."""
    seen = {"stdout": record["stdout"], "cpu_s": record["cpu_s"]}
    if record["ended"] == "output":
        return Execution("output_limit", **seen)
    if record["ended"] in ("cpu", "wall") or record["cpu_s"] >= cpu_limit_s:
        return Execution("time_limit", **seen)
    if record["signal"] == 9:  # Out of memory, or the program asked for it.
        return Execution("memory_limit", **seen)
    if record["signal"]:
        message = f"the interpreter crashed with signal {record['signal']}"
        return _error(seen, "Crash", message)
    if record["report"]:
        return _read_report(record["report"], seen)
    if isinstance(test, Call):
        return _error(seen, "SystemExit", f"the program ended inside {test.function}")
    return Execution("ok", **seen)


def _error(seen: dict, kind: str, message: str) -> Execution:
    return Execution("error", error_type=kind, error_message=message, **seen)


def _read_report(report: str, seen: dict) -> Execution:
    """Read what a test says of itself; a test may have written anything here."""
    try:
        if _is_deep(report):
            return _error(seen, "ValueError", f"nested deeper than {MAX_DEPTH} levels")
        said = json.loads(report)
    except (ValueError, RecursionError) as error:
        return _error(seen, "ValueError", f"the result is not JSON: {error}")
    if isinstance(said, dict) and "result" in said:
        return Execution("ok", result=said["result"], **seen)
    error = said.get("error") if isinstance(said, dict) else None
    if not isinstance(error, dict):
        return _error(seen, "ValueError", "the result is not JSON")
    line = error.get("line")
    kind = str(error.get("type", ""))
    return Execution(
        status="memory_limit" if kind == "MemoryError" else "error",
        error_type=kind,
        error_message=str(error.get("message", "")),
        error_line=line if type(line) is int and 0 < line < 1 << 31 else None,
        error_function=str(error.get("function", "")),
        error_source=str(error.get("source", "")),
        **seen,
    )


def _is_deep(text: str) -> bool:
    """Whether JSON text nests deeper than `MAX_DEPTH`."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    # A string may lack its end: if the pattern could fail, it would be tried again at
    # each quote.
    bare = re.sub(r'"(?:[^"\\]|\\.)*+"?', "", text).encode("ascii", "replace")
    brackets = bare.translate(_SQUARE, _NO_BRACKETS)
    # From the inside out; megabytes of brackets, one by one, would take seconds.
    for _ in range(MAX_DEPTH):
        if b"[]" not in brackets:
            break
        brackets = brackets.replace(b"[]", b"")
    return b"[]" in brackets or brackets.count(b"[") > MAX_DEPTH
