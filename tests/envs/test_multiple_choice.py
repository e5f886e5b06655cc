import json
import re

import pytest

from sdpo_jax.envs import multiple_choice, rows
from sdpo_jax.envs.base import Question
from sdpo_jax.envs.graded import Graded

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
    ("The answer is @, since # is too large.", 0, 0),
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
        ("", None),
    ],
)
def test_official_rule_of_gpqa(response, read):
    for letter in "ABCD":
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
    environment = Graded(questions, multiple_choice.official)

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
