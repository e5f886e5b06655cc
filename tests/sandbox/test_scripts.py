"""Honest scripts read and print in many ways."""

import pytest

from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Limits
from tests.sandbox.boxes import call, script

# Scripts read "1\n2\n" and print 3.
SCRIPTS = {
    "until the end": """
        total = 0
        while True:
            try:
                total += int(input())
            except EOFError:
                break
        print(total)
        """,
    "stdin as lines": "import sys\nprint(sum(int(line) for line in sys.stdin))",
    "readlines": "import sys\nprint(sum(map(int, sys.stdin.readlines())))",
    "read by descriptor": "import os\nprint(sum(map(int, os.read(0, 10**6).split())))",
    "sized by fstat": """
        import io, os
        stream = io.BytesIO(os.read(0, os.fstat(0).st_size))
        print(sum(map(int, stream.readlines())))
        """,
    "mapped": (
        "import mmap\nm = mmap.mmap(0, 0, access=1)\nprint(sum(map(int, m[:].split())))"
    ),
    "fileinput": "import fileinput\nprint(sum(map(int, fileinput.input())))",
    "input replaced": (
        "import sys\ninput = sys.stdin.readline\nprint(int(input()) + int(input()))"
    ),
    "iterated": (
        "import sys\ndata = iter(sys.stdin.read().split())\n"
        "print(int(next(data)) + int(next(data)))"
    ),
    "stdin text replaced": """
        import io, sys
        sys.stdin = io.StringIO(sys.stdin.read().replace("\\n", " "))
        print(sum(map(int, input().split())))
        """,
    "quit": "print(3)\nquit()",
    "exit with a code": "import sys\nprint(3)\nsys.exit(0)",
    "raise SystemExit": "print(3)\nraise SystemExit",
    "exit in a function": (
        "import sys\ndef main():\n    print(3)\n    sys.exit()\nmain()"
    ),
    "no newline": "print(3, end='')",
    "no flush": "import sys\nsys.stdout.write('3')",
    "bytes": "import sys\nsys.stdout.buffer.write(b'3\\n')",
    "system call": "import os\nos.write(1, b'3')",
    "file left open": "out = open(1, 'w')\nout.write('3')",
    "descriptor left open": (
        "import os\nout = os.fdopen(os.dup(1), 'w')\nprint(3, file=out)"
    ),
    "writelines": "import sys\nsys.stdout.writelines(['3', '\\n'])",
    "captured and printed": """
        import io, sys
        real, sys.stdout = sys.stdout, io.StringIO()
        print(3)
        text, sys.stdout = sys.stdout.getvalue(), real
        print(text, end="")
        """,
    "stdout wrapped": """
        import io, sys
        class Fast(io.IOBase):
            def __init__(self):
                self.parts = []
            def write(self, text):
                self.parts.append(text)
            def flush(self):
                import os
                os.write(1, "".join(self.parts).encode())
                self.parts = []
        sys.stdout = Fast()
        print(3)
        """,
    "file left open in an object": """
        class Printer:
            def __init__(self):
                self.file = open(1, "w", closefd=False)
        printer = Printer()
        printer.file.write("3")
        """,
    "finalizer": """
        import os
        class Printer:
            def __del__(self, write=os.write):
                write(1, b"3")
        printer = Printer()
        """,
    "globals without names": "globals()[1] = 2\nprint(3)",
    "modes of streams": """
        import sys
        assert (sys.stdin.mode, sys.stdout.mode, sys.stderr.mode) == ("r", "w", "w")
        assert (sys.stdin.name, sys.stdout.name) == ("<stdin>", "<stdout>")
        print(3)
        """,
    "input read twice": """
        import sys
        sys.stdin.read()
        sys.stdin.seek(0)
        print(sum(map(int, sys.stdin)))
        """,
    "input by its path": """
        import pathlib
        print(sum(map(int, pathlib.Path("/dev/stdin").read_text().split())))
        """,
    "stdout closed at the end": "import sys\nprint(3)\nsys.stdout.close()",
    "buffered at exit": """
        import atexit, io, os, sys
        sys.stdout = io.StringIO()
        atexit.register(lambda: os.write(1, sys.stdout.getvalue().encode()))
        print(3)
        """,
    "unbuffered": (
        "import functools\nprint = functools.partial(print, flush=True)\nprint(3)"
    ),
    "line buffered": (
        "import sys\nsys.stdout.reconfigure(line_buffering=True)\nprint(3)"
    ),
    "daemon thread": """
        import threading, time
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        print(3)
        """,
    "main in a thread": """
        import sys, threading
        def main():
            print(sum(map(int, sys.stdin)))
        threading.stack_size(1 << 27)
        thread = threading.Thread(target=main)
        thread.start()
        thread.join()
        """,
    "imports itself": "import __main__\nx = 3\nprint(__main__.x)",
    "prompt": "import sys\nsys.stdin.readline()\nprint(int(input()) + 1)",
    "__name__": "print(3 if __name__ == '__main__' else 4)",
    "builtins by name": "print(3 if 'exit' in dir(__builtins__) else 4)",
    "crlf": (
        "print(sum(map(int, open(0, newline='').read().replace('\\n', "
        "'\\r\\n').split())))"
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_reads_and_prints(sandbox, name):
    execution = script(sandbox, SCRIPTS[name], "1\n2\n")
    assert (execution.status, execution.stdout.strip()) == ("ok", "3"), execution


def test_long_input_and_output_pass_through(tier):
    with Sandbox(Limits(), tier, workers=1) as box:
        text = "12345 " * 350_000
        execution = script(box, "import sys\nprint(len(sys.stdin.read()))", text)
        assert execution.stdout == "2100000\n"
        execution = script(box, "for i in range(80_000): print(i)")
        assert len(execution.stdout) == 468_890
        execution = call(box, "def f(x): return x[::-1]", list(range(120_000)))
        assert execution.result == list(range(120_000))[::-1]
