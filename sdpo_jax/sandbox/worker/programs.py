"""Runs the text of a program in this process, and says what came of it."""

import atexit
import builtins
import functools
import json
import sys
import traceback
import types

FILENAME = "Solution.py"
MESSAGE_CHARS = 2_000

# Of a class itself: a metaclass may answer anything.
class_name = type.__dict__["__name__"].__get__


@functools.lru_cache(maxsize=1)
def compiled(program):
    """The code of a program; called in forks only."""
    return compile(program, FILENAME, "exec", dont_inherit=True)


def load_program(program, name):
    """Run the program's top level in a new module called `name`."""
    module = types.ModuleType(name)
    module.__file__, module.__builtins__ = FILENAME, builtins
    sys.modules[name] = module
    exec(compiled(program), module.__dict__)
    return module


def run_script(program):
    """Run a program that reads standard input, to the end of its threads."""
    try:
        load_program(program, "__main__")
    except SystemExit:
        pass
    names = sys.modules["__main__"].__dict__
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    flush([sys.stdout])  # While what it was made of is still there.
    take_down(names)


def take_down(names):
    """Drop what a module held, as Python does at exit: files flush, finalizers run."""
    for name in list(names):
        if name != "__builtins__":
            names[name] = None


def flush(streams):
    """Write what these streams still hold."""
    for stream in streams:
        try:
            stream.flush()
        except Exception:  # The program may have put anything there.
            pass


def find_function(module, name):
    """A method of the program's class `Solution`, else a function of its own.

    A star import may bring in functions that are called like the method.
    """
    solution = getattr(module, "Solution", None)
    if not hasattr(solution, name) and hasattr(module, name):
        return getattr(module, name)
    if solution is None:
        raise NameError(f"name {name!r} is not defined")
    return getattr(solution(), name)


def as_plain(value):
    """A number or an array of numpy as JSON can say it."""
    if type(value).__module__ == "numpy":
        return value.tolist()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


ENCODER = json.JSONEncoder(default=as_plain)


def run_call(program, call):
    """The JSON text of what the called function returns."""
    dumps = ENCODER.encode
    try:
        module = load_program(program, "solution")
    except SystemExit:
        module = sys.modules["solution"]
    function, arguments = find_function(module, call["function"]), call["arguments"]
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
    except BaseException:  # The program wrote this __str__.
        message = ""
    lines = program.split("\n")
    known = isinstance(line, int) and 0 < line <= len(lines)
    return {
        "type": class_name(type(error)),
        "message": str(message)[:MESSAGE_CHARS],
        "line": line,
        "function": function,
        "source": lines[line - 1].strip()[:MESSAGE_CHARS] if known else "",
    }


def solve(program, call):
    """The report of one test: JSON text, empty for a script (no call) that ended."""
    out = sys.stdout
    try:
        if call is None:
            run_script(program)
            return ""
        return '{"result": ' + run_call(program, call) + "}"
    except MemoryError as error:
        # Its traceback keeps alive what filled the memory.
        traceback.clear_frames(error.__traceback__)
        return json.dumps({"error": describe(error, program)})
    except BaseException as error:
        return json.dumps({"error": describe(error, program)})
    finally:
        flush((out, sys.stdout))
