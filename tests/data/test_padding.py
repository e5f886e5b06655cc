import numpy as np
import pytest

from sdpo_jax.batch import PAD
from sdpo_jax.data import padding


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 100, 8192, 10240])
def test_bucket_holds_the_row_and_has_at_most_four_widths(limit):
    lengths = np.unique(np.linspace(0, limit, 300).astype(int))

    widths = [padding.bucket(int(n), limit) for n in lengths]

    assert len(set(widths)) <= 4
    assert all(n <= width <= limit for n, width in zip(lengths, widths, strict=True))
    assert widths == sorted(widths)
    # A smaller width is only left out where it would be the fifth.
    assert all(
        width <= 2 * n or width == min(widths)
        for n, width in zip(lengths, widths, strict=True)
    )


@pytest.mark.parametrize(
    "length, width", [(0, 13), (13, 13), (14, 25), (26, 50), (51, 100), (100, 100)]
)
def test_bucket_halves_the_limit_while_the_row_fits(length, width):
    assert padding.bucket(length, 100) == width


def test_bucket_rejects_rows_above_the_limit():
    with pytest.raises(ValueError, match="row of 9 tokens exceeds the limit of 8"):
        padding.bucket(9, 8)


def test_rows_are_padded_on_the_left():
    found = padding.pad_left([[1, 2, 3], [], (4,)], 4)

    assert found.dtype == np.int32
    np.testing.assert_array_equal(
        found, [[PAD, 1, 2, 3], [PAD] * 4, [PAD, PAD, PAD, 4]]
    )


def test_rows_wider_than_the_width_are_rejected():
    with pytest.raises(ValueError, match="broadcast"):
        padding.pad_left([[1, 2, 3]], 2)
