"""Each token's share of a loss, over the tokens that count."""

import jax
import jax.numpy as jnp


def token_weights(
    mask_BR: jax.Array, row_weight_B: jax.Array, aggregation: str
) -> jax.Array:
    """Each token's weight in a loss that is a plain sum of weight times value.

    The denominators count the entire batch of an optimiser step, so that the loss does
    not depend on how the batch is split into micro-batches or over devices.

    Args:
      mask_BR: true on tokens that count.
      row_weight_B: factor on each row's tokens, 1 for none; denominators count tokens
        and rows, whatever their factor.
      aggregation: "token_mean", every counted token weighs the same (SDPO paper,
        Fig. 14); "sequence_mean", every row with a counted token weighs the same;
        "sequence_mean_all_rows", as the paper's code runs at one sequence per
        micro-batch: rows without a counted token still add to the denominator.

    Returns:
      Weights [B, R], zero where `mask_BR` is false.
    """
    # `where` and not a product, so that a masked row's weight may be anything.
    row_weight_B1 = row_weight_B[:, None]
    weight_BR = jnp.where(mask_BR, row_weight_B1, jnp.zeros_like(row_weight_B1))
    # Every maximum with 1 is for a batch or a row without a counted token: its weights
    # are 0, not 0 / 0.
    if aggregation == "token_mean":
        return weight_BR / jnp.maximum(jnp.sum(mask_BR, dtype=weight_BR.dtype), 1)
    length_B1 = jnp.sum(mask_BR, axis=1, keepdims=True, dtype=weight_BR.dtype)
    weight_BR = weight_BR / jnp.maximum(length_B1, 1)
    if aggregation == "sequence_mean":
        rows = jnp.sum(length_B1 > 0, dtype=weight_BR.dtype)
    elif aggregation == "sequence_mean_all_rows":
        rows = jnp.asarray(mask_BR.shape[0], weight_BR.dtype)
    else:
        raise ValueError(f"step.aggregation={aggregation!r}: there is no such one")
    return weight_BR / jnp.maximum(rows, 1)
