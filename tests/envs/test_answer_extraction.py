import pytest

from sdpo_jax.envs import answer_extraction
from sdpo_jax.questions import boxed


@pytest.mark.parametrize(
    "response, box, tag",
    [
        ("\\boxed{7}", "7", None),
        ("\\boxed {7}", "7", None),
        ("\\boxed{6} no, \\boxed{7}", "7", None),
        ("\\boxed{\\frac{1}{2}} then", "\\frac{1}{2}", None),
        ("\\boxed{\\{1,\\{2\\}\\}}", "\\{1,\\{2\\}\\}", None),
        ("\\boxed{7", None, None),
        ("\\boxed{7} \\boxed{", None, None),
        ("\\boxed{}", "", None),
        ("<answer>7</answer>", None, "7"),
        ("<ANSWER>7</Answer>", None, "7"),
        ("<answer>6</answer><answer>7</answer>", None, "7"),
        ("<answer>7", None, "7"),
        ("<answer>7</answer> is in my <answer> tag", None, "7"),
        ("I use <answer> tags. <answer>7</answer>", None, "7"),
        ("\\boxed{7} <answer>6</answer>", "7", "6"),
        ("\u0130\u0130 <answer>7</answer>", None, "7"),
        ("</answer>7", None, None),
        ("the answer is 7", None, None),
        ("", None, None),
    ],
)
def test_last_mark_of_each_kind(response, box, tag):
    assert boxed.last_box(response) == box
    assert answer_extraction.last_tag(response) == tag


@pytest.mark.parametrize(
    "response, tag",
    [
        ("<answer>7</answer>", "7"),
        ("<answer>6</answer> no, <answer>7", "6"),
        ("<answer>7</answer> is in my <answer> tag", "7"),
        ("<answer>7", None),
        ("</answer> <answer>7", None),
        ("7", None),
    ],
)
def test_last_closed_tag_leaves_out_what_was_cut_off(response, tag):
    assert answer_extraction.last_tag(response, closed=True) == tag
