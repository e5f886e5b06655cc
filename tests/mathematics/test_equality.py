import time

import pytest

from sdpo_jax.mathematics import equality
from tests.mathematics.spellings import RIGHT, WRONG

# Answers that would take long, or for ever, if they were computed or expanded.
COSTLY = [
    "10^{10^{10}}",
    "9^{9^{9}}",
    "1e999999999",
    "1000000!",
    "(10^{10})!",
    r"\binom{10^9}{5\cdot10^8}",
    r"\binom{x}{1000000}",
    r"(2\sqrt3)^{10^9}",
    r"(1+\sqrt2)^{5000}",
    r"\sqrt{10^{10^6}+1}",
    r"e^{10^{9}\ln 2}",
    "e^{e^{e^{e^{10}}}}",
    "2^{10^{10}x}",
    "x^{10^{10}}",
    "(x+1)^{10^{9}}",
    "(x+1)^{200}(y+2)^{200}",
    "(x+y+z+w)^{60}",
    "((((((x+1)^9+1)^9+1)^9+1)^9+1)^9+1)^9",
    r"\frac{1}{(x+1)^{150}}+\frac{1}{(y+1)^{150}}+\frac{1}{(z+1)^{150}}",
    r"\sqrt[3]{2}+\sqrt[5]{3}+\sqrt[7]{5}+\sqrt[11]{7}+\sqrt[13]{11}",
    r"\sum_{k=1}^{10^{12}} k^{k}",
    r"\int_0^{10^{9}} x^{x} dx",
    r"\lfloor \pi\cdot10^{4000}\rfloor",
    "1/" * 300 + "1",
    "-" * 900 + "1",
    "(" * 300 + "1" + ")" * 300,
    "2^{" * 190 + "1" + "}" * 190,
    r"\sin" * 200 + "x",
    "*".join(f"(x_{i}+1)" for i in range(90)),
    ",".join(f"\\sqrt{{{i}}}" for i in range(80)),
    ",".join(["x"] * 400),
    r"\begin{pmatrix}" + r"\\".join(["&".join("1" * 15)] * 30) + r"\end{pmatrix}",
    "AB +" * 200 + "C=5",
    "f(" * 200 + "=5",
]


@pytest.mark.parametrize("answer, given", RIGHT)
def test_other_spelling_of_the_answer_is_accepted(answer, given):
    assert equality.equal(answer, given)


@pytest.mark.parametrize("answer, given", WRONG)
def test_other_value_near_the_answer_is_refused(answer, given):
    assert not equality.equal(answer, given)


@pytest.mark.parametrize("costly", COSTLY)
def test_costly_answer_is_compared_at_once(costly):
    start = time.process_time()

    verdicts = [
        equality.equal(*pair)
        for other in ("7", "x^2+1", costly + "+1")
        for pair in ((costly, other), (other, costly))
    ]

    assert not any(verdicts) and equality.equal(costly, f" {costly}.")
    # A fraction of a second for each, on a busy machine as well.
    assert time.process_time() - start < 3.0


@pytest.mark.parametrize(
    "answer, given",
    [
        ("10^{10^{10}}", r"\left(10\right)^{10^{10}}"),
        ("(x+1)^{200}(y+2)^{200}", "(2+y)^{200}(1+x)^{200}"),
        (r"3\cdot 10^{10^{10}}", r"10^{10^{10}}\times 3"),
        (r"n=1000000!", "1000000!"),
    ],
)
def test_value_too_large_to_compute_equals_the_same_expression(answer, given):
    assert equality.equal(answer, given) and equality.equal(given, answer)


@pytest.mark.parametrize("given", ["", " ", ",", r"\,", r"\text{", "$", "{}", r"\\"])
def test_answer_of_nothing_is_wrong_whatever_is_right(given):
    assert not equality.equal("7", given) and not equality.equal(r"\,", given)
