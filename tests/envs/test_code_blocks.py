"""Responses as models write them, and which of their blocks is the program."""

import time

import pytest

from sdpo_jax.envs import code_blocks
from sdpo_jax.thinking import answer_of

ADD = "def add(a, b):\n    return a + b\n"
DRAFT = (
    "def add(a, b):\n    result = a - b  # Is this the right sign?\n    return result\n"
)
SCRIPT = "n = int(input())\nprint(sum(map(int, input().split())) % n)\n"
DOCSTRING = (
    'def add(a, b):\n{0}"""Add.\n\n{0}{1}\n{0}>>> add(1, 2)\n{0}3\n{0}```\n{0}"""\n'
)
LONG_OUTPUT = "Case 1: 3\nCase 2: 34\nCase 3: 10\n" * 5
EXPLAINED = (
    "def is_even(n):\n    return n % 2 == 0\n\n\ndef add(a, b):\n"
    "    if is_even(a):\n        return a + b\n    return b + a\n"
)


def fence(code, info="python", mark="```"):
    return f"{mark}{info}\n{code.rstrip()}\n{mark}\n"


def nested(indent, info="```"):
    return DOCSTRING.format(" " * indent, info) + f"{' ' * indent}return a + b\n"


# Name -> response, and the program that a reader takes from it.
RESPONSES = {
    "block": (f"Here it is:\n{fence(ADD)}Done.", ADD),
    "no language": (fence(ADD, ""), ADD),
    **{
        f"info string {info!r}": (
            f"{fence('int main() {}', 'c++')}text\n{fence(ADD, info)}",
            ADD,
        )
        for info in (
            *("py", "Python", "PYTHON", "python3", "py3", "Python 3", "python3.11"),
            *(" python", "{.python}", "{python}", "{.python .numberLines}", "pypy3"),
            *("python title='a.py'", "python:add.py", "language-python", "solution.py"),
            *("{code-cell} ipython3", "python {linenos=true}", "python  ", "py\t"),
        )
    },
    "c++ before": (f"{fence('int x;' * 40, 'c++')}In Python:\n{fence(ADD)}", ADD),
    "c# and f# before": (
        f"{fence('int x;' * 40, 'c#')}or\n{fence('let x' * 40, 'f#')}or\n{fence(ADD)}",
        ADD,
    ),
    "longer program in another language": (
        f"{fence(ADD)}{fence('def add(a, b) = a + b // Scala' * 9, 'scala')}",
        ADD,
    ),
    "space after the closing fence": (
        f"```python\n{ADD}``` \nIt prints\n```text\n{LONG_OUTPUT}```  \n",
        ADD,
    ),
    "tab after the closing fence": (f"```python\n{ADD}```\t\nText ```\n", ADD),
    "text after the closing fence": (f"```python\n{ADD}``` and so on\n", ADD),
    "closing fence after code": (f"```python\n{ADD.rstrip()}```\n", ADD.rstrip()),
    "in bold and in tags": (
        f"<answer>**```python\n{ADD}```**</answer>\n```text\n{LONG_OUTPUT}```\n",
        ADD,
    ),
    "before a closing tag": (
        f"<answer>\n```python\n{ADD}```</answer>\n```\n{LONG_OUTPUT}```\n{fence('')}",
        ADD,
    ),
    "opening fence after text": (f"**Answer**: {fence(ADD)}", ADD),
    "windows line ends": (fence(ADD).replace("\n", "\r\n"), ADD),
    "old line ends": (fence(ADD).replace("\n", "\r"), ADD),
    "byte-order mark before the fence": (f"\ufeff{fence(ADD)}", ADD),
    "in a list": (
        "1. Read.\n2. Add:\n\n"
        "   ```python\n   def add(a, b):\n       return a + b\n   ```\n3. Done.\n",
        ADD,
    ),
    "in a nested list": (
        "- a\n    - b\n\n"
        "        ```python\n        def add(a, b):\n            return a + b\n"
        "        ```\n",
        ADD,
    ),
    "after the list's bullet": (
        "- ```python\n  def add(a, b):\n      return a + b\n  ```\n",
        ADD,
    ),
    "after the list's number": (
        "1. ```python\n   def add(a, b):\n       return a + b\n   ```\n",
        ADD,
    ),
    "in a list without its indentation": (
        f"1. Add:\n\n   ```python\n{ADD}   ```\n",
        ADD,
    ),
    "code indented by itself": (
        fence("    def add(a, b):\n        return a + b\n"),
        ADD,
    ),
    "indented by tabs": (
        "\t```python\n\tdef add(a, b):\n\t\treturn a + b\n\t```\n",
        "def add(a, b):\n\treturn a + b\n",
    ),
    "quoted": ("> ```python\n> def add(a, b):\n>     return a + b\n> ```\n", ADD),
    "tildes": (f"{fence(ADD, mark='~~~')}Output:\n{fence(LONG_OUTPUT, 'text')}", ADD),
    "tildes around backticks": (fence(nested(4), mark="~~~"), nested(4)),
    "inversions are no fence": (fence(ADD + "~~~add\n"), ADD + "~~~add\n"),
    "four backticks": (fence(ADD, mark="````"), ADD),
    "four backticks around three": (fence(nested(0), mark="````"), nested(0)),
    "four backticks around the answer": (
        f"````markdown\n# Answer\n\n{fence(ADD)}````\nText.\n",
        ADD,
    ),
    "three backticks around the answer": (
        f"```markdown\n# Answer\n\n{fence(ADD)}```\nText.\n",
        ADD,
    ),
    "fence in a docstring": (fence(nested(4)), nested(4)),
    "fence in a docstring indented by two": (fence(nested(2)), nested(2)),
    "fence with a language in a docstring": (
        fence(nested(4, "```python")),
        nested(4, "```python"),
    ),
    "fence at the margin of a string": (
        fence(f"TEXT = '''\n{fence('x')}'''\n{ADD}"),
        f"TEXT = '''\n{fence('x')}'''\n{ADD}",
    ),
    "fence in a line": (
        fence(f"MARK = '```'  # not ```\n{ADD}"),
        f"MARK = '```'  # not ```\n{ADD}",
    ),
    "string that is never closed": (
        f"{fence(chr(34) * 3 + 'Draft')}No:\n{fence(ADD)}Or\n{fence(ADD + '#')}",
        ADD + "#",
    ),
    "primes that are no strings": (
        f"{fence(chr(39) * 3 + '(x) = 6')}As f{chr(39) * 3}(x) is 6:\n{fence(ADD)}",
        ADD,
    ),
    "code in a line": (f"Call ```add(1, 2)``` or ```add```\nas in\n{fence(ADD)}", ADD),
    "fence named in the text": (f"I put the code in ```\n\n{fence(ADD)}", ADD),
    "fence that never closes before": (
        f"```python\ndef add(\n\nNo.\n{fence(ADD)}",
        ADD,
    ),
    "output behind a fence with a word": (f"```python\n{ADD}```output\n3\n```\n", ADD),
    "longer expected output": (
        f"{fence(ADD)}Expected output:\n{fence(LONG_OUTPUT, '')}",
        ADD,
    ),
    "longer output that names Python": (
        f"{fence(ADD)}It prints\n{fence(LONG_OUTPUT, 'python')}",
        ADD,
    ),
    "longer shell session": (
        f"{fence(ADD)}{fence('$ python add.py' + LONG_OUTPUT, 'console')}",
        ADD,
    ),
    "longer session of Python": (
        f"{fence(ADD)}{fence('>>> add(1, 2)' + LONG_OUTPUT, 'pycon')}"
        f"{fence('>>> def add(a, b): pass' + LONG_OUTPUT)}",
        ADD,
    ),
    "longer example": (
        f"{fence(ADD)}For example:\n"
        + fence("print(add(1, 2))  # 3\nprint(add(30, 4))  # 34\nprint(add(5, 5))\n"),
        ADD,
    ),
    "longer tests": (
        f"{fence(ADD)}Tests:\n"
        + fence(
            "import unittest\nfrom solution import add\n\n\n"
            "class TestAdd(unittest.TestCase):\n    def test_add(self):\n"
            "        self.assertEqual(add(1, 2), 3)\n"
        ),
        ADD,
    ),
    "longer example without a language before": (
        f"{fence('add(1, 2) -> 3' + LONG_OUTPUT, '')}{fence(ADD)}",
        ADD,
    ),
    "program without a language beside an example": (
        fence(ADD, "") + fence("print(add(1, 2), add(3, 4), add(5, 6), add(7, 8))"),
        ADD,
    ),
    "corrected version": (fence(DRAFT) + "Wait, the sign.\n" + fence(ADD), ADD),
    "corrected version with an example": (
        f"{fence(DRAFT)}Wait.\n{fence(ADD)}So\n{fence('print(add(1, 2))')}",
        ADD,
    ),
    "longer corrected version": (f"{fence(ADD)}Better:\n{fence(DRAFT)}", DRAFT),
    "starter code": (
        fence("class Solution:\n    def add(self, a, b):") + fence(ADD),
        ADD,
    ),
    "signature after it": (
        f"{fence(ADD)}The signature is\n{fence('def add(a: int, b: int) -> int:')}",
        ADD,
    ),
    "stub after it": (
        fence(ADD) + "It was\n" + fence("def add(x, y):\n    pass"),
        ADD,
    ),
    "stub in a line after it": (
        fence(ADD) + fence("def add(a: int, b: int) -> int: ..."),
        ADD,
    ),
    "parts explained after it": (
        fence(EXPLAINED)
        + "1. **Parity**\n"
        + fence("def is_even(n):\n    return n % 2 == 0")
        + "2. **Sum**\n"
        + fence(
            "def add(a, b):\n    # Even.\n    if is_even(a):\n        return a + b"
        ),
        EXPLAINED,
    ),
    "part that calls the rest": (
        fence(EXPLAINED) + fence("def add(a, b):\n    return is_even(a) and a + b"),
        EXPLAINED,
    ),
    "change with the rest left out": (
        f"{fence(ADD)}To print it:\n"
        + fence("def add(a, b):\n    # ... as before\n    print(a + b)\n"),
        ADD,
    ),
    "draft while thinking": (
        f"<think>\n{fence(DRAFT * 3)}Hm.\n</think>\n{fence(ADD)}",
        ADD,
    ),
    "thinking that the template opened": (
        f"{fence(DRAFT * 3)}Hm.\n</think>\n{fence(ADD)}",
        ADD,
    ),
    "fence left open while thinking": (
        f"<think>\n```python\n{DRAFT}</think>\n{fence(ADD)}",
        ADD,
    ),
    "cut off after the program": (f"{fence(ADD)}Tests:\n```python\n{DRAFT * 3}", ADD),
    "listing that holds it": (
        fence(ADD) + fence(f"add.py:\n{ADD}\n> python add.py", ""),
        ADD,
    ),
    "corrected version beside its tests": (
        fence(DRAFT) + fence(f"import unittest\n{ADD}assert add(1, 2) == 3"),
        f"import unittest\n{ADD}assert add(1, 2) == 3",
    ),
    "constant": (fence("add = lambda a, b: a + b\n"), "add = lambda a, b: a + b\n"),
    "typed constant": (
        fence("add: Callable = lambda a, b: a + b") + fence("x = add(1, 2)\n" * 9),
        "add: Callable = lambda a, b: a + b",
    ),
    "method": (
        fence("class Solution:\n    def add(self, a, b): return a + b")
        + fence("s = Solution()\n" + "assert s.add(1, 2) == 3\n" * 5),
        "class Solution:\n    def add(self, a, b): return a + b",
    ),
    "function of another name": (
        fence("def plus(a, b):\n    return a + b") + fence("plus(1, 2)"),
        "def plus(a, b):\n    return a + b",
    ),
    "only another language": (fence("int x;", "c++"), "int x;"),
    "empty block after it": (f"{fence(ADD)}{fence('')}", ADD),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_program_among_the_blocks_is_found(name):
    response, program = RESPONSES[name]
    found = code_blocks.program(response, ["add"])
    assert found.rstrip() == program.rstrip()


SUM = "import sys\nprint(sum(map(int, sys.stdin.read().split())))\n"
SOLVE = "def solve(n):\n    return n + 1\n\n\nn = int(input())\nprint(solve(n))\n"
SCRIPTS = {
    "script": (f"{fence(SUM)}", SUM),
    "function and its tests": (
        fence(SOLVE) + fence("print(solve(3))  # 4\nassert solve(4) == 5\n" * 5),
        SOLVE,
    ),
    "example that reads too": (
        fence(SOLVE) + fence('number = int(input("Number: "))\nprint(solve(number))'),
        SOLVE,
    ),
    "test with an input of its own": (
        fence(SUM)
        + fence(
            "import io, sys\nsys.stdin = io.StringIO('1 2')\n"
            "import solution\nprint('ok')"
        ),
        SUM,
    ),
    "test in another process": (
        fence(SUM)
        + fence(
            "import subprocess\nout = subprocess.run(['python', 'a.py'], "
            "stdin=open('in'), stdout=subprocess.PIPE)\nprint(out.stdout)"
        ),
        SUM,
    ),
    "file of inputs after it": (
        fence(SUM)
        + fence(
            "with open('in.txt', 'w') as f:\n    for i in range(9): f.write('1 2')"
        ),
        SUM,
    ),
    "file read by descriptor": (
        fence("import os\nprint(len(os.read(0, 10**6)))") + fence("print(6)\n" * 40),
        "import os\nprint(len(os.read(0, 10**6)))",
    ),
    "input and output after it": (
        fence(SUM) + fence(f"input\n{'1 2 3 ' * 20}", "") + fence("print 6" * 20, ""),
        SUM,
    ),
    "session after it": (
        fence(SUM) + fence("$ python a.py < input\nprint: 6\n" * 5, ""),
        SUM,
    ),
    "corrected version": (
        fence("n = int(input())\nprint(n)  # The rest is missing.") + fence(SUM),
        SUM,
    ),
    "version without the example at its end": (
        fence(SOLVE + "print(solve(3))\nprint(solve(4))") + fence(SOLVE),
        SOLVE,
    ),
    "first line explained": (
        fence(SUM) + "`sys` is needed:\n" + fence("import sys"),
        SUM,
    ),
    "end explained": (
        fence(SOLVE) + fence("n = int(input())\nprint(solve(n))"),
        SOLVE,
    ),
    "own input function, then Python's": (
        fence(f"def input():\n    return next(lines)\n{SOLVE.replace('+', '-')}")
        + fence(SOLVE),
        SOLVE,
    ),
    "another language that prints": (
        fence(SUM) + fence("int main() { read(&n); print(n + 1); }", "java"),
        SUM,
    ),
    "left out": (fence(SUM) + fence("n = int(input())\n...\nprint(n)"), SUM),
    "pass at its end": (
        fence("print(int(input()))")
        + fence("try:\n    print(int(input()) + 1)\nexcept EOFError:\n    pass"),
        "try:\n    print(int(input()) + 1)\nexcept EOFError:\n    pass",
    ),
    "nothing is read": (fence("print(6)") + fence("6 " * 40, "text"), "print(6)"),
    "input in an f-string": (
        fence('print(f"{int(input()) + 1}")') + fence("4\n" * 40, ""),
        'print(f"{int(input()) + 1}")',
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_among_the_blocks_is_found(name):
    response, program = SCRIPTS[name]
    assert code_blocks.program(response).rstrip() == program.rstrip()


def test_there_are_more_than_thirty_responses_of_each_kind():
    assert len(RESPONSES) + len(SCRIPTS) > 90


@pytest.mark.parametrize("name", RESPONSES)
def test_reasoning_may_have_been_removed_before(name):
    response, _ = RESPONSES[name]
    found = code_blocks.program(answer_of(response), ["add"])
    assert found == code_blocks.program(response, ["add"])


@pytest.mark.parametrize(
    "response",
    [
        "",
        ADD,
        "x ``` y",
        f"```python\n{ADD}",
        f"````python\n{ADD}```\n",
        f"~~~python\n{ADD}```\n",
        f"Call ```{ADD.strip()}``` to add.",
        "```add(1, 2)```",
        fence(""),
        f"<think>\n{fence(ADD)}",
        f"<think>\n{fence(ADD)}</think>\nI do not know.",
        f"{fence(ADD)}</think>\n```python\n{ADD}",
    ],
)
def test_response_without_a_closed_block_has_no_program(response):
    assert code_blocks.program(response, ["add"]) is None
    assert code_blocks.longest(response) is None


@pytest.mark.parametrize(
    "response, block",
    [
        ("```python\nx\n```", "x\n"),
        ("```\nx\n```", "x\n"),
        ("```py\nx = 1\n``` or\n```\nx\n```", "x = 1\n"),
        ("```json\n[1]\n``` or\n```python\nx\n```", "[1]\n"),
        ("- ```text\n  a\n   b\n  ```\n", "a\n b\n"),
        ("```text\n  /\\\n /  \\\n```", "  /\\\n /  \\\n"),
        ("```python\nx\n", None),
        ("x", None),
    ],
)
def test_longest_block_is_of_any_language_and_closes(response, block):
    assert code_blocks.longest(response) == block


@pytest.mark.parametrize(
    "response",
    [
        "```\n" * 30_000,
        "```python\n" * 10_000,
        fence(ADD) * 3_000,
        "".join(fence(f"def f{i}(): pass") for i in range(3_000)),
        "".join(f"{'`' * n}\n" for n in range(200, 3, -1)),
        "```python\n" + '"""\n```\n' * 12_000,
        "```python\n" + "'\"" * 50_000,
        '"""' + '\\"' * 50_000,
        "```python\n" + '"""\\' * 25_000 + "```",
        "1. " * 30_000,
        "> " * 50_000 + "```",
        "```python\n" + "#" * 100_000 + "\n```",
        "```python\n" + "def " * 25_000 + "\n```",
        "```python\n" + "(" * 100_000 + "\n```",
        "```python\n" + "a\n" * 50_000 + "```\n```\n" + "a\n" * 25_000 + "```",
    ],
    ids=range(15),
)
def test_long_response_is_read_within_a_second(response):
    start = time.process_time()
    code_blocks.program(response, ["add"])
    code_blocks.program(response)
    assert time.process_time() - start < 1.0
