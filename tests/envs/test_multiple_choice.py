import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from sdpo_jax.envs import multiple_choice
from sdpo_jax.envs.single_turn import SingleTurn
from sdpo_jax.questions import options, rows
from sdpo_jax.questions.question import Question

# Response, in which @ is the letter that is asked for and # another one -> whether the
# official rule for tagged answers, and the fixed one, take it for the letter asked for.
# The prompt's options are PROMPT.
PROMPT = "Which?\n\nA: 2270.700\nB: -3.01\nC: O=C1c2ccccc2C(=O)N1\nD: I\n"
TAGGED = [
    ("<reasoning>\nx\n</reasoning>\n<answer>\n@\n</answer>", 1, 1),
    ("<answer>@</answer>", 1, 1),
    ("<answer> @ </answer>\n", 1, 1),
    ("<answer>@", 1, 1),
    ("<answer>\n@\n", 1, 1),
    ("<answer>#</answer><answer>@</answer>", 1, 1),
    ("It is not <answer>#</answer>.\n<answer>@</answer>", 1, 1),
    ("<answer>@</answer> <answer>#</answer>", 0, 0),
    ("<answer>#</answer>", 0, 0),
    ("<answer>@</answer> because # is wrong", 1, 1),
    ("<answer></answer>", 0, 0),
    ("<answer>?</answer>", 0, 0),
    ("<answer>@ or #</answer>", 0, 0),
    ("<answer>@, #</answer>", 0, 0),
    ("<answer>@/#</answer>", 0, 0),
    ("<answer>@#</answer>", 0, 0),
    ("<answer>@) or #)</answer>", 0, 0),
    ("<answer>@ and #</answer>", 0, 0),
    ("<answer>@ cat</answer>", 0, 0),
    ("<answer>(@)</answer>", 0, 1),
    ("<answer>[@]</answer>", 0, 1),
    ("<answer>@.</answer>", 0, 1),
    ("<answer>@)</answer>", 0, 1),
    ("<answer>@:</answer>", 0, 1),
    ("<answer>**@**</answer>", 0, 1),
    ("<answer>`@`</answer>", 0, 1),
    ('<answer>"@"</answer>', 0, 1),
    ("<answer>$@$</answer>", 0, 1),
    ("<answer>@: %@%</answer>", 0, 1),
    ("<answer>@. %@%.</answer>", 0, 1),
    ("<answer>@) the # cell</answer>", 0, 0),
    ("<answer>(@)  %@%</answer>", 0, 1),
    ("<answer>#: %#%</answer>", 0, 0),
    ("<answer>@: %#%</answer>", 0, 0),
    ("<answer>@ %@%</answer>", 0, 1),
    ("<answer>Option @</answer>", 0, 1),
    ("<answer>The correct answer is @</answer>", 0, 1),
    ("<answer>Answer: @</answer>", 0, 1),
    ("<answer>\\boxed{@}</answer>", 0, 1),
    ("<answer>\\text{@}</answer>", 0, 1),
    ("<ANSWER>@</ANSWER>", 0, 1),
    ("@", 1, 1),
    (" @\n", 1, 1),
    ("#", 0, 0),
    ("@.", 0, 1),
    ("(@)", 0, 1),
    ("**@**", 0, 1),
    ("@ is right", 0, 0),
    ("I think it is @", 0, 0),
    ("The molecule is @.", 0, 0),
    ("\\boxed{@}", 0, 1),
    ("So the answer is \\boxed{@}.", 0, 1),
    ("$\\boxed{\\text{@}}$", 0, 1),
    ("\\boxed{\\textbf{(@)}}", 0, 1),
    ("\\boxed{#} no, \\boxed{@}", 0, 1),
    ("\\boxed{@} no, \\boxed{#}", 0, 0),
    ("\\boxed{42}", 0, 0),
    ("The answer is @.", 0, 1),
    ("The answer is (@).", 0, 1),
    ("the final answer is: **@**", 0, 1),
    ("Answer: @", 0, 1),
    ("**Answer:** @", 0, 1),
    ("ANSWER: @) %@%", 0, 1),
    ("Answer: #", 0, 0),
    ("Answer: #\nWait.\nAnswer: @", 0, 1),
    ("Answer: @.\nI hope the answer is clear.", 0, 1),
    ("The answer is unclear.", 0, 0),
    ("The answer is not #", 0, 0),
    ("Answer: @ or #", 0, 0),
    ("The answer is @, since # is too large.", 0, 1),
    ("", 0, 0),
    ("<reasoning>Option @ looks right</reasoning>", 0, 0),
    ("<answer>@</answer>" * 3, 1, 1),
    ("<answer>@: incorrect. #: correct</answer>", 0, 0),
    ("<answer>@) is wrong, #) is right</answer>", 0, 0),
    ("<answer>@, # are both right</answer>", 0, 0),
    ("<answer>@. 12\n#. 13</answer>", 0, 0),
    ("\\boxed{@: false, #: true}", 0, 0),
    ("Answer: @, wait no, #.", 0, 0),
    ("Answer: @. Actually no, the correct one is #", 0, 0),
    ("<answer>@-glucose</answer>", 0, 0),
    ("The answer is @. coli.", 0, 0),
    ("Answer: @\n\n# is wrong because the answer is #. coli", 0, 1),
    ("I will put it in <answer> tags.\n<answer>\n@\n</answer>", 1, 1),
    ("<answer>@</answer> as the <answer> tag asks", 0, 1),
    ("The answer is:\n\n@", 0, 1),
    ("**Answer:**\n@", 0, 1),
    ("**Final Answer**: @", 0, 1),
    ("the correct option is @", 0, 1),
    ("Final answer: \\(@\\)", 0, 1),
    ("<answer>\\boxed{\\text{@}}</answer>", 0, 1),
    ("<answer>\\(@\\)</answer>", 0, 1),
    ("<answer>{@}</answer>", 0, 1),
    ("\\boxed{\\textit{@}}", 0, 1),
    ("<answer>The answer is option @</answer>", 0, 1),
    ("Option @", 0, 1),
    ("The wrong answer is @", 0, 0),
    ("I do not think that the answer is @", 0, 0),
    ("One cannot say that the answer is @", 0, 0),
    ("It is false that the answer is @", 0, 0),
    ("The least likely answer is @.", 0, 0),
    ("If the answer is @\nthen no.", 0, 0),
    ("Eliminated option: @", 0, 0),
    ("<answer>" + "\\text{" * 5000 + "@" + "}" * 5000 + "</answer>", 0, 0),
    ("@" + " " * 32_000 + "#", 0, 0),
    ("The answer is #.\n<answer>@</answer>", 1, 1),
    ("The answer is @.\nIt isn't true that the answer is #", 0, 1),
    ("The answer is @.\nI don\u2019t say that the answer is #", 0, 1),
]
OPTIONS = dict(line.split(": ") for line in PROMPT.splitlines() if ": " in line)
LETTERS = [("A", "B"), ("C", "A"), ("D", "C")]


