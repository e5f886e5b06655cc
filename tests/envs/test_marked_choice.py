"""Which option a response marks, however it is spelled and wherever it stands."""

import itertools
import random
import time

import pytest

from sdpo_jax.envs import marked_choice, multiple_choice
from sdpo_jax.questions import options
from sdpo_jax.questions.question import Question

PROMPT = """Along which axis, how far, and why?

A: $z$-axis, $4.0 \\mathrm{~m}$
B: x-axis
C: $4 \\mathrm{m}$
D: Carbon monoxide
Please reason step by step."""
SYSTEM = """Respond in the following format:
<answer>
...
</answer>

Only output the letter. For example, if the answer is "A", just output:
<answer>
A
</answer>
"""


def chosen(response, truncated=False):
    """The letter for which a response scores 1; None if there is none."""
    scores = {}
    for letter in "ABCD":
        data = {"answer": letter, "dataset": ""}
        asked = Question("1", PROMPT, SYSTEM, data)
        scores[letter] = multiple_choice.fixed(asked, response, truncated).score
    assert sum(scores.values()) <= 1
    return max(scores, key=scores.get) if any(scores.values()) else None


@pytest.mark.parametrize(
    "response, letter",
    [
        ("\\boxed{A}\nBut the axis is x.\nFinal answer: B", "B"),
        ("Final answer: B\n\\boxed{A}", "A"),
        ("<answer>A</answer>\nAnswer: **B**", "B"),
        ("The answer is A.\n\nSo I choose\n\n**B**", "B"),
        ("The length is \\boxed{4}.\nAnswer: D", "D"),
        ("It is $\\boxed{4\\text{ m}}$, so Answer: C", "C"),
        ("Answer: A\nAnswer: B or C", None),
        ("\\boxed{A}\n\\boxed{B, C}", None),
        ("\\boxed{A}\n\\boxed{17}", None),
        ("Answer: B. Answer: A", "A"),
        ("Answer: B\nAnswer:", "B"),
        ("The format is \\boxed{}. \\boxed{C}", "C"),
        ("\\boxed{A} and \\boxed{B}", None),
        ("$\\boxed{A}$, $\\boxed{B}$", None),
        ("<answer>A</answer> or <answer>B</answer>", None),
        ("<answer>A</answer> no, <answer>B</answer>", "B"),
        ("The answer is A and the answer is B.", None),
        ("The answer is A, no, the answer is B.", "B"),
        ("The answer is B, so the right answer is B.", "B"),
        ("Option A is correct.\nHm.\nOption B is correct.", "B"),
        ("\\boxed{A}, \\boxed{B", None),
    ],
)
def test_last_mark_decides(response, letter):
    assert chosen(response) == letter


@pytest.mark.parametrize(
    "response, letter",
    [
        ("Answer: C\n\nA takes z instead of x, and D is a gas.", "C"),
        ("Answer: C\n\nWait, let me check the length: 4 m. Yes.", "C"),
        ("\\boxed{C}\nB is wrong; actually it is too long.", "C"),
        ("\\boxed{C}\nWait, it may be B.", None),
        ("\\boxed{C}. No, B.", None),
        ("Answer: C\nC is wrong.", None),
        ("Answer: C\nSo not C after all.", None),
        ("Answer: C\nI made a mistake.", None),
    ],
)
def test_answer_may_be_explained_but_not_taken_back(response, letter):
    assert chosen(response) == letter


@pytest.mark.parametrize(
    "response, letter",
    [
        ("Answer: C\n\n$\\boxed{4\\,\\text{m}}$", "C"),
        ("Answer: C\n\n$\\boxed{\\text{x-axis}}$", None),
        ("Answer: C\nSo the answer is X-axis.", None),
        ("Answer: C\nSo the answer is 4 m.", "C"),
        ("\\boxed{\\text{x-axis}}", None),
        ("<answer>Carbon monoxide</answer>", None),
    ],
)
def test_text_of_an_option_only_repeats_or_contradicts_a_letter(response, letter):
    assert chosen(response) == letter


