import base64
import datetime
import json
import os
import pickle
import zlib

import pytest

from sdpo_jax.envs.programming import cases
from sdpo_jax.envs.programming.grader import PACKAGES, Programming
from sdpo_jax.questions import livecodebench, rows
from sdpo_jax.questions.livecodebench import convert, from_livecodebench
from sdpo_jax.sandbox.pool import Sandbox
from sdpo_jax.sandbox.values import Call, Limits, Stdin


def packed(text, protocol=4):
    return base64.b64encode(zlib.compress(pickle.dumps(text, protocol))).decode()


def hidden(count, testtype="stdin"):
    return json.dumps(
        [
            {"input": f"{n}\n", "output": f"{2 * n}", "testtype": testtype}
            for n in range(count)
        ]
    )


SCRIPT = {
    "question_title": "Double",
    "question_content": "Print {n} doubled.\n\nSample Input\n\n1\n\nSample Output\n\n2",
    "platform": "atcoder",
    "question_id": "abc999_a",
    "contest_id": "abc999",
    "contest_date": "2025-03-01T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": hidden(1),
    "private_test_cases": hidden(7),
    "metadata": "{}",
}
METHOD = SCRIPT | {
    "question_content": "Double n.",
    "platform": "leetcode",
    "question_id": "3999",
    "contest_date": "2025-04-30T23:59:59",
    "starter_code": (
        "class Solution:\n    def doubled(self, n: int, a: List[int]) -> int:\n        "
    ),
    "private_test_cases": packed(
        json.dumps(
            [
                {"input": '3\n[1, 2]\n"a b"', "output": "6", "testtype": "functional"},
                {"input": "4\n[]\n{}", "output": "8", "testtype": "functional"},
            ]
        )
    ),
    "metadata": '{"func_name": "doubled"}',
}


def cases_of(hub, **options):
    return cases.read_cases(from_livecodebench(hub, "here", **options), "here")["tests"]


def test_script_has_the_published_prompt_and_its_hidden_tests():
    row = from_livecodebench(SCRIPT, "here")
    assert row["uid"] == "abc999_a"
    assert row["prompt"].startswith("You are a coding expert. You will be given a ")
    assert row["prompt"].endswith(
        "code block enclosed with ``` ```.\n\n" + SCRIPT["question_content"]
    )
    tests = cases_of(SCRIPT)
    assert list(tests.inputs) == [Stdin(f"{n}\n") for n in range(7)]
    assert tests.outputs == [f"{2 * n}" for n in range(7)]
    assert tests.time_limit == 6


def test_method_is_asked_for_as_a_function():
    assert from_livecodebench(METHOD, "here")["prompt"].endswith(
        "Double n.\n\nYour solution should have the following signature: ```python\n"
        "def doubled(n: int, a: List[int]) -> int:\n```"
    )
    tests = cases_of(METHOD)
    assert tests.inputs[0] == Call("doubled", [3, [1, 2], "a b"])
    assert tests.outputs == [6, 8]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("text", [hidden(3), hidden(3000), '[{"input": "é\\u2028"'])
def test_packed_tests_are_read_in_every_protocol(protocol, text):
    assert livecodebench._decompressed(packed(text, protocol), "here") == text


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


def raw(data):
    return base64.b64encode(zlib.compress(data)).decode()


@pytest.mark.parametrize(
    "text, message",
    [
        (packed(Evil()), r"is not a pickled string: opcode \w+ is not allowed"),
        (packed([hidden(1)]), "opcode EMPTY_LIST is not allowed"),
        (packed({"a": 1}), "opcode EMPTY_DICT is not allowed"),
        (packed(5), "opcode BININT1 is not allowed"),
        (packed(None), "opcode NONE is not allowed"),
        (packed(b"[]"), "opcode SHORT_BINBYTES is not allowed"),
        (raw(b"cos\nsystem\n(S'x'\ntR."), "opcode GLOBAL is not allowed"),
        (raw(b"\x80\x04\x82\x01."), "opcode EXT1 is not allowed"),
        (raw(b"\x80\x04N."), "opcode NONE is not allowed"),
        (raw(b"\x80\x04."), "has 0 strings"),
        (raw(b"Va\nVb\n."), "has 2 strings"),
        (raw(b"\x80\x04X\xff\xff\xff\x7fabc"), "is not a pickled string"),
        (raw(b"Vabc\n"), "is not a pickled string"),
        (raw(b"\xff\xff"), "is not a pickled string"),
        (raw(b""), "is not a pickled string"),
        ("!!!", "neither JSON nor compressed"),
        ("abcd", "neither JSON nor compressed"),
        (base64.b64encode(zlib.compress(b"x" * 5000)[:-6]).decode(), "truncated"),
        ("", "neither|truncated"),
    ],
)
def test_packed_tests_that_are_no_string_are_refused_and_never_run(text, message):
    hub = SCRIPT | {"private_test_cases": text}
    with pytest.raises(ValueError, match=f"^row 4, field private_test_.*({message})"):
        from_livecodebench(hub, "row 4")


