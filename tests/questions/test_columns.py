"""Columns: names by content, chat messages, and the ground truth of TRL and verl."""

import json
import logging

import pytest

from sdpo_jax import config, envs
from sdpo_jax.envs import judge, multiple_choice, privileged
from sdpo_jax.envs.mathematics import grader as mathematics
from sdpo_jax.envs.programming import cases
from sdpo_jax.questions import columns, rows


def loaded(folder, *table, data=lambda row, where: {}):
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, table)))
    return rows.load(file, data)


def refused(folder, *table, data=lambda row, where: {}):
    with pytest.raises(ValueError) as raised:
        loaded(folder, *table, data=data)
    message = str(raised.value)
    file = str(folder / "rows.jsonl")
    assert message.startswith(f"{file}, row ") and "\n" not in message
    return message.removeprefix(f"{file}, ")


def user(content):
    return {"role": "user", "content": content}


# Names.


def test_rows_without_a_name_are_named_by_their_content(tmp_path, caplog):
    table = [
        {"prompt": "1?"},
        {"prompt": "1?", "system": "Be brief."},
        {"prompt": "2?"},
    ]

    with caplog.at_level(logging.INFO):
        questions = loaded(tmp_path, *table, {"uid": "x", "prompt": "1?"})

    uids = [question.uid for question in questions]
    assert len(set(uids)) == 4 and uids[3] == "x"
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "3 rows have no uid; a hash of the prompt names them"
    ]
    # Neither the order nor other columns change a name; null is no name.
    other = [row | {"elo": 1500, "uid": None} for row in reversed(table)]
    assert [question.uid for question in loaded(tmp_path, *other)] == uids[2::-1]
    # The name does not depend on how messages are written.
    messages = [{"role": "system", "content": "Be brief."}, user("1?")]
    assert loaded(tmp_path, {"prompt": messages})[0].uid == uids[1]


def test_names_by_content_are_those_of_every_process():
    # Python's own hash of a text would differ from process to process.
    assert columns.name_by_content("caf\xe9?", "S") == "5b9722acfaf4df8c"


def test_rows_that_repeat_another_are_used_once_and_counted(tmp_path, caplog):
    # The published files of DAPO hold every row 32 or 100 times.
    table = [
        {
            "prompt": [user(f"{n % 3}?")],
            "reward_model": {"ground_truth": "3"},
            "extra_info": {"index": n},
        }
        for n in range(96)
    ]

    with caplog.at_level(logging.INFO):
        questions = loaded(tmp_path, *table, data=mathematics.data)

    assert [question.prompt for question in questions] == ["0?", "1?", "2?"]
    assert [message.partition(": ")[2] for message in caplog.messages] == [
        "3 rows have no uid; a hash of the prompt names them",
        "93 rows without a uid repeat another row, which is used once",
    ]


def test_one_prompt_with_two_answers_is_refused_and_counted(tmp_path):
    table = [{"prompt": f"{n % 2}?", "answer": n // 3} for n in range(6)]

    assert refused(tmp_path, *table, data=mathematics.data) == (
        "row 4: has the prompt of row 2 too, but is graded otherwise, and has no uid: "
        "remove one, or give both rows a uid (rows like this: 3)"
    )


@pytest.mark.parametrize("uid", [1.5, float("nan"), ["a"], {}, "", " ", "\ud83d"])
def test_names_are_text_or_whole_numbers(tmp_path, uid):
    told = refused(tmp_path, {"prompt": "?"}, {"prompt": "?", "uid": uid})

    assert told.startswith("row 2, field uid (or idx): ")


# Prompts.


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"prompt": [user("?")]}, ("?", "")),
        ({"prompt": [{"role": "system", "content": "S"}, user("?")]}, ("?", "S")),
        ({"prompt": [user("?")], "system": "S"}, ("?", "S")),
        ({"messages": [user("?")]}, ("?", "")),
        ({"prompt": None, "messages": [user("?")]}, ("?", "")),
        ({"prompt": [user("?") | {"name": None, "tool_calls": None}]}, ("?", "")),
        ({"prompt": [user([{"type": "text", "text": "?"}])]}, ("?", "")),
        ({"prompt": user("?")}, ("?", "")),
        ({"prompt": {"role": ["system", "user"], "content": ["S", "?"]}}, ("?", "S")),
        ({"prompt": json.dumps([user("?")])}, ("?", "")),
        ({"prompt": "[1] role, content {x}"}, ("[1] role, content {x}", "")),
        ({"prompt": "[1, 2]"}, ("[1, 2]", "")),
        ({"prompt": "?", "messages": [user("no")]}, ("?", "")),
        ({"prompt": "?", "images": [], "videos": None}, ("?", "")),
    ],
)
def test_prompts_are_text_or_messages(tmp_path, fields, expected):
    (question,) = loaded(tmp_path, {"uid": 1} | fields)

    assert (question.prompt, question.system) == expected


