"""Runs a program under the official grader's rules; itself runs in the sandbox.

It holds the rules that affect honest programs: missing names, modules that cannot be
imported, standard input without bytes, every exit a failure, and the first function
where the named one is missing. The official code's isolation is not reproduced.
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
# The official code leaves Python's limit on the digits of an integer as it is.
if hasattr(sys, "set_int_max_str_digits"):
    sys.set_int_max_str_digits(4300)
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
    """`__import__` for the modules of MODULES only."""
    if name.split(".")[0] not in MODULES.split():
        raise ImportError(f"Import of module '{name}' is not allowed")
    # Modules such as numpy use frames while they are imported; programs may not.
    sys._getframe = getframe
    try:
        return builtins.__import__(name, *arguments, **options)
    finally:
        sys._getframe = None


def namespace(name):
    """The globals that a program starts with."""
    # Named tuples and type variables need frames; without them they fail as officially.
    sys._getframe = None
    sys.setrecursionlimit(1000)
    known = {word: getattr(builtins, word) for word in BUILTINS.split()}
    known |= {"open": None, "__import__": import_allowed}
    typed = {word: getattr(typing, word) for word in TYPING.split()}
    return {"__builtins__": known, "__name__": name, **typed}


def script(program, text):
    """The output of a program with `text` as its standard input, or its error."""
    output = sys.stdout = io.StringIO()
    sys.stdin = io.StringIO(text)
    try:
        exec(compile(program, FILENAME, "exec"), namespace("__main__"))
        return {"output": output.getvalue()}
    except MemoryError:
        raise
    except BaseException as error:
        return describe(error)


def call(program, function, arguments):
    """The result of a function for unparsed arguments of a row, or its error."""
    names = namespace("__not_main__")
    flags = __future__.annotations.compiler_flag
    sys.stdout = io.StringIO()
    try:
        exec(compile(program, FILENAME, "exec", flags, dont_inherit=True), names)
        run = names[function_name(program, function, names)]
        if isinstance(arguments, str):
            arguments = [json.loads(word) for word in arguments.split()]
        named = isinstance(arguments, dict)
        output = run(**arguments) if named else run(*arguments)
        pickle.dumps(output)  # The official code pickles it to return it.
        return {"output": json.loads(json.dumps(output))}
    except MemoryError:
        raise
    except BaseException as error:
        return describe(error)


def function_name(program, function, names):
    """The name of the function to call: the given one, else the program's first."""
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
    return {"error": [type(error).__name__, str(error), line, function]}
