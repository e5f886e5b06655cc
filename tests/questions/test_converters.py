"""Converters, on hand-written rows in the formats of public datasets."""

import json

import pytest

from sdpo_jax.envs import tool_use
from sdpo_jax.envs.mathematics import grader
from sdpo_jax.questions.converters import CONVERTERS, SkippedRow

sciknoweval = CONVERTERS["hicai-zju/SciKnowEval"]
toolalpaca = CONVERTERS["tangqiaoyu/ToolAlpaca"]
SCIENCE = {
    "prompt": {"default": "Given a question and four options, please select ..."},
    "question": "Which gas is noble?",
    "answer": "",
    "type": "mcq-4-choices",
    "domain": "Chemistry",
    "details": {"level": "L3", "task": "t", "subtask": "s", "source": "o"},
    "answerKey": "C",
    "choices": {"text": ["O2", "N2", "Ar", "{x}"], "label": ["A", "B", "C", "D"]},
}


def test_sciknoweval_becomes_a_row_of_the_official_file():
    assert sciknoweval(SCIENCE, "row 1") == [
        {
            "dataset": "sciknoweval",
            "system": "\nGiven a question and four options, please select the right "
            "answer. Respond in the following format:\n<reasoning>\n...\n</reasoning>\n"
            "<answer>\n...\n</answer>\n\nFor the answer, only output the letter "
            "corresponding to the correct option (A, B, C, or D), and nothing else. Do "
            'not restate the answer text. For example, if the answer is "A", just '
            "output:\n<answer>\nA\n</answer>\n",
            "prompt": "Which gas is noble?\n\nA: O2\nB: N2\nC: Ar\nD: {x}\n"
            "Please reason step by step.",
            "answer": "C",
        }
    ]


@pytest.mark.parametrize(
    "fields, count",
    [
        ({"type": "mcq-2-choices"}, 1),
        ({"type": "true_or_false"}, 0),
        ({"type": "open-ended-qa", "answerKey": "", "choices": None}, 0),
        ({"details": {"level": "L1"}}, 0),
        ({"details": {"level": "L4"}}, 0),
    ],
)
def test_sciknoweval_takes_questions_with_options_of_level_three(fields, count):
    assert len(sciknoweval(SCIENCE | fields, "row 1")) == count


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"answerKey": "E"}, "answerKey among them; got .*'E'"),
        ({"answerKey": None}, "field answerKey: expected str, got None"),
        ({"choices": {"text": ["x"], "label": ["A", "C"]}}, "as many labels as texts"),
        ({"choices": {"label": ["C"]}}, "field text: expected list, got None"),
        ({"choices": "A: x"}, "field choices: expected dict"),
        ({"details": {}}, "field level: expected str"),
        ({"question": 7}, "field question: expected str, got 7"),
    ],
)
def test_malformed_sciknoweval_is_refused_by_field(fields, message):
    with pytest.raises(ValueError, match=f"^row 9[,:].*{message}"):
        sciknoweval(SCIENCE | fields, "row 9")


def call(name, **arguments):
    return {"Action": name, "Action_Input": json.dumps(arguments)}


TOOL = {
    "Name": "Lamps",
    "Description": "Switches {lamps}",
    "NLDocumentation": 'switch: Switch a lamp.\nParameters: {"lamp": "string."}\n',
}
EVALUATION = TOOL | {
    "Instructions": ["Light in the hall!", "And in its neighbour.", "Hall and bath!"],
    "Golden_Answers": [
        [call("switch", lamp="hall")],
        [
            call("near", lamp="hall"),
            {"Action": "switch", "Action_Input": '{"l": ${x}}'},
        ],
        [call("switch", lamp="hall"), call("switch", lamp="bath")],
    ],
}


def test_toolalpaca_becomes_rows_of_the_official_file():
    first, second = toolalpaca(EVALUATION, "row 1")

    assert first == {
        "dataset": "tooluse",
        "prompt": "Your task is to answer the user's question using available tools. \n"
        "You have access to the following tools:\nName: Lamps\nDescription: Switches "
        "{lamps}\nDocumentation:\nswitch: Switch a lamp.\nParameters: "
        '{"lamp": "string."}\n\nUse the following format:\nThought: you should always '
        "think about what to do\nAction: the action to take, should be one of the tool "
        "names.\nAction Input: the input to the action, must be in JSON format. All of "
        "the action input must be realistic and from the user.\n\nBegin!\nQuestion: "
        "Light in the hall!",
        "answer": '[{"Action": "switch", "Action_Input": "{\\"lamp\\": \\"hall\\"}"}]',
    }
    assert second["prompt"].endswith("Question: Hall and bath!")
    calls = tool_use.data(second, "row 1")["calls"]
    assert calls == [("switch", {"lamp": "hall"}), ("switch", {"lamp": "bath"})]


def instance(question, *steps):
    """A question of a simulated user, and the calls that it led to, with results."""
    calls = [
        [[name, arguments, f"I use {name}."], f"{name} returned."]
        for name, arguments in steps
    ]
    return {"input": question, "output": "Done.", "intermediate_steps": calls}


@pytest.mark.parametrize(
    "steps",
    [
        (),
        (("switch", '{"lamp": "hall"}'), ("switch", '{"lamp": "bath"}')),
        (("switch", '{"lamp": "hall"'),),
        (("switch", '["hall"]'),),
        (("switch", None),),
        (("getDetails", '{"Question": "Which lamp?"}'),),
    ],
)
def test_toolalpaca_instances_are_taken_if_one_call_answers_them(steps):
    known = instance("Light!\nHint: hall", ("switch", '{"lamp": "hall"}'))
    row = TOOL | {"Instances": [instance("?", *steps), known]}

    (converted,) = toolalpaca(row, "row 1")

    assert converted["prompt"].endswith("Question: Light!")
    assert tool_use.data(converted, "row 1")["calls"] == [("switch", {"lamp": "hall"})]


