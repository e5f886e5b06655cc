"""Conversion of token lists of different lengths to arrays of few widths."""

from collections.abc import Sequence

import numpy as np

from sdpo_jax.batch import PAD


def bucket(length: int, limit: int) -> int:
    """The width for rows of up to `length`: `limit`, halved up to three times.

    There are at most four widths for one limit, so few shapes are ever compiled.

    Raises:
      ValueError: if `length` exceeds `limit`.
    """
    if length > limit:
        raise ValueError(f"a row of {length} tokens exceeds the limit of {limit}")
    width = limit
    for _ in range(3):
        half = -(-width // 2)
        if length > half:
            break
        width = half
    return width


def pad_left(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    """[len(rows), width] token ids, with PAD before each row."""
    out = np.full((len(rows), width), PAD, np.int32)
    for index, row in enumerate(rows):
        # An empty row stays padding: its slice, [-0:], would address the entire row.
        if row:
            out[index, -len(row) :] = row
    return out