@pytest.mark.parametrize(
    "response, letter",
    [
        ("The answer is D. Note that A is a distractor.", "D"),
        ("The answer is D. A and B are wrong, C is incorrect.", "D"),
        ("The answer is **D**. Neither A nor B fits.", "D"),
        ("The answer is D. Carbon monoxide is what burns.", "D"),
        ("The answer is B because the force points along it.", "B"),
        ("Answer: B. This is incorrect of the others, as they are long.", "B"),
        ("Answer: B, as required.", "B"),
        ("The answer is C, which is 4 m.", "C"),
        ("The answer is C (4 m).", "C"),
        ("Answer: C = 4 m", "C"),
        ("The answer is C, which is x-axis.", None),
        ("The answer is C (x-axis).", None),
        ("The answer is B since C is too long.", "B"),
        ("The answer is **(B)** because **A** has no axis.", "B"),
        ("The answer is B as A has no axis.", "B"),
        ("The answer is B, whereas A is longer.", "B"),
        ("The answer is B, not A.", "B"),
        ("The answer is B (not A).", "B"),
        ("The answer is B. A would be right only in vacuum.", "B"),
        ("The answer is B. If it were longer, A would be the answer.", "B"),
        ("The answer is B. A would be right too.", None),
        ("The answer is B since carbon monoxide is a gas.", "B"),
        ("The answer is B because A is correct.", None),
        ("The answer is B because either A or B works.", None),
        ("The answer is B since both A and B hold.", None),
        ("The answer is B because it is carbon monoxide.", None),
        ("The answer is B, as is A.", None),
        ("The answer is B, not only A.", None),
        ("The answer is B. A as well.", None),
        ("The answer is B. So is A.", None),
        ("The answer is B. I mean A.", None),
        ("The answer is D. However, B is also correct.", None),
        ("The answer is D. It could be A.", None),
        ("The answer is D. Or B.", None),
        ("The answer is D. X-axis", None),
        ("The answer is B. Carbon monoxide", None),
        ("The answer is A. Carbon monoxide is what burns.", None),
        ("The answer is D, but B is close.", None),
        ("Answer: A, no B", None),
        ("Answer: A? No, B.", None),
        ("Answer: A as well as C", None),
    ],
)
def test_remark_in_the_line_of_the_answer_must_not_change_it(response, letter):
    assert chosen(response) == letter


@pytest.mark.parametrize(
    "response",
    [
        *(
            "Hence, option (C) is correct.",
            "Option C is right",
            "Therefore, C is correct.",
            "Thus (C) is right because A is longer.",
            "Option C is correct since A and B are wrong.",
            "Ans: C",
            "I choose C.",
            "So, (C).",
        ),
        *('{"answer": "C"}', "I would go with option C", "Thus, C", "Answer: `C`"),
        *("\\textbf{(C)}", "$\\textbf{(C)}$", "\\boxed{\\textbf{(C)}}", "**C**", "(C)"),
        *(
            "\\boxed{\\textbf{(C) }4 \\text{ m}}",
            "\\boxed{\\textbf{(C)}\\ 4\\text{ m}}",
        ),
        *("So\n$\\textbf{(C)}\\ 4\\,\\mathrm{m}$", "Therefore\n\n**(C) 4 m**"),
        *("\\boxed{\\textrm{C}}", "\\boxed{\\mathbf{C}}", "\\boxed{\\textsf{(C)}}"),
        *("The answer is $\\textbf{(C)}$.", "The answer is \\textbf{(C)}"),
        *("The answer is **C**.", "**Answer: C**", "**Answer:** C", "Answer\uff1aC"),
        *("the correct option is (C)", "The correct choice is C.", "Answer - C"),
        *("(C) is the correct answer.", "Option C is the correct choice", "ANSWER: C"),
        *("A looks right, but **C** is the correct option.", "The correct one is (C)"),
        *("Final Answer\n\nC", "## Final Answer\n\n**C**", "### Answer\nC: 4 m"),
        *(
            "**Final Answer:** \\(\\boxed{C}\\)",
            "My answer is C!",
            "The answer is (c).",
        ),
        *("The answer should be C.", "It is clear: the correct option is C."),
        *("The answer is option C: 4 m.", "The best answer is therefore C."),
        *("A is wrong, so the correct answer is C.", "Since not A, the answer is C"),
        *("If a is 1, then the answer is C.", "No doubt the answer is C."),
        *("<answer>The final answer is \\boxed{C}</answer>", "Options:\nA: no\n\nC"),
        *(
            "C. 4 m",
            "(C) 4 m",
            "C: $4 \\mathrm{m}$",
            "C \u2014 4 m",
            "<answer>c</answer>",
        ),
    ],
)
def test_spellings_of_one_answer(response):
    assert chosen(response) == "C"