def test_toolalpaca_skips_prices_as_the_official_files_do():
    priced = [[call("buy", price="$5")], [call("buy", price="5")], []]

    (converted,) = toolalpaca(EVALUATION | {"Golden_Answers": priced}, "row 1")

    assert converted["prompt"].endswith("Question: And in its neighbour.")


def test_toolalpaca_question_loses_only_its_last_hint():
    asked = instance("A\nHint: B\nHint: C", ("switch", "{}"))

    (converted,) = toolalpaca(TOOL | {"Instances": [asked]}, "row 1")

    assert converted["prompt"].endswith("Question: A\nHint: B")


@pytest.mark.parametrize(
    "row, message",
    [
        (EVALUATION | {"Name": None}, "field Name: expected str"),
        (EVALUATION | {"Golden_Answers": []}, "3 Instructions, 0 Golden_Answers"),
        (EVALUATION | {"Instructions": "x"}, "field Instructions: expected list"),
        (TOOL, "field Instructions: expected list, got None"),
        (TOOL | {"Instances": [7]}, "field Instances: expected an object, got int"),
        (TOOL | {"Instances": [{}]}, "field input: expected str, got None"),
        (
            TOOL | {"Instances": [{"input": "x", "intermediate_steps": [[]]}]},
            "field intermediate_steps: expected a call and what it returned, got",
        ),
    ],
)
def test_malformed_toolalpaca_is_refused_by_field(row, message):
    with pytest.raises(ValueError, match=f"^row 9[,:].*{message}"):
        toolalpaca(row, "row 9")


@pytest.mark.parametrize(
    "dataset, row, uid, answer",
    [
        (
            "HuggingFaceH4/aime_2024",
            {"id": 60, "problem": "P", "solution": "S", "answer": "033", "url": "u"},
            60,
            "033",
        ),
        (
            "HuggingFaceH4/MATH-500",
            {
                "unique_id": "test/algebra/2.json",
                "problem": "P",
                "solution": r"It is $\boxed{\frac12}$.",
                "answer": r"\frac12",
                "level": 2,
            },
            "test/algebra/2.json",
            r"\frac12",
        ),
        (
            "math-ai/aime24",
            {"id": 60, "problem": "P", "solution": r"\boxed{33}"},
            60,
            "33",
        ),
        ("math-ai/aime25", {"id": "0", "problem": "P", "answer": "70"}, "0", "70"),
        (
            "openai/gsm8k",
            {"question": "P", "answer": "7 * 10 = <<7*10=70>>70.\n#### 70"},
            None,
            "70",
        ),
        (
            "MathArena/aime_2025",
            {"problem_idx": 1, "problem": "P", "answer": 70},
            1,
            70,
        ),
        (
            "MathArena/hmmt_feb_2025",
            {"problem_idx": 2, "problem": "P", "answer": r"\frac{1}{2}"},
            2,
            r"\frac{1}{2}",
        ),
        (
            "meituan-longcat/AMO-Bench",
            {"question_id": 3, "prompt": "P", "answer": r"$\boxed{\frac{1}{2}}$."},
            3,
            r"\frac{1}{2}",
        ),
        # The answer is more than one box, so it stays unchanged.
        (
            "meituan-longcat/AMO-Bench",
            {"question_id": 3, "prompt": "P", "answer": r"\boxed{1} or \boxed{2}"},
            3,
            r"\boxed{1} or \boxed{2}",
        ),
    ],
)
def test_problems_ask_for_a_box_and_keep_the_answer(dataset, row, uid, answer):
    (converted,) = CONVERTERS[dataset](row, "row 1")

    prompt = (
        "P\n\nPlease reason step by step, and put your final answer within \\boxed{}."
    )
    assert converted == {"uid": uid, "prompt": prompt, "answer": answer}
    assert grader.data(converted, "row 1")


def test_problems_with_prose_answers_are_skipped():
    row = {"question_id": 3, "prompt": "P", "answer": "All primes."}
    convert = CONVERTERS["meituan-longcat/AMO-Bench"]

    assert convert(row | {"answer_type": "description"}, "row 1") == []
    assert len(convert(row | {"answer_type": "set"}, "row 1")) == 1


SKIPPING = [
    "open-thoughts/OpenThoughts-114k",
    "siyanzhao/Openthoughts_math_30k_opsd",
    "Idavidrein/gpqa",
    "TIGER-Lab/MMLU-Pro",
]


@pytest.mark.parametrize("dataset", SKIPPING)
def test_malformed_row_of_an_imperfect_dataset_is_skipped(dataset):
    with pytest.raises(SkippedRow, match="^row 9: .+"):
        CONVERTERS[dataset]({"text": "x"}, "row 9")


@pytest.mark.parametrize("answer", ["7", None])
def test_openthoughts_rows_are_named_by_their_index(answer):
    row = {"problem": "3+4?", "solution": "It is 7.", "Answer": answer}

    (converted,) = CONVERTERS["siyanzhao/Openthoughts_math_30k_opsd"](row, "row 1")

    assert (
        converted["prompt"].startswith("3+4?") and converted["solution"] == "It is 7."
    )
    assert "uid" not in converted and converted.get("answer") == answer


@pytest.mark.parametrize("dataset", [n for n in CONVERTERS if n not in SKIPPING])
def test_every_other_converter_refuses_a_row_of_another_format(dataset):
    with pytest.raises(ValueError, match="^row 9, field .*: expected .*, got None"):
        CONVERTERS[dataset]({"text": "x"}, "row 9")