ONE = (
    "expected one message of the role user, perhaps after one of the role system; got "
)


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"prompt": []}, f"field prompt: {ONE}no message"),
        (
            {"prompt": [user("?"), {"role": "assistant", "content": "4"}]},
            f"field prompt: {ONE}user, assistant; leave out the answer",
        ),
        (
            {"prompt": [user("?"), {"role": "assistant", "content": "4"}, user("?")]},
            f"field prompt: {ONE}user, assistant, user; write what else",
        ),
        ({"prompt": [user("?"), user("?")]}, f"field prompt: {ONE}user, user; write"),
        ({"prompt": [{"role": "developer", "content": "S"}]}, f"{ONE}developer; write"),
        (
            {"messages": [user("?"), {"role": "assistant", "content": "4"}]},
            f"field messages: {ONE}user, assistant; leave out the answer",
        ),
        ({"prompt": ["?"]}, "field prompt, message 1: expected an object with role an"),
        ({"prompt": [{"from": "human", "value": "?"}]}, "field prompt, message 1: exp"),
        ({"prompt": [user(None)]}, "field prompt, message 1: expected an object with "),
        ({"prompt": [user([{"type": "image"}])]}, "message 1, field content: expected"),
        ({"prompt": [user(" ")]}, "field prompt: is empty"),
        (
            {"prompt": [{"role": "system", "content": "S"}, user("?")], "system": "T"},
            "field system: differs from the system message of prompt; leave out one",
        ),
        ({"prompt": "[{'role': 'user', 'content': '?'}]"}, "field prompt: looks like "),
        ({"prompt": "array([{'content': '?', 'role': 'user'}])"}, "looks like chat me"),
        (
            {"question": "?", "answer": "4"},
            "(rename its question to prompt), field prompt: expected str, got None; "
            "the row has uid, question, answer",
        ),
        ({}, "field prompt: expected str, got None; the row has uid"),
        ({"prompt": None}, "field prompt: expected str, got None"),
        (
            {"prompt": "?", "system": float("nan")},
            "field system: expected text, got na",
        ),
        (
            {"prompt": "a \ud83d?"},
            "field prompt: character 3 is U+D83D, half of a surrogate pair, which no",
        ),
        ({"prompt": [user("\udc00")]}, "field prompt: character 1 is U+DC00, half of"),
        ({"prompt": "?", "images": [{"bytes": "x"}]}, "field images: a question is te"),
        ({"prompt": "?", "system": "\udfff"}, "field system: character 1 is U+DFFF"),
    ],
)
def test_other_prompts_are_refused(tmp_path, fields, told):
    good = {"uid": 0, "prompt": "\U0001f600?"}

    assert told in refused(tmp_path, good, {"uid": 1} | fields)


# The ground truth.

VERL = {
    "data_source": "some/set",
    "prompt": [user("1+2?")],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "3"},
    "extra_info": {"split": "train", "index": 0},
}
TRL = {"prompt": [user("1+2?")], "solution": "$3$"}
SCRIPT = {"inputs": ["1\n"], "outputs": ["2\n"]}


@pytest.mark.parametrize(
    "fields, data, expected",
    [
        (VERL, mathematics.data, {"answer": "3"}),
        (TRL, mathematics.data, {"answer": "$3$"}),
        ({"ground_truth": 3}, mathematics.data, {"answer": "3"}),
        ({"ground_truth": "3", "answer": "4"}, mathematics.data, {"answer": "4"}),
        ({"solution": "It is\n\\boxed{3}."}, mathematics.data, {"answer": "3"}),
        ({"solution": "1+2=3\n#### 3"}, mathematics.data, {"answer": "3"}),
        (
            VERL | {"solution": "1+2=3"},
            privileged.data,
            {"solution": "1+2=3", "answer": "3"},
        ),
        (VERL, judge.data, {"reference": "3"}),
        ({"reward_model": '{"ground_truth": "3"}'}, mathematics.data, {"answer": "3"}),
        (
            {"rule": "Be kind.", "reward_model": "none", "answer": "3"},
            lambda row, where: {"rule": row["rule"]} | mathematics.data(row, where),
            {"rule": "Be kind.", "answer": "3"},
        ),
        (
            {"rule": '{"kind": "exact", "answer": "a"}'},
            lambda row, where: row["rule"],
            {"kind": "exact", "answer": "a"},
        ),
        (
            VERL | {"reward_model": {"ground_truth": "B"}},
            multiple_choice.data,
            {"answer": "B", "dataset": ""},
        ),
        (
            {"reward_model": {"ground_truth": json.dumps(SCRIPT)}},
            cases.read_cases,
            cases.read_cases({"tests": SCRIPT | {"testtype": "stdin"}}, ""),
        ),
    ],
)
def test_ground_truth_is_what_the_task_reads(tmp_path, fields, data, expected):
    (question,) = loaded(tmp_path, {"prompt": "?"} | fields, data=data)

    assert question.data == expected


