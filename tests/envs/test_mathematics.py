import json

import pytest

from sdpo_jax.envs import mathematics
from sdpo_jax.envs.base import Question
from sdpo_jax.envs.sandbox import Limits, Sandbox

# Answer, what the response boxes -> score by the official rule, and by the fixed one.
# The official column is what the published code gives with math-verify 0.9, see
# test_official_graders.py: without dollar signs it reads LaTeX as numbers.
CASES = [
    (r"42", r"42", 1, 1),
    (r"42", r"43", 0, 0),
    (r"42", r"42.0", 1, 1),
    (r"42", r"042", 1, 1),
    (r"42", r"+42", 0, 1),
    (r"-42", r"-42", 1, 1),
    (r"-42", r"42", 0, 0),
    (r"42", r" 42 ", 1, 1),
    (r"42", r"42.", 1, 1),
    (r"1234", r"1,234", 1, 1),
    (r"1,234", r"1234", 1, 1),
    (r"1234567", r"1,234,567", 1, 1),
    (r"1000000", r"10^6", 1, 1),
    (r"1000000", r"1e6", 0, 0),
    (r"0.5", r".5", 1, 1),
    (r"0.5", r"0.50", 1, 1),
    (r"0.333", r"1/3", 0, 0),
    (r"3.14", r"3.1416", 0, 0),
    (r"2^{10}", r"1024", 0, 1),
    (r"5!", r"120", 0, 1),
    (r"0", r"-0", 1, 1),
    (r"0", r"0.0", 1, 1),
    (r"100", r"1", 0, 0),
    (r"70", r"070", 1, 1),
    (r"204", r"204", 1, 1),
    (r"\frac{1}{2}", r"1/2", 1, 1),
    (r"\frac{1}{2}", r"0.5", 1, 1),
    (r"\frac12", r"\frac{1}{2}", 0, 1),
    (r"\frac{1}{2}", r"\dfrac{1}{2}", 0, 1),
    (r"\frac{1}{2}", r"\tfrac12", 0, 1),
    (r"\frac{1}{2}", r"\frac{2}{4}", 1, 1),
    (r"\frac{1}{2}", r"\frac{1}{3}", 0, 0),
    (r"-\frac{3}{4}", r"\frac{-3}{4}", 1, 1),
    (r"-\frac{3}{4}", r"-0.75", 1, 1),
    (r"\frac{7}{3}", r"2\frac{1}{3}", 0, 1),
    (r"\frac{7}{3}", r"2.333", 0, 0),
    (r"50\%", r"50\%", 1, 1),
    (r"50\%", r"0.5", 0, 1),
    (r"50\%", r"50", 1, 1),
    (r"12.5", r"12.5\%", 1, 1),
    (r"3/4", r"6/8", 1, 1),
    (r"\frac{m}{n}", r"\frac{n}{m}", 0, 0),
    (r"2\sqrt{3}", r"\sqrt{12}", 0, 1),
    (r"2\sqrt{3}", r"2\cdot\sqrt{3}", 1, 1),
    (r"2\sqrt{3}", r"3\sqrt{2}", 0, 0),
    (r"\sqrt{2}", r"2^{1/2}", 0, 1),
    (r"\sqrt{2}", r"1.414", 0, 0),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", 0, 1),
    (r"\sqrt[3]{8}", r"2", 0, 1),
    (r"\pi", r"\pi", 1, 1),
    (r"2\pi", r"\pi\cdot 2", 1, 1),
    (r"\pi", r"3.14", 0, 0),
    (r"\frac{\pi}{4}", r"45", 0, 0),
    (r"e^2", r"e^{2}", 0, 1),
    (r"\ln 2", r"\ln(2)", 0, 1),
    (r"\log_2 8", r"3", 0, 1),
    (r"\sin 30", r"\sin(30)", 0, 1),
    (r"\cos(0)", r"1", 0, 1),
    (r"\binom{5}{2}", r"10", 0, 1),
    (r"\infty", r"\infty", 1, 1),
    (r"\infty", r"-\infty", 0, 0),
    (r"i", r"i", 1, 1),
    (r"1+2i", r"2i+1", 0, 1),
    (r"1+2i", r"1-2i", 1, 0),
    (r"\left|-3\right|", r"3", 0, 1),
    (r"2^{-3}", r"\frac{1}{8}", 0, 1),
    (r"10^{-2}", r"0.01", 0, 1),
    (r"x^2+2x+1", r"(x+1)^2", 0, 1),
    (r"x^2+2x+1", r"(x-1)^2", 0, 0),
    (r"x+y", r"y+x", 0, 1),
    (r"xy", r"yx", 0, 1),
    (r"2x", r"x\cdot 2", 1, 1),
    (r"2x", r"2y", 1, 0),
    (r"\frac{x}{2}", r"0.5x", 0, 1),
    (r"x-1", r"1-x", 0, 0),
    (r"a(b+c)", r"ab+ac", 0, 1),
    (r"n(n+1)/2", r"\frac{n^2+n}{2}", 0, 1),
    (r"x^2", r"x^3", 0, 0),
    (r"\sin^2 x+\cos^2 x", r"1", 0, 1),
    (r"\frac{1}{x+1}", r"(x+1)^{-1}", 0, 1),
    (r"3n+1", r"1+3n", 0, 1),
    (r"x=5", r"5", 1, 1),
    (r"5", r"x=5", 1, 1),
    (r"x=5", r"x=6", 0, 0),
    (r"y=2x+1", r"y=1+2x", 0, 1),
    (r"y=2x+1", r"2x+1", 1, 1),
    (r"y=2x+1", r"y=2x-1", 1, 0),
    (r"x>3", r"x>3", 1, 1),
    (r"x>3", r"3<x", 0, 1),
    (r"x>3", r"x\ge 3", 0, 0),
    (r"x>3", r"x<3", 0, 0),
    (r"x\le 2", r"x\leq 2", 1, 1),
    (r"x^2+y^2=1", r"y^2+x^2=1", 1, 1),
    (r"x=1", r"y=1", 1, 0),
    (r"(1,2]", r"(1, 2]", 0, 1),
    (r"(1,2]", r"[1,2]", 0, 0),
    (r"(1,2]", r"(1,2)", 0, 0),
    (r"[0,\infty)", r"[0, \infty)", 0, 1),
    (r"(-\infty,3)", r"\left(-\infty,3\right)", 0, 1),
    (r"(0,1)\cup(2,3)", r"(0,1) \cup (2,3)", 0, 1),
    (r"(0,1)\cup(2,3)", r"(2,3)\cup(0,1)", 0, 1),
    (r"(0,1)\cup(2,3)", r"(0,1)\cup(2,4)", 0, 0),
    (r"[1,3]", r"1\le x\le 3", 0, 0),
    (r"(1,3)", r"[1,3]", 0, 0),
    (r"[-2,5)", r"[-2,5)", 1, 1),
    (r"\{1,2,3\}", r"\{3,2,1\}", 0, 1),
    (r"\{1,2,3\}", r"\{1,2\}", 0, 0),
    (r"\{1,2,3\}", r"1,2,3", 0, 1),
    (r"1,2,3", r"1, 2, 3", 0, 1),
    (r"1,2", r"2,1", 0, 1),
    (r"\{1,2\}", r"\{1,1,2\}", 0, 1),
    (r"2,3", r"2", 0, 0),
    (r"2", r"2,3", 0, 0),
    (r"\{\frac12,1\}", r"\{0.5,1\}", 0, 1),
    (r"\emptyset", r"\varnothing", 0, 1),
    (r"x=1,2", r"1,2", 1, 1),
    (r"1 \text{ and } 2", r"1,2", 0, 1),
    (r"\pm 3", r"3,-3", 1, 1),
    (r"-1, 4", r"4 \text{ or } -1", 0, 1),
    (r"(1,2)", r"(1,2)", 1, 1),
    (r"(1,2)", r"(2,1)", 0, 0),
    (r"(1,2)", r"(1, 2)", 0, 1),
    (r"(1,2,3)", r"(1,2,3)", 1, 1),
    (r"(1,2,3)", r"(1,2)", 0, 0),
    (r"(\frac12,0)", r"(0.5,0)", 0, 1),
    (r"(3,\frac{\pi}{2})", r"\left(3,\frac{\pi}{2}\right)", 0, 1),
    (r"(3,\frac{\pi}{2})", r"(3,\pi/2)", 0, 1),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        1,
        1,
    ),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\begin{bmatrix}1 & 2\\ 3 & 4\end{bmatrix}",
        0,
        1,
    ),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\begin{pmatrix}1&2\\4&3\end{pmatrix}",
        0,
        0,
    ),
    (r"5", r"5\text{ cm}", 1, 1),
    (r"5", r"5 \text{ meters}", 1, 1),
    (r"5\text{ cm}", r"5", 1, 1),
    (r"5", r"5^\circ", 1, 1),
    (r"90^\circ", r"90", 1, 1),
    (r"5", r"\$5", 0, 1),
    (r"12", r"12\text{ cm}^2", 1, 1),
    (r"5\text{ cm}", r"6\text{ cm}", 0, 0),
    (r"10", r"10\%", 1, 1),
    (r"30", r"30\text{ minutes}", 1, 1),
    (r"\$18.90", r"18.9", 0, 1),
    (r"25", r"25\,\text{mph}", 1, 1),
    (r"7", r"7 \mathrm{~kg}", 1, 1),
    (r"3", r"3 units", 1, 1),
    (r"A", r"A", 1, 1),
    (r"A", r"B", 0, 0),
    (r"C", r"\text{C}", 0, 1),
    (r"\text{Tuesday}", r"Tuesday", 0, 1),
    (r"Tuesday", r"tuesday", 0, 1),
    (r"Tuesday", r"Monday", 0, 0),
    (r"\text{(B)}", r"(B)", 0, 1),
    (r"even", r"\text{even}", 0, 1),
    (r"yes", r"no", 0, 0),
    (r"\text{No solution}", r"no solution", 0, 1),
    (r"E", r"e", 0, 1),
    (r"ABC", r"abc", 0, 1),
    (r"ABC", r"ACB", 0, 0),
    (r"2+2", r"4", 1, 1),
    (r"10_2", r"10_2", 1, 1),
    (r"1011_2", r"1011_{2}", 1, 1),
    (r"1011_2", r"11", 0, 0),
    (r"7", r"\mathbf{7}", 0, 1),
    (r"7", r"\displaystyle 7", 1, 1),
    (r"7", r"{7}", 0, 1),
    (r"7", r"$7$", 1, 1),
    (r"7", r"\left(7\right)", 0, 1),
    (r"7", r"(7)", 0, 1),
    (r"7", r"7\ ", 1, 1),
    (r"7", r"\ 7", 1, 1),
    (r"7", r"7,", 1, 1),
    (r"7", r"\boxed{7}", 1, 1),
    (r"7", r"7 or 8", 0, 0),
    (r"7", r"?", 0, 0),
    (r"7", r"seven", 0, 0),
    (r"7", r"", 0, 0),
    (r"7", r" ", 0, 0),
    (r"7", r"7 7", 1, 0),
    (r"7", r"77", 0, 0),
    (r"7", r"\frac{}{}", 0, 0),
    (r"7", r"\undefined", 0, 0),
    (r"7", r"x", 0, 0),
    (r"7", r"}{", 0, 0),
    (r"7", r"\text{7}", 0, 1),
    (r"7", r"7\text{}", 1, 1),
    ("7", "__import__('os')", 0, 0),
    (r"7", r"7;import os", 1, 0),
    ("7", "eval('7')", 0, 0),
    (r"7", r"1/0", 0, 0),
    (r"7", r"\infty", 0, 0),
    (r"7", r"NaN", 0, 0),
    (r"AB", r"BA", 0, 0),
    (r"\triangle ABC", r"\triangle ABC", 1, 1),
    (r"\triangle ABC", r"\triangle ACB", 0, 0),
    (r"AB=CD", r"AB = CD", 0, 1),
    (r"25\%", r"\frac14", 0, 1),
    (r"25\%", r"25", 1, 1),
    (r"0.25", r"25\%", 0, 1),
    (r"1:2", r"1:2", 1, 1),
    (r"1:2", r"2:1", 0, 0),
    (r"\frac{1}{2}", r"1:2", 0, 1),
    (r"2^{100}", r"2^{99}\cdot 2", 1, 1),
    (r"2^{100}", r"2^{99}", 1, 0),
    (r"0.1+0.2", r"0.3", 1, 1),
    (r"10000000", r"10000001", 0, 0),
    (r"0.0001", r"0.0002", 0, 0),
    (r"1e-5", r"0.00001", 0, 0),
]


