import jax.numpy as jnp
import numpy as np
import pytest

from sdpo_jax import config
from sdpo_jax.methods.aggregation import token_weights

KINDS = config.KNOBS["step.aggregation"].allowed.removeprefix("one of ").split(" | ")
MASK = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]], bool)
ROW_WEIGHT = np.array([1.0, 2.0, 1.0, 0.5], np.float32)


def weigh(aggregation, mask=MASK, row_weight=ROW_WEIGHT):
    return np.asarray(
        token_weights(jnp.asarray(mask), jnp.asarray(row_weight), aggregation)
    )


def test_token_mean_divides_by_all_counted_tokens():
    expected = np.where(MASK, ROW_WEIGHT[:, None], 0) / 6

    np.testing.assert_allclose(weigh("token_mean"), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "aggregation, rows", [("sequence_mean", 3), ("sequence_mean_all_rows", 4)]
)
def test_sequence_means_divide_by_length_and_rows(aggregation, rows):
    length = np.array([2, 1, 1, 3])[:, None]
    expected = np.where(MASK, ROW_WEIGHT[:, None], 0) / length / rows

    np.testing.assert_allclose(weigh(aggregation), expected, rtol=1e-6)


@pytest.mark.parametrize("aggregation", KINDS)
def test_weights_of_equal_rows_average_to_one_value(aggregation):
    total = weigh(aggregation, row_weight=np.ones(4, np.float32)).sum()

    empty_rows_count = aggregation == "sequence_mean_all_rows"
    assert total == pytest.approx(3 / 4 if empty_rows_count else 1)


@pytest.mark.parametrize("aggregation", KINDS)
def test_weights_do_not_depend_on_padding(aggregation):
    wide = weigh(aggregation, np.pad(MASK, [(0, 0), (0, 3)]))

    np.testing.assert_array_equal(wide[:, :4], weigh(aggregation))
    np.testing.assert_array_equal(wide[:, 4:], 0)


@pytest.mark.parametrize("aggregation", KINDS)
def test_weights_of_an_empty_batch_are_zero(aggregation):
    np.testing.assert_array_equal(weigh(aggregation, np.zeros_like(MASK)), 0)


def test_a_row_of_weight_zero_is_removed_whatever_its_weight_elsewhere():
    nan_outside = np.where(MASK.any(1), ROW_WEIGHT, np.nan).astype(np.float32)
    nan_outside[0] = 0

    found = weigh("token_mean", row_weight=nan_outside)

    np.testing.assert_array_equal(found[[0, 2]], 0)
    assert (found[[1, 3]].sum(1) > 0).all()


def test_unknown_aggregation_is_refused():
    with pytest.raises(ValueError, match="step.aggregation='median'"):
        weigh("median")