@pytest.mark.parametrize(
    "response",
    [
        *(
            "Option A is correct only at noon.",
            "Option A is not correct.",
            "Option A is correct, and so is B.",
            "Therefore, A is correct, and B too.",
            "Hence A is correct only at noon.",
            "A is the correct answer, as is B.",
            "Therefore A and B is correct.",
            "A student says the answer is A.",
            "One might think the answer is A.",
            "Some say A is the correct answer.",
            "A is the correct answer if we ignore gravity.",
            "A is the correct answer only if B fails.",
            "A is the correct answer to another question.",
            "Unless A is the answer, it is B.",
            "The answer is A.\nOn reflection B is better.",
            "I choose A or B",
        ),
        *(
            "If option A is correct, x is 1.",
            "I choose a large x.",
            "Is option A correct?",
        ),
        *("Not A", "not A", "A is wrong", "A is not the correct answer", "Is it A?"),
        *("A is the wrong answer", "I doubt that A is the answer.", "Is A the answer?"),
        *("If A is the answer, then B is not.", "A is the answer?", "A, not B"),
        *("A or B is the correct answer.", "Answer: A or B", "Answer: (A)/(B)"),
        *("The answers are A and B", "The answer is not A", "It is not \\boxed{A}"),
        *(
            "\\boxed{A} is wrong",
            "It cannot be <answer>A</answer>" * 0 + "not A at all",
        ),
        *("Answer: A\nNo, the answer is not A.", "Answer: A\nThat is wrong."),
        *("\\boxed{A}\nOh, A is wrong.", "\\boxed{A}. No, it must be B."),
        *(
            "It is not true, however, that the answer is A.",
            "Suppose the answer is A.\n",
        ),
        *("I do not think the answer is A", "It isn't so that the answer is A"),
        *("A: too long\nB: fits\nC: no\nD: no", PROMPT.partition("\n\n")[2], "A\nB"),
        *("C: x-axis", "<answer>C: x-axis</answer>", "\\boxed{B: 4 m}", "\\boxed{AB}"),
        *("the answer is a large number", "<answer>First A, but then B</answer>"),
        *("I will answer with \\boxed{letter}.", "A good question."),
    ],
)
def test_what_marks_no_answer_is_refused(response):
    assert chosen(response) is None


@pytest.mark.parametrize(
    "response, letter",
    [
        ('if the answer is "A", just output:\n<answer>\nA\n</answer>', None),
        (SYSTEM, None),
        (f"The task says: {SYSTEM}I am not sure.", None),
        (f"The task says: {SYSTEM}So:\n<answer>\nC\n</answer>", "C"),
        ("<answer>\nA\n</answer>", "A"),
        ("It follows.\n<answer>\nA\n</answer>", "A"),
    ],
)
def test_quoted_instruction_is_no_answer(response, letter):
    assert chosen(response) == letter


@pytest.mark.parametrize(
    "response, letter",
    [
        ("\\boxed{A}", "A"),
        ("<answer>A</answer> and", "A"),
        ("Answer: A\nBecause", "A"),
        ("Answer: A", None),
        ("Answer: C\nHm.\nAnswer: A", None),
        ("The answer is A. Since", None),
        ("<answer>A", None),
        ("\\boxed{A", None),
        ("A", None),
        ("Listing\nA: $z$-axis, 4.0 m", None),
    ],
)
def test_mark_that_may_be_cut_off_is_no_answer(response, letter):
    assert chosen(response, truncated=True) == letter


@pytest.mark.parametrize(
    "option, said",
    [
        ("$4 \\mathrm{~m} / \\mathrm{s}^2$", "4 m/s\u00b2"),
        ("$2.0 \\times 10^{5}$ N", "2.0 x 10^5 N"),
        ("$-45 \\, \\mu\\text{C}$", "\u221245 \u03bcC"),
        ("$104^{\\circ}$", "104\u00b0"),
        ("\\(x\\)-axis.", "x-axis"),
        ("**Water**", "water"),
    ],
)
def test_option_may_be_spelled_without_latex(option, said):
    listed = {"A": "other", "B": option}

    assert marked_choice.chosen_letter(f"Answer: B) {said}", listed) == "B"
    assert marked_choice.chosen_letter(f"Answer: A) {said}", listed) is None


def test_short_option_is_no_beginning_of_a_remark():
    listed = {"A": "It", "B": "T", "C": "no"}

    read = lambda response: marked_choice.chosen_letter(response, listed)

    assert read("The answer is C. Its sign follows from B.") == "C"
    assert read("The answer is C. The sign is fixed.") == "C"


