"""What each kind of knob accepts."""

import math

import pytest

from sdpo_jax import knobs


@pytest.mark.parametrize(
    "allowed, inside, outside",
    [
        ("[0, 1]", [0, 0.5, 1], [-0.001, 1.001, 2]),
        ("(0, 1)", [1e-9, 0.5], [0, 1]),
        ("(0, 1]", [1e-9, 1], [0, 1.001]),
        ("[0, 2^31)", [0, 2**31 - 1], [-1, 2**31]),
        ("(0, 10^9]", [1e9], [0, 1e9 + 1]),
        ("{-1} | [1, 2^20]", [-1, 1, 2**20], [-2, 0, 2**20 + 1, -1.5]),
    ],
)
def test_ends_of_a_range_mean_what_they_say(allowed, inside, outside):
    knob = knobs.number(0, allowed, "of it")

    for value in inside:
        knob.check("a.b", value)
    for value in [*outside, math.nan, math.inf, -math.inf, "1", None]:
        with pytest.raises(ValueError) as told:
            knob.check("a.b", value)
        expected = f"a.b={value!r}: must be in {allowed}; meaning: of it"
        assert str(told.value) == expected


def test_range_holds_for_every_number_of_a_tuple():
    knob = knobs.numbers((1,), "[1, 4]", "of it")

    for values in [(1,), (1, 4), ()]:
        knob.check("a", values)
    for values in [(0,), (1, 5), (2, "3")]:
        with pytest.raises(ValueError, match="must be a tuple of numbers in .1, 4.;"):
            knob.check("a", values)


def test_url_stands_for_every_url():
    knob = knobs.choice("auto", "auto | A | URL", "of it")

    for value in ["auto", "A", "http://host:8000", "https://host"]:
        knob.check("a", value)
    for value in ["URL", "B", "", "host:8000", "ftp://host", "http://", "auto | A"]:
        with pytest.raises(ValueError, match="must be one of auto | A | URL; meaning"):
            knob.check("a", value)


@pytest.mark.parametrize(
    "knob, wrong",
    [
        (knobs.flag(True, "of it"), [0, "True", None]),
        (knobs.text("", "of it"), [0, None, True]),
        (knobs.names(("a",), "of it"), [(1,), ("a", None)]),
    ],
)
def test_value_of_another_type_is_refused(knob, wrong):
    knob.check("a", knob.default)
    for value in wrong:
        with pytest.raises(ValueError, match="^a=.*; meaning: of it$"):
            knob.check("a", value)