def question(letter, dataset="sciknoweval"):
    return Question("1", PROMPT, data={"answer": letter, "dataset": dataset})


@pytest.mark.parametrize("letter, other", LETTERS)
@pytest.mark.parametrize("response, official, fixed", TAGGED)
def test_tagged_answers(response, official, fixed, letter, other):
    response = re.sub(
        "%(.)%", lambda m: OPTIONS[{"@": letter, "#": other}[m[1]]], response
    )
    response = response.replace("@", letter).replace("#", other)

    scores = [
        grade(question(letter), response, False).score
        for grade in (multiple_choice.official, multiple_choice.fixed)
    ]

    assert scores == [official, fixed]


@pytest.mark.parametrize(
    "response, read",
    [
        ("The answer is B", "B"),
        ("b", "B"),
        ("It is (c).", "C"),
        ("B is better than a rest", "A"),
        ("B. Not E", "B"),
        ("no letter", None),
        ("ABC", None),
        ("A/", "A"),
        ("Answer: D.", "D"),
        # A whole response that names none of the four is compared as it is.
        (" .E./ ", None),
        (" .E/ ", "E"),
        ("", None),
    ],
)
def test_official_rule_of_gpqa(response, read):
    for letter in "ABCDE":
        verdict = multiple_choice.official(question(letter, "gpqa"), response, False)
        assert verdict.score == (letter == read)