# Options with LaTeX, units, words of an introduction, signs and SMILES.
ITEMS = [
    ["$4 \\mathrm{~m}$", "$4 \\mathrm{~m} / \\mathrm{s}$", "4 m\u00b2", "$4.0$ m"],
    ["$2.0 \\times 10^5 \\mathrm{~N}$", "$2.0 \\times 10^6 \\mathrm{~N}$", "2 N"],
    ["$\\pi$", "$-\\pi$", "$2\\pi$", "$-2\\pi$", "0"],
    ["8.25 m/s\u00b2, 104\u00b0 from x-axis", "x-axis", "y-axis", "the z-axis"],
    ["\\(-0.029 \\, \\mathrm{C}\\)", "-45 $\\mu \\mathrm{C}$", "292 $\\mathrm{~K}$"],
    ["the answer is unknown", "Option: none", "is", "The choice", "correct"],
    ["CC(=O)N[C@@H](C)C(=O)O", "C1=CC=C(C=C1)C(=O)O", "C", "CC(C)O", "[Na+].[Cl-]"],
    ["a", "B", "A", "C. elegans", "E. coli: gut", "10 - 4", "-4"],
    [
        "$\\cos^{-1}\\left(\\frac{2}{3}\\right)$ $^\\circ$",
        "$10^{3}$ J",
        "10 mW",
        "10 MW",
    ],
    ["Yes. It falls.", "No. It falls.", "Yes, because A falls.", "Both A and B"],
]
SPELLINGS = [
    *("@: %", "@. %", "(@) %", "@) %", "<answer>@: %</answer>", "<answer>@</answer>"),
    *("<answer>\n@. %\n</answer>", "<answer>@ - %</answer>", "<answer>@, %</answer>"),
    *("Answer: @: %", "**Answer: @. %**", "The answer is @: %.", "The answer is (@) %"),
    *("The correct answer is **@: %**.", "\\boxed{@: %}", "\\boxed{\\text{@: %}}"),
    *("\\boxed{\\textbf{(@)}}", "**Final answer:** @) %", "Final Answer\n\n@: %"),
    *("<answer>Option @: %</answer>", "<answer>@: **%**</answer>", "**(@)** %"),
]


@pytest.mark.parametrize("number", range(len(ITEMS)))
def test_letter_is_right_with_its_own_text_and_no_other(number):
    item, form = ITEMS[number], ("{}: {}", "({}) {}", "**{}.** {}")[number % 3]
    lines = [form.format(*pair) for pair in zip("ABCDEFGHIJ", item, strict=False)]
    prompt = "Which?\nA. Note of B\n\n" + "\n".join(lines) + "\nPlease reason."
    listed = options.listed(prompt)
    letters = list(listed)
    assert list(listed.values()) == item

    for spelling, letter, text in itertools.product(SPELLINGS, letters, item):
        response = spelling.replace("@", letter).replace("%", text)
        is_right = "%" not in spelling or text == item[letters.index(letter)]

        found = marked_choice.chosen_letter(response, listed, prompt)
        assert found == (letter if is_right else None)


@pytest.mark.parametrize(
    "prompt, listed",
    [
        ("Which?\n(A) 4 m (B) 5 m (C) 6 m", ["4 m", "5 m", "6 m"]),
        ("Which? A. one, B. two\nReason.", ["one", "two"]),
        ("A: old\nB: older\n\nA) 1\nB) 2\nC) 3\n", ["1", "2", "3"]),
        ("A: 1\nB: 2\nA: a note", ["1", "2"]),
        ("A: alone", []),
        ("$\\textbf{(A)}\\ 10 \\qquad \\textbf{(B) } 12$", ["10 \\qquad", "12$"]),
        ("\\textbf{(A)} 10\n\\textbf{(B)} $12$", ["10", "$12$"]),
        ("No options.", []),
    ],
)
def test_options_of_a_prompt(prompt, listed):
    assert list(options.listed(prompt).values()) == listed


# What a response may hold -> the letter that stands after it: "" for none, "=" for the
# one before it.
PIECES = {
    "\\boxed{A}\n": "A",
    "<answer>B</answer>\n": "B",
    "Answer: C\n": "C",
    "The correct option is (D).\n": "D",
    "Hence B is the correct answer.\n": "B",
    "The answer is **A**. Note that B fits less.\n": "A",
    "\\boxed{12.5}\n": "",
    "\\boxed{A \\text{ or } C}\n": "",
    "Answer: B or D\n": "",
    "Some words on forces.\n": "=",
    "The answer is not clear yet.\n": "=",
    "It is false that the answer is B.\n": "=",
    "The force is large, \\(F = 3\\).\n": "=",
}


def test_last_mark_decides_in_any_order():
    rng = random.Random(0)
    for _ in range(500):
        pieces = rng.choices(list(PIECES), k=rng.randint(1, 6))
        expected = ""
        for piece in pieces:
            expected = expected if PIECES[piece] == "=" else PIECES[piece]

        assert chosen("".join(pieces)) == (expected or None), pieces


@pytest.mark.parametrize(
    "piece",
    [
        *("the answer is ", "Answer: B\n", "\\boxed{", "\\boxed{B} ", "<answer>", "("),
        *("A is the ", "\\text{", "answer\n", "answer" + "*" * 50, " ", "\n", "B. Xy "),
        *("wait, ", "If A. ", "\\boxed{B}, ", "<answer>B</answer>"),
    ],
)
def test_long_repetitions_are_read_fast(piece):
    start = time.process_time()

    response = piece * (200_000 // len(piece))
    for beginning in ("", "The answer is B. ", "\\boxed{B} "):
        whole = beginning + response
        marked_choice.chosen_letter(whole, options.listed(PROMPT), PROMPT)

    assert time.process_time() - start < 4