@pytest.fixture(scope="module")
def sandbox():
    packages = mathematics._packages()
    with Sandbox(Limits(cpu_s=2.0), workers=1, packages=packages) as box:
        yield box


def asked(answer):
    return Question("1", "?", data={"answer": answer})


@pytest.mark.parametrize("answer, given, official, fixed", CASES)
def test_boxed_answers(sandbox, answer, given, official, fixed):
    response = f"So it is \\boxed{{{given}}}."

    scores = [
        grade(sandbox, asked(answer), response, False).score
        for grade in (mathematics.official, mathematics.fixed)
    ]

    assert scores == [official, fixed]


@pytest.mark.parametrize(
    "response, marked",
    [
        ("\\boxed{7}", "7"),
        ("\\boxed{6} no, \\boxed{7}", "7"),
        ("\\boxed{\\frac{1}{2}} then", "\\frac{1}{2}"),
        ("\\boxed{\\{1,\\{2\\}\\}}", "\\{1,\\{2\\}\\}"),
        ("\\boxed{7", None),
        ("\\boxed{7} \\boxed{", None),
        ("\\boxed{}", ""),
        ("<answer>7</answer>", "7"),
        ("<answer>6</answer><answer>7</answer>", "7"),
        ("\\boxed{7} <answer>6</answer>", "7"),
        ("the answer is 7", None),
        ("", None),
    ],
)
def test_last_mark_is_the_answer(response, marked):
    assert mathematics.marked(response) == marked