@pytest.mark.parametrize(
    "response, read",
    [
        ("the answer is (I). Or the answer is (J).", "I"),
        ("Answer: H, I believe", "H"),
        ("The answer is unknown. Answer: G", "G"),
        ("A guess: F", "F"),
        ("F then A", "A"),
        ("answer is k", None),
        ("I", "I"),
        ("nothing", None),
        ("ANSWER IS E", "E"),
        ("ANSWER IS E, not F", "E"),
        ("the answer is e", None),
    ],
)
def test_official_rule_of_mmlu_pro(response, read):
    for letter in multiple_choice.LETTERS:
        asked = question(letter, "mmlu_pro")
        verdict = multiple_choice.official(asked, response, False)
        assert verdict.score == (letter == read)


@pytest.mark.parametrize(
    "response, truncated, outcome, feedback",
    [
        ("<answer>A</answer>", False, "Accepted", ""),
        ("<answer>B</answer>", False, "Wrong Answer", "B is not the right option"),
        ("I think", False, "Incorrect Format", "Give the letter of one option"),
        ("I think", True, "Truncated", "cut off before it ended"),
        ("<answer>A</answer>", True, "Accepted", ""),
    ],
)
def test_feedback_says_what_is_wrong_and_never_the_answer(
    response, truncated, outcome, feedback
):
    verdict = multiple_choice.fixed(question("A"), response, truncated)

    assert verdict.outcome == outcome
    assert feedback in verdict.feedback and bool(feedback) == bool(verdict.feedback)
    assert "A" not in verdict.feedback.replace("Answer", "").replace("Attempt", "")
    assert multiple_choice.official(question("A"), response, truncated).feedback == ""


ROW = {"idx": 3, "prompt": "A: 1\nB: 2", "system": "Choose.", "answer": "B"}