def test_verl_rows_in_parquet_make_an_environment(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    truth = {"reward_model": {"style": "rule", "ground_truth": "B"}}
    table = [VERL | truth | {"prompt": [user(f"1+{n}?")]} for n in range(40)]
    parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "train.parquet")
    c = config.default()
    c.env.name, c.env.train = "multiple_choice", str(tmp_path / "train.parquet")
    c.env.validation = "share:0.3"

    environment = envs.from_config(c)

    counts = [len(environment.questions(split)) for split in config.SPLITS]
    assert sum(counts) == 40 and 0 < counts[1] < 30 and counts[2] == 0
    environment.close()


def test_message_tells_which_column_the_ground_truth_is_from(tmp_path):
    row = VERL | {"reward_model": {"ground_truth": ["3"]}}

    assert refused(tmp_path, row, data=mathematics.data).startswith(
        "row 1 (with reward_model.ground_truth as answer, tests, reference), field "
        "answer: expected text or a number, got ['3']"
    )


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    "fields, data, told",
    [
        *(
            ({"answer": answer}, mathematics.data, "field answer: expected text or a ")
            for answer in (NAN, INFINITY, -INFINITY, None, "", " ", True, [1])
        ),
        *(
            ({"answer": answer}, mathematics.data, "field answer: '")
            for answer in ("NaN", "nan", "null", "<NA>")
        ),
        (
            {"answer": "1+2=3\n#### 3"},
            mathematics.data,
            "alone, here '3', got a worked",
        ),
        ({"answer": "#### "}, mathematics.data, "expected the final answer alone, got"),
        (
            {"answer": "The answer is 3."},
            mathematics.data,
            "got a worked solution: 'Th",
        ),
        ({"answer": "so we get it " * 9}, mathematics.data, "got a worked solution"),
        (
            {"answer": "so we get it " * 9 + "\\boxed{3}"},
            mathematics.data,
            "the final answer alone, here '3', got a worked solution",
        ),
        (
            {"answer": "So $x=2$ and thus we get \\boxed{2}."},
            mathematics.data,
            "re '2'",
        ),
        (
            {"answer": "We add one and\nwe get it, 3"},
            mathematics.data,
            "alone, got a w",
        ),
        ({"answer": "9" * 1001}, mathematics.data, "expected the final answer alone,"),
        ({"answer": "\ud800"}, mathematics.data, "answer: character 1 is U+D800, half"),
        ({"reference": "a\ud800"}, judge.data, "reference: character 2 is U+D800, hal"),
        ({"reward_model": "{"}, mathematics.data, "field reward_model: is not JSON: E"),
        (
            {},
            mathematics.data,
            "answer: expected text or a number, got None; the row has",
        ),
        ({"solution": "so we get it " * 9}, mathematics.data, "field solution: expect"),
        ({"solution": "  "}, mathematics.data, "field answer: expected text or a numb"),
        ({"ground_truth": "2\n#### 3"}, mathematics.data, "(with ground_truth as answ"),
        ({"answer": NAN}, multiple_choice.data, "field answer: expected str, got nan"),
        ({"solution": NAN}, privileged.data, "field solution: expected str, got nan"),
        ({"reference": NAN}, judge.data, "field reference: expected str, got nan"),
    ],
)
def test_what_is_no_answer_is_refused(tmp_path, fields, data, told):
    assert told in refused(tmp_path, {"prompt": "?"} | fields, data=data)


@pytest.mark.parametrize(
    "answer",
    [
        *("3", "None", "no solution", "\\text{the answer}", "a#b", "\\infty", 1e-7),
        *("\\boxed{1} or \\boxed{2}", "all real numbers greater than or equal to 2"),
        "\\begin{cases} 1 & \\text{if } x > 0\n\\\\ 0 \\end{cases}",
        "\\boxed{\\text{it cannot be the case that they meet}}",
    ],
)
def test_short_texts_stay_answers(tmp_path, answer):
    (question,) = loaded(
        tmp_path, {"prompt": "?", "answer": answer}, data=mathematics.data
    )

    assert question.data["answer"] in (answer, "0.0000001")