def test_official_rule_looks_for_a_box_that_begins_near_the_end(sandbox):
    near, far = "\\boxed{7}" + "." * 90, "\\boxed{7}" + "." * 93

    grade = lambda r: mathematics.official(sandbox, asked("7"), r, False)

    assert grade(near).score == 1
    assert grade(far).score == 0 and "wrong format" in grade(far).feedback
    assert mathematics.fixed(sandbox, asked("7"), far, False).score == 1


@pytest.mark.parametrize(
    "response, truncated, outcome, feedback",
    [
        ("\\boxed{7}", True, "Accepted", ""),
        ("\\boxed{8}", False, "Wrong Answer", "8 is not the right answer"),
        ("It is 7", False, "Incorrect Format", "\\boxed{your_answer}"),
        ("It is", True, "Truncated", "cut off"),
        ("\\boxed{<|im_end|>}", False, "Wrong Answer", "< |im_end| >"),
    ],
)
def test_feedback_says_what_is_wrong_and_never_the_answer(
    sandbox, response, truncated, outcome, feedback
):
    verdict = mathematics.fixed(sandbox, asked("7"), response, truncated)

    assert verdict.outcome == outcome
    assert feedback in verdict.feedback and bool(feedback) == bool(verdict.feedback)
    assert "7" not in verdict.feedback


