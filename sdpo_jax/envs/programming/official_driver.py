"""Runs a program under the official grader's rules. Read as text, run in the sandbox.

The rules that honest programs can notice: names that are missing, modules that cannot
be imported, standard input without bytes, any exit a failure, and the first function
where the named one is missing. What the official code does to keep programs out is
not here.
"""

import __future__

import ast
import builtins
import decimal  # noqa: F401
import fractions  # noqa: F401
import io
import json
import pickle
import statistics  # noqa: F401
import sys
import traceback
import typing

FILENAME = "Solution.py"
getframe = sys._getframe
BUILTINS = """
abs all any bool bytes callable chr dict enumerate filter float format frozenset hash
hex input int isinstance issubclass iter len list map max min next object ord pow print
range repr reversed round set slice sorted str sum tuple zip __build_class__
"""
MODULES = """
array bisect cmath collections dataclasses datetime decimal fractions functools heapq io
itertools json math numpy operator random re sortedcontainers statistics string sys time
typing
"""
TYPING = """
Any Optional Union List Dict Set Tuple Callable Iterable Iterator Sequence Mapping
MutableMapping MutableSequence MutableSet DefaultDict Deque FrozenSet Type TypeVar
Generic Literal TypedDict NoReturn overload
"""


def import_allowed(name, *arguments, **options):
    """`__import__` for a list of modules."""
    if name.split(".")[0] not in MODULES.split():
        raise ImportError(f"Import of module '{name}' is not allowed")
    # Modules may ask for frames as they begin, as numpy does; programs may not.
    sys._getframe = getframe
    try:
        return builtins.__import__(name, *arguments, **options)
    finally:
        sys._getframe = None


def namespace(name):
    """The globals that a program starts with."""
    # Named tuples and type variables need it, and fail there.
    sys._getframe = None
    sys.setrecursionlimit(1000)
    known = {word: getattr(builtins, word) for word in BUILTINS.split()}
    known |= {"open": None, "__import__": import_allowed}
    typed = {word: getattr(typing, word) for word in TYPING.split()}
    return {"__builtins__": known, "__name__": name, **typed}


def script(program, text):
    """What a program prints that reads `text`, or its error."""
    output = sys.stdout = io.StringIO()
    sys.stdin = io.StringIO(text)
    try:
        exec(compile(program, FILENAME, "exec"), namespace("__main__"))
        return {"output": output.getvalue()}
    except MemoryError:
        raise
    except BaseException as error:
        return describe(error)


def call(program, function, written):
    """What a function returns for arguments as a row has them, or its error."""
    names = namespace("__not_main__")
    flags = __future__.annotations.compiler_flag
    sys.stdout = io.StringIO()
    try:
        exec(compile(program, FILENAME, "exec", flags, dont_inherit=True), names)
        found = names[function_name(program, function, names)]
        if isinstance(written, str):
            written = [json.loads(word) for word in written.split()]
        output = found(**written) if isinstance(written, dict) else found(*written)
        pickle.dumps(output)  # There it is sent to the trainer so.
        return {"output": json.loads(json.dumps(output))}
    except MemoryError:
        raise
    except BaseException as error:
        return describe(error)


def function_name(program, function, names):
    """The function to call: the named one, else the first of the program."""
    if callable(names.get(function)):
        return function
    for node in ast.parse(program).body:
        if isinstance(node, ast.FunctionDef):
            return node.name
    return program.split("(")[0].split()[-1]


def describe(error):
    """An exception's type and message, and where in the program it came from."""
    line, function = None, ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        inside = frame.f_globals is not globals()
        if inside and frame.f_code.co_filename == FILENAME:
            line, function = number, frame.f_code.co_name
    if isinstance(error, SyntaxError) and error.filename == FILENAME:
        line = error.lineno
    said = [type(error).__name__, str(error), line, function]
    return {"error": said}
