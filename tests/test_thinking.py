import pytest

from sdpo_jax.thinking import answer_of


@pytest.mark.parametrize(
    "response, answer",
    [
        ("The answer is 4.", "The answer is 4."),
        ("<think>2 + 2 is 4.</think>\n\nIt is 4.", "It is 4."),
        ("2 + 2 is 4.</think>\n\nIt is 4.", "It is 4."),
        ("First.\n<think>Really?</think>\nSecond.", "First.\nSecond."),
        ("<think>a <think> b</think> c</think> d", "d"),
        ("<think>a</think>b <think>c</think>d", "b d"),
        ("<think>2 + 2 is", ""),
        ("So far.<think>2 + 2 is", "So far."),
        ("</think>It is 4.", "It is 4."),
        ("<think></think>", ""),
    ],
)
def test_answer_is_what_stands_outside_the_reasoning(response, answer):
    assert answer_of(response) == answer


def test_answer_of_many_tags_is_found():
    assert answer_of("<think>a</think>" * 5000 + "b") == "b"