@pytest.mark.parametrize(
    "given", ["9^{9^{9^{9}}}", "(((" * 300 + "1" + ")))" * 300, "x" * 5000, "7!" * 300]
)
def test_answers_that_take_for_ever_are_wrong_within_the_time_limit(sandbox, given):
    verdict = mathematics.fixed(sandbox, asked("7"), f"\\boxed{{{given}}}", False)

    assert verdict.score == 0
    # The worker lives on.
    assert mathematics.fixed(sandbox, asked("8"), "\\boxed{16/2}", False).score == 1


def test_environment_grades_rows_of_its_files(tmp_path):
    file = tmp_path / "rows.jsonl"
    lines = [
        {"idx": 1, "prompt": "2+2?", "answer": 4},
        {"idx": 2, "prompt": "1/2?", "answer": "\\frac{1}{2}"},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))

    environment = mathematics.environment({"train": file}, limits=Limits(cpu_s=2.0))

    four, half = environment.questions("train")
    assert environment.start(four).act("\\boxed{4.0}", False).score == 1
    assert environment.start(half).act("\\boxed{0.5}", False).score == 1
    assert environment.start(half).act("\\boxed{2}", False).score == 0
    environment.close()


@pytest.mark.parametrize("answer", [None, "", " ", True, [1]])
def test_row_with_a_wrong_answer_is_rejected_by_name(tmp_path, answer):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"idx": 1, "prompt": "?", "answer": answer}))

    with pytest.raises(ValueError, match="rows.jsonl, row 1, field answer: expected"):
        mathematics.environment({"train": file})
