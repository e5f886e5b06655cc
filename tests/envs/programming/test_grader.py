import json
import threading

import pytest

from sdpo_jax import config, envs
from sdpo_jax.envs import feedback_text
from sdpo_jax.envs.base import GraderFailure
from sdpo_jax.envs.programming import cases
from sdpo_jax.envs.programming.grader import (
    PACKAGES,
    Programming,
    same_text,
    same_value,
)
from sdpo_jax.questions import rows
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Limits

ADD = {
    "uid": "add",
    "prompt": "Write add(a, b).",
    "tests": {
        "inputs": [[1, 2], [30, 4], [5, 5]],
        "outputs": [3, 34, 10],
        "testtype": "functional",
        "fn_name": "add",
    },
}
ECHO = {
    "idx": 7,
    "system": "You write Python.",
    "prompt": "Print the sum of the numbers.",
    "tests": json.dumps(
        {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7"], "testtype": "stdin"}
    ),
}


@pytest.fixture(scope="module")
def sandbox():
    limits = Limits(cpu_s=0.5, wall_s=4.0, memory_mb=512, output_kb=64)
    with Sandbox(limits, workers=2, packages=PACKAGES) as box:
        yield box


def write(folder, *rows):
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def make(sandbox, tmp_path):
    def make(*rows, **options):
        return Programming({"train": write(tmp_path, *rows)}, sandbox, **options)

    return make


def grade(environment, response, truncated=False):
    (question,) = environment.questions("train")
    return environment.start(question).act(response, truncated)


def fenced(program):
    return f"Here it is:\n```python\n{program}\n```\nDone."


# Verdicts and their feedback.


def test_right_program_is_accepted_without_feedback(make):
    verdict = grade(make(ADD), fenced("def add(a, b):\n    return a + b"))
    assert (verdict.score, verdict.outcome, verdict.feedback) == (1.0, "Accepted", "")
    assert verdict.measurements == {"tests_passed": 1.0}


def test_script_is_graded_word_by_word(make):
    response = fenced("print('', sum(map(int, input().split())), end='\\n\\n')")
    assert grade(make(ECHO), response).score == 1.0


def test_wrong_answers_come_shortest_first_with_input_output_and_expected(make):
    program = "def add(a, b):\n    print('hm')\n    return a * b"
    verdict = grade(make(ADD), fenced(program))
    assert (verdict.score, verdict.outcome) == (0.0, "Wrong Answer")
    assert verdict.feedback == (
        "Test Case 1: Wrong Answer\nInput\n1\n2\nOutput\n2\n"
        "Standard Output\nhm\nExpected\n3\n\n"
        "Test Case 3: Wrong Answer\nInput\n5\n5\nOutput\n25\n"
        "Standard Output\nhm\nExpected\n10"
    )


@pytest.mark.parametrize(
    "reveals, told",
    [
        ("inputs", ["Input\n1\n2"]),
        ("outputs", ["Input\n1\n2", "Output\n2", "Standard Output\nhm"]),
        (
            "expected",
            ["Input\n1\n2", "Output\n2", "Standard Output\nhm", "Expected\n3"],
        ),
    ],
)
def test_feedback_reveals_what_is_set(make, reveals, told):
    environment = make(ADD, reveals=reveals, wrong_answers_shown=1)
    verdict = grade(
        environment, fenced("def add(a, b):\n    print('hm')\n    return 2")
    )
    assert verdict.feedback == "\n".join(["Test Case 1: Wrong Answer", *told])


@pytest.mark.parametrize("reveals, told", [("inputs", ""), ("outputs", "\nOutput\n3")])
def test_feedback_on_a_script_reveals_what_is_set(make, reveals, told):
    environment = make(ECHO, reveals=reveals, wrong_answers_shown=1)
    feedback = grade(environment, fenced("print(3)")).feedback
    assert feedback == "Test Case 2: Wrong Answer\nInput\n3 4" + told


@pytest.mark.parametrize("reveals", ["inputs", "outputs"])
def test_expected_output_stays_secret_where_it_should(make, reveals):
    tests = ADD["tests"] | {"outputs": [2718, 2718, 2718]}
    environment = make(ADD | {"tests": tests}, reveals=reveals)
    for body in ("return 1", "1 / 0", "while True: pass", "exit()", "print(a)"):
        feedback = grade(environment, fenced(f"def add(a, b):\n    {body}")).feedback
        assert feedback and "2718" not in feedback


def test_builtin_functions_stay_what_they_are_beside_the_imported_names(make):
    body = "    return pow(a, 1, 10**9) + b if gcd(a, a) == a and open else 0"
    assert grade(make(ADD), fenced(f"def add(a, b):\n{body}")).score == 1.0


def test_share_of_passed_tests_is_measured_but_not_scored(make):
    verdict = grade(make(ADD), fenced("def add(a, b):\n    return min(a + b, 10)"))
    assert verdict.score == 0.0
    assert verdict.measurements["tests_passed"] == pytest.approx(2 / 3)


def test_number_of_wrong_answers_shown_is_an_option(make):
    response = fenced("def add(a, b):\n    return -1")
    assert grade(make(ADD, wrong_answers_shown=1), response).feedback.count("Case") == 1
    assert grade(make(ADD, wrong_answers_shown=3), response).feedback.count("Case") == 3


def test_runtime_error_names_source_line_function_and_last_input(make):
    program = "def add(a, b):\n    assert a < 30\n    return -(a // (b - 2))"
    verdict = grade(make(ADD), fenced(program))
    assert verdict.outcome == "Runtime Error"
    assert verdict.feedback == (
        "Runtime Error\nZeroDivisionError: integer division or modulo by zero\n"
        "return -(a // (b - 2))\nLine 3 in add (Solution.py)\n"
        "Last Executed Input\n1\n2"
    )


def test_runtime_error_of_a_later_test_speaks_for_all(make):
    verdict = grade(make(ADD), fenced("def add(a, b): return 1 // (a - 30)"))
    assert verdict.feedback.endswith("Last Executed Input\n30\n4")


@pytest.mark.parametrize(
    "body, outcome",
    [
        ("while True: pass", "Time Limit Exceeded"),
        ("return bytearray(10**10)", "Memory Limit Exceeded"),
        ("while True: print('x' * 1000)", "Output Limit Exceeded"),
    ],
)
def test_spent_limit_is_named_with_its_input(make, body, outcome):
    verdict = grade(make(ADD), fenced(f"def add(a, b):\n    {body}"))
    assert (verdict.score, verdict.outcome) == (0.0, outcome)
    assert verdict.feedback == f"{outcome}\nLast Executed Input\n1\n2"


@pytest.mark.parametrize(
    "response, truncated, outcome, word",
    [
        ("no code", False, "Incorrect Format", "block"),
        ("```python\ndef add(", False, "Incorrect Format", "block"),
        ("```python\ndef add(", True, "Truncated", "shorter"),
    ],
)
def test_response_without_a_program(make, response, truncated, outcome, word):
    verdict = grade(make(ADD), response, truncated)
    assert (verdict.score, verdict.outcome) == (0.0, outcome)
    assert word in verdict.feedback


def test_truncated_response_with_a_whole_block_is_graded(make):
    response = fenced("def add(a, b):\n    return a + b")
    assert grade(make(ADD), response, truncated=True).score == 1.0


SUM = "print(sum(map(int, input().split())))"
ASSERTED = ADD | {
    "tests": {
        "testtype": "asserts",
        "inputs": ["def check(candidate):\n    assert candidate(1, 2) == 3"],
        "fn_name": "add",
    }
}


@pytest.mark.parametrize(
    "row, right, other",
    [
        (ADD, "def add(a, b):\n    return a + b", "def check():\n    add(1, 2)"),
        (ASSERTED, "def add(a, b):\n    return a + b", "def check():\n    add(1, 2)"),
        (ECHO, SUM, "def check():\n    print('of numbers')"),
    ],
    ids=["functional", "asserts", "stdin"],
)
def test_program_precedes_longer_blocks_and_drafts(make, row, right, other):
    environment = make(row)
    other += "\n    # so" * 30
    draft = right.replace("+", "-").replace("sum", "max")
    for response in (
        f"{fenced(right)}\nUse it so:\n{fenced(other)}",
        f"{fenced(draft)}\nNo.\n{fenced(right)}\nIt prints\n```\n{'3 ' * 99}\n```",
        f"<think>{fenced(draft + ' ' * 99)}</think>\n{fenced(right)}",
        fenced(right).replace("\n", "\r\n"),
    ):
        assert grade(environment, response).score == 1.0, response
    assert grade(environment, f"{fenced(right)}\nNo.\n{fenced(draft)}").score == 0.0


LONG = 10**6000
LONG_INTEGERS = {
    "script": (
        {"testtype": "stdin", "inputs": [f"1{'0' * 6000}"], "outputs": ["9" * 6000]},
        "print(int(input()) - 1)",
    ),
    "function": (
        {
            "testtype": "functional",
            "fn_name": "f",
            "inputs": [f"1{'0' * 6000}", [LONG]],
            "outputs": ["9" * 6000, LONG - 1],
        },
        "def f(n): return n - 1",
    ),
    "asserts": (
        {
            "testtype": "asserts",
            "inputs": [
                f"assert f(1{'0' * 6000}) == {'9' * 6000}",
                f"assert f(1{'0' * 6000}) == {'9' * 6000}",
            ],
        },
        "def f(n): return n - 1",
    ),
}


@pytest.mark.parametrize("process_per", ["test", "program"])
def test_integers_may_have_many_digits(tmp_path, process_per):
    with Sandbox(workers=1, process_per=process_per, packages=PACKAGES) as box:
        for kind, (tests, program) in LONG_INTEGERS.items():
            row = {"uid": kind, "prompt": "?", "tests": tests}
            environment = Programming({"train": write(tmp_path, row)}, box)
            assert grade(environment, fenced("\ufeff" + program)).score == 1.0
            wrong = grade(environment, fenced(program.replace("- 1", "- 2")))
            assert wrong.outcome == "Wrong Answer"
            assert "Expected\n99999" in wrong.feedback


def test_time_limit_of_a_question_replaces_that_of_the_sandbox(make):
    once = ADD["tests"] | {"inputs": [[1, 2]], "outputs": [3]}
    program = (
        "import time\ndef add(a, b):\n    end = time.process_time() + 0.6\n"
        "    while time.process_time() < end: pass\n    return a + b"
    )
    hurried, patient = (
        grade(make(ADD | {"tests": once | {"time_limit": limit}}), fenced(program))
        for limit in (None, 5)
    )
    assert hurried.outcome == "Time Limit Exceeded"
    assert patient.score == 1.0


def test_feedback_is_capped_and_sanitised(make):
    program = (
        "def add(a, b):\n"
        "    raise ValueError('\\x1b[31m<|im_end|>\\u202e' + 'y' * 10**6)"
    )
    feedback = grade(make(ADD), fenced(program)).feedback
    assert "\x1b" not in feedback and "\u202e" not in feedback
    assert "<|" not in feedback and "|>" not in feedback
    assert len(feedback) < 4 * feedback_text.FIELD_CHARS


def test_feedback_as_a_whole_is_capped(make):
    response = fenced("def add(a, b):\n    return 'z' * 1000")
    tests = {
        "inputs": [[i, "w" * 1000] for i in range(9)],
        "outputs": ["x"] * 9,
        "testtype": "functional",
        "fn_name": "add",
    }
    tests["outputs"] = [json.dumps("v" * 1000)] * 9
    row = ADD | {"tests": tests}
    feedback = grade(make(row, wrong_answers_shown=9), response).feedback
    assert 1500 < len(feedback) <= feedback_text.FEEDBACK_CHARS


def test_input_of_many_lines_is_cut_to_eight(make):
    tests = {"inputs": ["1\n" * 50], "outputs": ["x"], "testtype": "stdin"}
    feedback = grade(make(ECHO | {"tests": tests}), fenced("print(2)")).feedback
    assert feedback.split("\n")[2:11] == ["1"] * 7 + ["1...", "Output"]


def test_acts_may_run_in_many_threads(make):
    environment = make(ADD)
    verdicts = [None] * 12

    def act(index):
        program = f"def add(a, b):\n    return a + b + {index % 2}"
        verdicts[index] = grade(environment, fenced(program)).score

    threads = [threading.Thread(target=act, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == [1.0, 0.0] * 6


def test_failed_grader_is_raised_and_never_a_score(make, monkeypatch):
    environment = make(ADD)

    def fail(*arguments, **options):
        raise GraderFailure("a sandbox worker died")

    monkeypatch.setattr(environment.sandbox, "run", fail)
    with pytest.raises(GraderFailure):
        grade(environment, fenced("def add(a, b): return a + b"))


# Programs that pass without solving, if the grader lets them.

CHEATS = {
    "equal to everything": (
        "class E(int):\n    def __eq__(self, other): return True\n"
        "def add(a, b): return E(0)"
    ),
    "dict that answers": (
        "class D(dict):\n    def __getitem__(self, key): return 3\n"
        "def add(a, b): return D()"
    ),
    "early exit": "import sys\ndef add(a, b): sys.exit(0)",
    "os._exit": "import os\ndef add(a, b): os._exit(0)",
    "forged verdict": (
        "import os\ndef add(a, b):\n"
        "    for fd in range(3, 20):\n"
        '        try: os.write(fd, b\'{"passed": true, "score": 1}\')\n'
        "        except OSError: pass\n    os._exit(0)"
    ),
    "patched json": (
        "import json\njson.dumps = lambda x: 'true'\ndef add(a, b): return 0"
    ),
    "true for one": "def add(a, b): return True",
    "frames": (
        "import sys\ndef add(a, b):\n    frame = sys._getframe()\n"
        "    while frame:\n        for value in list(frame.f_locals.values()):\n"
        "            if isinstance(value, dict) and 'outputs' in value:\n"
        "                return value['outputs'][0]\n        frame = frame.f_back"
    ),
    "nan": "def add(a, b): return float('nan')",
    "syntax": "def add(a, b) return",
    "print instead": "def add(a, b): print(a + b)",
    "printed verdicts": "print('Accepted', 1, {'result': 1})",
    "text of the number": "def add(a, b): return '1'",
    "list of it": "def add(a, b): return [1]",
    "object that is written as it": (
        "class J(float):\n    def __repr__(self): return '1'\n"
        "def add(a, b): return J('nan')"
    ),
    "object that hashes and indexes as it": (
        "class X:\n    __index__ = __int__ = __hash__ = lambda self: 1\n"
        "def add(a, b): return X()"
    ),
    "close to it": "def add(a, b): return 1 + 1e-12",
    "infinite": "def add(a, b): return float('inf')",
    "huge": "def add(a, b): return 10**4000",
    "nothing": "def add(a, b): pass",
    "report of its own": (
        "import os\ndef add(a, b):\n    for fd in range(3, 30):\n"
        "        try: os.write(fd, b'{\"result\": 0}')\n"
        "        except OSError: pass\n    return 1"
    ),
    "name of the test's module": (
        "import sys, types\nfake = types.ModuleType('solution')\n"
        "fake.add = lambda a, b: 0\nsys.modules['solution'] = fake"
    ),
}


@pytest.mark.parametrize("end", ["1 / 0", "while True: pass", "import os; os.abort()"])
def test_right_output_of_a_script_that_fails_is_no_answer(make, end):
    program = f"print(sum(map(int, input().split())), flush=True)\n{end}"
    assert grade(make(ECHO), fenced(program)).score == 0.0


@pytest.mark.parametrize("end", ["1 / 0", "while True: pass", "import os; os.abort()"])
def test_call_that_fails_returns_no_null(make, end):
    tests = ADD["tests"] | {"outputs": [None] * 3}
    environment = make(ADD | {"tests": tests})
    assert grade(environment, fenced(f"def add(a, b):\n    {end}")).score == 0.0
    assert grade(environment, fenced("def add(a, b): pass")).score == 1.0


@pytest.mark.parametrize("name", CHEATS)
def test_cheat_scores_nothing(make, name):
    tests = ADD["tests"] | {"outputs": [1, 1, 1]}
    assert grade(make(ADD | {"tests": tests}), fenced(CHEATS[name])).score == 0.0


def test_name_that_needs_no_import_is_not_the_function_that_is_called(make):
    # `gcd` is known to every program; one that does not define it has none.
    tests = {"inputs": [[4, 6]], "outputs": [2], "testtype": "functional"}
    environment = make(ADD | {"tests": tests | {"fn_name": "gcd"}})
    assert grade(environment, fenced("x = 1")).outcome == "Runtime Error"
    own = "class Solution:\n    def gcd(self, a, b):\n        return gcd(a, b)"
    assert grade(environment, fenced(own)).score == 1.0


def test_program_that_stops_with_right_output_passes(make):
    response = fenced(
        "import sys\nprint(sum(map(int, sys.stdin.read().split())))\nsys.exit(1)"
    )
    assert grade(make(ECHO), response).score == 1.0


# Comparison.


@pytest.mark.parametrize(
    "result, expected, same",
    [
        (6, 6.0, True),
        ([1, [2.0]], [1.0, [2]], True),
        ({"a": 1}, {"a": 1.0}, True),
        (None, None, True),
        ("6", 6, False),
        (True, 1, False),
        (0, False, False),
        ([1, 2], [2, 1], False),
        ([1], [1, 1], False),
        ({"a": 1}, {"b": 1}, False),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ([], {}, False),
        (None, 0, False),
        (0.1 + 0.2, 0.3, False),
        (10**400, 1e308, False),
    ],
)
def test_values_are_compared_by_type_tolerant_equality(result, expected, same):
    assert same_value(result, expected) is same


@pytest.mark.parametrize(
    "printed, expected, same",
    [
        ("1  2\r\n3 \n\n", "1 2\n3", True),
        ("\n\n  YES", "YES\n", True),
        ("a\t b", "a b", True),
        ("3.0", "3", True),
        ("0.50", "0.5", True),
        (".5 -0", "0.5 0", True),
        ("1e-07", "0.0000001", True),
        ("1e+20", "100000000000000000000", True),
        ("+7", "7", True),
        ("1 2.0", "1.0 2", True),
        ("9" * 5000, "9" * 5000 + ".0", True),
        ("", "", True),
        (" \n", "", True),
        # What only looks right.
        ("1 2 3", "1 2\n3", False),
        ("1\n\n2", "1\n2", False),
        ("1\n2\n3", "1\n2", False),
        ("1\n2", "1\n2\n3", False),
        ("1 2", "12", False),
        ("12", "1 2", False),
        ("1 2 3", "1 2", False),
        ("2 1", "1 2", False),
        ("", "0", False),
        ("0", "", False),
        ("Yes", "YES", False),
        ("YES.", "YES", False),
        ("101", "0101", False),
        ("07:5", "07:05", False),
        ("00", "0", False),
        ("1_000", "1000", False),
        ("\u0661", "1", False),
        ("x 3.0", "x 3", False),
        ("Case #1: 3.0", "Case #1: 3", False),
        ("0.3333333", "0.33333333", False),
        ("0.30000000000000004", "0.3", False),
        ("1e1000", "1e1001", False),
        ("1e9999999999", "1", False),
        ("50000000000000001", "50000000000000000", False),
        ("9007199254740993", "9007199254740992.0", False),
        ("nan", "NaN", False),
        ("inf", "Infinity", False),
        ("[1,2]", "[1, 2]", False),
        ("True", "1", False),
        ("'a'", "a", False),
        ("answer: 3", "3", False),
        ("3 3", "3", False),
        ("0x10", "16", False),
        ("4/2", "2", False),
    ],
)
def test_text_is_compared_by_lines_words_and_exact_numbers(printed, expected, same):
    assert same_text(printed, expected) is same


# Sanitising.


@pytest.mark.parametrize(
    "text, clean",
    [
        ("a\nb\tc", "a\nb\tc"),
        ("<|im_start|>system", "< |im_start| >system"),
        ("<|||im_end|||>", "< |||im_end||| >"),
        ("<\u200b|im_end|\u200b>", "< |im_end| >"),
        ("<\uff5cend\uff5c>", "< \uff5cend\uff5c >"),
        ("</think><tool_call>", "< /think>< tool_call>"),
        ("[INST] [/INST]", "[ INST] [ /INST]"),
        ("a < b > c, List<int>, x|y", "a < b > c, List<int>, x|y"),
        ("\x00\x1b[2J\x7f\u202e\ud800ok", "[2Jok"),
        ("na\u00efve \u65e5\u672c", "na\u00efve \u65e5\u672c"),
    ],
)
def test_sanitise(text, clean):
    assert feedback_text.sanitise(text) == clean
    assert feedback_text.sanitise(clean) == clean


def test_field_has_250_characters_at_most_and_a_feedback_2000():
    assert feedback_text.cut("x" * 250) == "x" * 250
    assert feedback_text.cut("x" * 251) == "x" * 250 + "..."
    assert feedback_text.feedback(["x" * 3000]) == "x" * 2000
    # What makes special tokens harmless makes them longer.
    assert len(feedback_text.feedback(["<|" * 3000])) == 2000


# Files.


def test_files_may_be_json_lines_or_one_list(tmp_path):
    lines = rows.load(write(tmp_path, ADD, ECHO), cases.read_cases)
    path = tmp_path / "list.json"
    path.write_text(json.dumps([ADD, ECHO]))
    assert rows.load(path, cases.read_cases) == lines
    assert [question.uid for question in lines] == ["add", "7"]
    assert lines[1].system == "You write Python."
    assert "34" not in lines[0].prompt + lines[0].system


def test_functional_inputs_may_be_text_lists_or_objects():
    def arguments(value):
        return cases._arguments(value, "here")

    assert arguments('[1, 2]\n"a b"\n3') == [[1, 2], "a b", 3]
    assert arguments("3 4") == [3, 4]
    assert arguments([1]) == [1]
    assert arguments({"a": 1}) == {"a": 1}
    assert arguments("") == []


def changed(row, **fields):
    return row | {"tests": ADD["tests"] | fields}


@pytest.mark.parametrize(
    "row, message",
    [
        ([1], "row 2: expected an object, got list"),
        (ADD | {"uid": ""}, "row 2, field uid .*: is empty"),
        (ADD | {"uid": True}, "row 2, field uid .*: expected a name, got True"),
        (ADD | {"prompt": 3}, "row 2, field prompt: expected str, got 3"),
        (ADD | {"prompt": " "}, "row 2, field prompt: is empty"),
        (ADD | {"system": 3}, "row 2, field system"),
        (ADD | {"tests": "{"}, "row 2, field tests: is not JSON"),
        (ADD | {"tests": None}, "row 2, field tests: expected an object"),
        (changed(ADD, inputs=[]), "row 2, field tests: 0 inputs and 3 outputs"),
        (changed(ADD, inputs=[], outputs=[]), "field tests: 0 inputs and 0 outputs"),
        (changed(ADD, outputs="3"), "row 2, field tests, field outputs: expected list"),
        (changed(ADD, testtype="x"), "field testtype: expected .*, got 'x'"),
        (changed(ADD, fn_name=None), "field fn_name: expected str, got None"),
        (changed(ADD, time_limit=0), "field time_limit: expected seconds above 0"),
        (changed(ADD, time_limit=True), "field time_limit"),
        (
            changed(ADD, inputs=[[1, 2], 3, [4, 5]]),
            r"field inputs\[1\]: expected a list",
        ),
        (changed(ADD, inputs=["1 x", "1", "1"]), r"field inputs\[0\]: expected JSON"),
        (changed(ADD, outputs=["abc", 1, 2]), r"field outputs\[0\]: 'abc' is not JSON"),
        (changed(ADD, outputs=["[NaN]", 1, 2]), r"field outputs\[0\]: expected finite"),
        (changed(ADD, outputs=[1, float("inf"), 2]), r"outputs\[1\]: expected finite"),
        (changed(ADD, testtype="stdin"), r"field inputs\[0\]: expected text"),
        (ADD | {"uid": "echo"}, "uid 'echo' is that of row 1 too"),
    ],
)
def test_malformed_row_is_refused_by_file_row_and_field(tmp_path, row, message):
    path = write(tmp_path, ECHO | {"uid": "echo"}, row)
    with pytest.raises(ValueError, match=message) as caught:
        rows.load(path, cases.read_cases)
    assert str(path) in str(caught.value)


def test_broken_and_empty_files_are_refused(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(ADD) + "\n{")
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        rows.load(path, cases.read_cases)
    path.write_text("")
    with pytest.raises(ValueError, match="holds no questions"):
        rows.load(path, cases.read_cases)


def test_unknown_split_and_options_are_refused(make):
    with pytest.raises(ValueError, match="heldout.*train"):
        make(ADD).questions("heldout")
    with pytest.raises(ValueError, match="wrong_answers_shown"):
        make(ADD, wrong_answers_shown=-1)
    with pytest.raises(ValueError, match="reveals must be .*, got 'all'"):
        make(ADD, reveals="all")
    with pytest.raises(ValueError, match="grader must be .*, got 'strict'"):
        make(ADD, grader="strict")


def test_config_sets_grader_and_what_is_revealed(tmp_path):
    c = config.default()
    for split in config.SPLITS:
        c.env[split] = str(write(tmp_path, ADD))
    c.env.programming.feedback_reveals = "outputs"
    c.env.programming.wrong_answers_shown = 1
    for grader, score in (("fixed", 1.0), ("official", 0.0)):
        c.env.grader = grader
        environment = envs.from_config(c)
        response = fenced("def add(a, b):\n    return float(a + b)")
        verdict = grade(environment, response)
        environment.close()
        assert verdict.score == score
    assert verdict.feedback == "Test Case 1: Wrong Answer\nInput\n1\n2\nOutput\n3.0"


def test_close_closes_the_sandbox(tmp_path):
    box = Sandbox(workers=1)
    environment = Programming({"train": write(tmp_path, ADD)}, box)
    assert environment.versions == {"sandbox_tier": box.tier}
    environment.close()
    with pytest.raises(ValueError, match="closed"):
        grade(environment, fenced("def add(a, b): return a + b"))