def test_packed_tests_that_decompress_to_too_much_are_refused(monkeypatch):
    monkeypatch.setattr(livecodebench, "_MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="decompresses to more than 1000 bytes"):
        from_livecodebench(
            SCRIPT | {"private_test_cases": packed("[" + " " * 1000)}, "here"
        )


@pytest.mark.parametrize("count, kept", [(1, 1), (2, 1), (3, 1), (7, 3), (100, 50)])
def test_half_of_the_tests_is_a_stable_subset_in_order(count, kept):
    hub = SCRIPT | {"private_test_cases": hidden(count)}
    all_tests, half = cases_of(hub), cases_of(hub, tests="half")
    assert len(half.inputs) == len(half.outputs) == kept
    places = [all_tests.inputs.index(test) for test in half.inputs]
    assert places == sorted(places)
    assert [all_tests.outputs[place] for place in places] == half.outputs
    assert cases_of(hub, tests="half") == half


def test_half_differs_from_question_to_question():
    halves = {
        tuple(
            test.text
            for test in cases_of(SCRIPT | {"question_id": f"q{n}"}, tests="half").inputs
        )
        for n in range(20)
    }
    assert len(halves) > 10


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"question_id": None}, "field question_id: expected str"),
        ({"question_content": 3}, "field question_content"),
        ({"starter_code": None}, "field starter_code"),
        ({"starter_code": "class Solution: pass"}, "starter_code: expected a function"),
        ({"private_test_cases": None}, "field private_test_cases: expected text"),
        ({"private_test_cases": "[]"}, "private_test_cases: contains no test"),
        ({"private_test_cases": "[1]"}, "test 1: expected an object"),
        ({"private_test_cases": packed("{}")}, "expected list, got"),
        ({"private_test_cases": '[{"input": "1"}]'}, "test 1, field output"),
        (
            {"private_test_cases": hidden(1)[:-1] + "," + hidden(1, "functional")[1:]},
            "test 2, field testtype: differs from that of test 1",
        ),
        (
            {"private_test_cases": hidden(1, "functional"), "metadata": "{}"},
            "field metadata, field func_name",
        ),
        (
            {"private_test_cases": hidden(1, "functional"), "metadata": "[]"},
            "field metadata: expected dict",
        ),
        (
            {"private_test_cases": hidden(1, "functional"), "metadata": ""},
            "field metadata: is not JSON",
        ),
    ],
)
def test_malformed_row_is_refused_by_row_and_field(fields, message):
    with pytest.raises(ValueError, match=f"^row 9, .*{message}"):
        from_livecodebench(SCRIPT | fields, "row 9")


def test_tests_are_all_or_half():
    with pytest.raises(ValueError, match='"all" or "half", got .most.'):
        from_livecodebench(SCRIPT, "here", tests="most")


def write(path, *hub):
    path.write_text("".join(json.dumps(row) + "\n" for row in hub))
    return path


def test_files_of_the_hub_become_the_two_files_of_the_paper(tmp_path):
    early = SCRIPT | {"question_id": "early", "contest_date": "2025-01-31T23:00:00"}
    late = SCRIPT | {"question_id": "late", "contest_date": "2025-05-01"}
    sources = [
        write(tmp_path / "a.jsonl", early, SCRIPT),
        write(tmp_path / "b.jsonl", METHOD, late),
    ]

    assert convert(sources, tmp_path / "out") == 2

    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "test.json",
        "train.json",
    ]
    splits = rows.load_splits(
        {s: tmp_path / "out" / f"{s}.json" for s in ("train", "test")},
        cases.read_cases,
    )
    counts = {s: [len(q.data["tests"].inputs) for q in splits[s]] for s in splits}
    assert counts == {"train": [3, 1], "test": [7, 2]}
    assert [q.uid for q in splits["train"]] == ["abc999_a", "3999"]


def test_failed_conversion_leaves_no_files(tmp_path):
    source = write(tmp_path / "a.jsonl", SCRIPT, METHOD | {"metadata": "{}"})
    with pytest.raises(ValueError, match="a.jsonl, row 2, field metadata"):
        convert([source], tmp_path / "out")
    day = datetime.date(2024, 1, 1)
    with pytest.raises(
        ValueError,
        match="no question is from 2024-01-01 or later and before 2024-01-01",
    ):
        convert([source], tmp_path / "out", day, day)
    write(source, SCRIPT | {"contest_date": "soon"})
    with pytest.raises(ValueError, match="row 1, field contest_date: .*soon"):
        convert([source], tmp_path / "out")
    source.write_text("[1]\n")
    with pytest.raises(ValueError, match="row 1: expected dict"):
        convert([source], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.json"))


@pytest.mark.parametrize("grader", ["fixed", "official"])
def test_converted_questions_are_graded(tmp_path, grader):
    convert([write(tmp_path / "a.jsonl", SCRIPT)], tmp_path)
    with Sandbox(Limits(cpu_s=1.0), workers=1, packages=PACKAGES) as sandbox:
        files = {"train": tmp_path / "test.json"}
        environment = Programming(files, sandbox, grader=grader)
        (question,) = environment.questions("train")
        score = lambda program: (
            environment.start(question).act(f"```python\n{program}\n```", False).score
        )
        assert score("print(2 * int(input()))") == 1.0
        assert score("print(int(input()) ** 2)") == 0.0
