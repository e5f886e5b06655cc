"""Runs a program in this process and reports its result or error."""

import atexit
import builtins
import functools
import json
import sys
import traceback
import types

FILENAME = "Solution.py"
MESSAGE_CHARS = 2_000
# A byte-order mark, and what else editors show as nothing or as a space.
INVISIBLE = "\ufeff\xad\u200b\u200c\u200d\u2060\xa0"

# Reads the name from the class itself, because a metaclass may override `__name__`.
class_name = type.__dict__["__name__"].__get__


@functools.lru_cache(maxsize=1)
def compiled(program):
    """The compiled program; for forks only, because the worker must not keep it.

    Invisible characters in front of it are left out: Python accepts only a byte-order
    mark there, and only in files.
    """
    source = program.lstrip(INVISIBLE + " \t\r\n\f")
    start = program[: len(program) - len(source)]
    start = start.translate(dict.fromkeys(map(ord, INVISIBLE)))
    return compile(start + source, FILENAME, "exec", dont_inherit=True)


def load_program(program, name):
    """Run the program's top level in a new module called `name`."""
    module = types.ModuleType(name)
    # In sys.modules before it runs, as in an import: dataclasses and pickle look there.
    module.__file__, module.__builtins__ = FILENAME, builtins
    sys.modules[name] = module
    exec(compiled(program), module.__dict__)
    return module


def run_script(program):
    """Run the program as a script, and then what Python does at exit."""
    try:
        load_program(program, "__main__")
    except SystemExit:
        pass
    names = sys.modules["__main__"].__dict__
    # Waits for the threads. The fork ends without Python's own exit, so all of its
    # steps are here.
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    # Before its module is cleared: a program may have replaced sys.stdout by an object
    # that uses the module.
    flush([sys.stdout])
    clear_module(names)


def clear_module(names):
    """Clear a module as Python does at exit: files are flushed, finalizers run."""
    for name in list(names):
        if name != "__builtins__":
            names[name] = None


def flush(streams):
    """Flush the streams, ignoring errors."""
    for stream in streams:
        try:
            stream.flush()
        except Exception:  # A program may have replaced a stream by anything.
            pass


def find_function(module, name):
    """The method `name` of the program's class `Solution`, else its function `name`.

    The method comes first, because a star import may add a function of the same name.
    """
    solution = getattr(module, "Solution", None)
    if not hasattr(solution, name) and hasattr(module, name):
        return getattr(module, name)
    if solution is None:
        raise NameError(f"name {name!r} is not defined")
    return getattr(solution(), name)


def as_plain(value):
    """A NumPy number or array as a value that JSON can encode."""
    if type(value).__module__ == "numpy":
        return value.tolist()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


# Made before a program runs, which may patch the module json.
ENCODER = json.JSONEncoder(default=as_plain)


def run_call(program, call):
    """The value that the called function returns, as JSON text."""
    dumps = ENCODER.encode  # Read before the program can replace it.
    # A program that calls sys.exit() at its end has still defined its functions.
    try:
        module = load_program(program, "solution")
    except SystemExit:
        module = sys.modules["solution"]
    function, arguments = find_function(module, call["function"]), call["arguments"]
    if isinstance(arguments, dict):
        return dumps(function(**arguments))
    return dumps(function(*arguments))


def describe(error, program):
    """An exception as JSON values: type, message, and location in the program."""
    line, function = None, ""
    # The innermost frame of the program, not of a library that it called.
    for frame, number in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename == FILENAME:
            line, function = number, frame.f_code.co_name
    if isinstance(error, SyntaxError) and error.filename == FILENAME:
        line, function = error.lineno, ""
    try:
        message = error.msg if isinstance(error, SyntaxError) else str(error)
    except BaseException:  # The program wrote this __str__.
        message = ""
    lines = program.split("\n")
    is_known = isinstance(line, int) and 0 < line <= len(lines)
    return {
        "type": class_name(type(error)),
        "message": str(message)[:MESSAGE_CHARS],
        "line": line,
        "function": function,
        "source": lines[line - 1].strip()[:MESSAGE_CHARS] if is_known else "",
    }


def run_test(program, call):
    """Run one test; return its report as JSON text.

    Args:
      program: its source.
      call: function and arguments; None to run the program as a script, whose report
        is empty if it ends without an error.
    """
    out = sys.stdout  # The program may replace it, but may have printed to it before.
    try:
        if call is None:
            run_script(program)
            return ""
        return '{"result": ' + run_call(program, call) + "}"
    except MemoryError as error:
        # Frees the objects that filled the memory, so that the report fits.
        traceback.clear_frames(error.__traceback__)
        return json.dumps({"error": describe(error, program)})
    except BaseException as error:
        return json.dumps({"error": describe(error, program)})
    finally:
        flush((out, sys.stdout))