def write(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_environment_grades_rows_of_its_files(tmp_path):
    file = write(tmp_path / "train.json", ROW | {"dataset": "sciknoweval"})

    questions = rows.load_splits({"train": file}, multiple_choice.data)
    environment = SingleTurn(questions, multiple_choice.official)

    (asked,) = environment.questions("train")
    assert (asked.uid, asked.system) == ("3", "Choose.")
    assert environment.start(asked).act("<answer>B</answer>", False).score == 1
    assert environment.start(asked).act("<answer>A</answer>", False).score == 0
    environment.close()
    with pytest.raises(ValueError, match="no questions for split 'heldout'"):
        environment.questions("heldout")


@pytest.mark.parametrize("answer", ["", "AB", "b", "Z", None, 1])
def test_row_with_a_wrong_answer_is_rejected_by_name(tmp_path, answer):
    file = write(tmp_path / "rows.jsonl", ROW, ROW | {"idx": 4, "answer": answer})

    with pytest.raises(ValueError, match=r"rows.jsonl, row 2, field answer: expected"):
        rows.load_splits({"train": file}, multiple_choice.data)


GPQA = {
    "Question": "Which is largest?\n",
    "Correct Answer": "A galaxy\n",
    "Incorrect Answer 1": "I Ceti, a star",
    "Incorrect Answer 2": "The\nSun ",
    "Incorrect Answer 3": "B-612",
    "Record ID": "rec1",
}
MMLU_PRO = {
    "question_id": 70,
    "question": "Which letter is the tenth?",
    "options": ["A", "b", "see", "D-", "e", "f 6", "g.", "H2O", "I", "J or I"],
    "answer": "I",
    "answer_index": 8,
}


def asked_of(row):
    data = multiple_choice.data(row, "here")
    return Question(row["uid"], row["prompt"], data=data)


# Response, in which @ is the right letter, % the right option and # a wrong letter ->
# whether the fixed rule takes it for right. The right option of MMLU_PRO is "I", which
# is a word, and that of GPQA begins with "A", which is another.
STYLES = [
    ("<answer>@</answer>", 1),
    ("<answer>(@)</answer>", 1),
    ("<answer>@: %</answer>", 1),
    ("<answer>@. %.</answer>", 1),
    ("<answer>@) %</answer>", 1),
    ("The answer is (@).", 1),
    ("The answer is @", 1),
    ("the best answer is **@**", 1),
    ("Answer: @", 1),
    ("**Answer**: (@) %", 1),
    ("\\boxed{@}", 1),
    ("\\boxed{\\text{@}}", 1),
    ("I think it is a large one.\nThe correct answer is @.", 1),
    ("A first look says #.\n\nAnswer: @", 1),
    ("Answer: #. Wait.\nAnswer: @", 1),
    ("@", 1),
    ("(@)", 1),
    ("<answer>#</answer>", 0),
    ("<answer>#: %</answer>", 0),
    ("<answer>%</answer> or <answer>#</answer>", 0),
    ("<answer>@ or #</answer>", 0),
    ("<answer>@, #</answer>", 0),
    ("<answer>@#</answer>", 0),
    ("<answer>K</answer>", 0),
    ("<answer>the last</answer>", 0),
    ("<answer></answer>@", 0),
    ("The answer is # because @ is too small.", 0),
    ("The answer is not #.", 0),
    ("Answer: # or @", 0),
    ("\\boxed{#} and not \\boxed{@", 0),
    ("\\boxed{9}", 0),
    ("I do not know the answer.", 0),
    ("A good question, I believe.", 0),
    ("Answer: I believe none.", 0),
    ("The answer is a matter of taste.", 0),
    ("The answer is I think @", 0),
    ("I", None),
    ("A", None),
    ("<answer>I am sure it is @</answer>", 0),
    ("Answer:\n@ # @", 0),
    ("It could be @, it could be #.", 0),
    ("", 0),
]


@pytest.mark.parametrize("response, right", STYLES)
@pytest.mark.parametrize(
    "row, other",
    [
        (options.from_gpqa(GPQA), None),
        (options.from_mmlu_pro(MMLU_PRO), "J"),
        (options.from_mmlu_pro(MMLU_PRO), "A"),
    ],
    ids=["gpqa", "mmlu_pro-J", "mmlu_pro-A"],
)
def test_four_and_ten_options_are_graded_alike(row, other, response, right):
    letter = row["answer"]
    other = other or next(free for free in "ABCD" if free != letter)
    (text,) = re.findall(rf"^{letter}: (.*)$", row["prompt"], re.MULTILINE)
    response = response.replace("@", letter).replace("#", other).replace("%", text)
    right = response == letter if right is None else right

    assert multiple_choice.fixed(asked_of(row), response, False).score == right


def test_every_letter_of_ten_is_right_once():
    for index, letter in enumerate(multiple_choice.LETTERS):
        row = MMLU_PRO | {"answer": letter, "answer_index": index}
        asked = asked_of(options.from_mmlu_pro(row))
        for said in multiple_choice.LETTERS:
            for grade in (multiple_choice.fixed, multiple_choice.official):
                verdict = grade(asked, f"The answer is ({said}).", False)
                assert verdict.score == (said == letter)


def test_gpqa_row_keeps_its_options_and_marks_the_right_one():
    row = options.from_gpqa(GPQA)

    lettered = dict(re.findall(r"^([A-D]): (.*)$", row["prompt"], re.MULTILINE))
    assert sorted(lettered.values()) == [
        "A galaxy",
        "B-612",
        "I Ceti, a star",
        "The Sun",
    ]
    assert lettered[row["answer"]] == "A galaxy"
    assert (row["uid"], row["dataset"]) == ("gpqa-rec1", "gpqa")
    assert "Which is largest?" in row["prompt"]


def test_order_of_options_follows_from_the_texts_and_the_seed_alone():
    first = options.from_gpqa(GPQA)
    turned = GPQA | {
        "Incorrect Answer 1": GPQA["Incorrect Answer 3"],
        "Incorrect Answer 3": GPQA["Incorrect Answer 1"],
    }
    code = (
        "from sdpo_jax.questions import options\n"
        f"print(options.from_gpqa({GPQA!r})['prompt'])"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=pathlib.Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }

    assert options.from_gpqa(turned) == first
    assert printed == {first["prompt"] + "\n"}
    by_seed = {options.from_gpqa(GPQA, seed)["prompt"] for seed in range(50)}
    assert len(by_seed) > 12


def test_right_option_stands_anywhere():
    letters = [
        options.from_gpqa(GPQA | {"Question": f"{number}?"})["answer"]
        for number in range(400)
    ]

    for letter in "ABCD":
        # Within five standard deviations of a hundred.
        assert abs(letters.count(letter) - 100) < 44


def test_wrong_options_may_be_the_same():
    row = MMLU_PRO | {"options": ["x"] * 8 + ["I", "J"]}

    assert options.from_mmlu_pro(row)["answer"] == "I"


def test_mmlu_pro_row_keeps_its_order():
    row = options.from_mmlu_pro(MMLU_PRO)

    assert row["prompt"].endswith("H: H2O\nI: I\nJ: J or I")
    assert (row["uid"], row["answer"], row["dataset"]) == (
        "mmlu_pro-70",
        "I",
        "mmlu_pro",
    )


@pytest.mark.parametrize(
    "change, told",
    [
        ({"question": None}, "question 70 of MMLU-Pro, field question: expected str"),
        ({"options": "ABC"}, "field options: expected list"),
        ({"options": [1, 2]}, "field options: expected texts"),
        ({"options": []}, "name no one option of 0"),
        ({"answer": "J"}, "answer 'J' and answer_index 8 name no one option of 10"),
        ({"answer_index": 7}, "answer 'I' and answer_index 7 name no one option"),
        ({"answer_index": 10, "answer": "K"}, "name no one option of 10"),
        ({"answer_index": -2}, "name no one option"),
        ({"answer_index": True, "answer": "B"}, "name no one option"),
        ({"options": ["x"] * 10}, "mmlu_pro-70: an option is empty, or the same"),
        ({"options": list("abcdefghi ")}, "mmlu_pro-70: an option is empty"),
        ({"options": list("abcdefghijk")}, "mmlu_pro-70: 11 options, 10 letters"),
    ],
)
def test_malformed_row_of_mmlu_pro_is_refused(change, told):
    with pytest.raises(ValueError, match=told):
        options.from_mmlu_pro(MMLU_PRO | change)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"Question": None}, "a row of GPQA, field Question: expected str"),
        ({"Incorrect Answer 2": None}, "field Incorrect Answer 2: expected str"),
        (
            {"Incorrect Answer 2": "A \n galaxy"},
            "gpqa-rec1: an option is empty, or the same",
        ),
        ({"Correct Answer": " "}, "gpqa-rec1: an option is empty"),
    ],
)
def test_malformed_row_of_gpqa_is_refused(change, told):
    with pytest.raises(ValueError, match=told):
        options.from_gpqa(GPQA | change)
