"""How much of what training changed is left in the files of an export.

A number in bfloat16 has 8 significant bits, so a change below 1 / 512 of a weight may
be rounded away. With a small learning rate most weights change by less.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# Entries that are compared at once, so that the host holds little beside a tensor.
_PART = 2**22


@dataclasses.dataclass
class Change:
    """Counts of weights, added up while tensors are written.

    Args:
      dtype: of the files.
      weights: all of them.
      changed: those that differ from the base model's in float32.
      kept: those that differ where both are rounded to `dtype`.
    """

    dtype: np.dtype
    weights: int = 0
    changed: int = 0
    kept: int = 0

    def rounded(
        self, tensors: Iterator[tuple[str, np.ndarray]], base: Mapping[str, Any] | None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The tensors in `dtype`, each compared with the base model's as it passes.

        Args:
          tensors: names and float32 arrays.
          base: name to an array, or what reads slices of one; None to compare nothing.
        """
        for name, tensor in tensors:
            file_tensor = tensor.astype(self.dtype)
            if base is not None:
                self._compare(tensor, file_tensor, base[name])
            yield name, file_tensor

    def _compare(self, tensor: np.ndarray, rounded: np.ndarray, base: Any) -> None:
        rows = max(1, _PART * len(tensor) // tensor.size)
        for start in range(0, len(tensor), rows):
            part = slice(start, min(start + rows, len(tensor)))
            before = base[part].astype(np.float32)
            self.changed += int(np.count_nonzero(tensor[part] != before))
            before = before.astype(self.dtype).astype(np.float32)
            differs = rounded[part].astype(np.float32) != before
            self.kept += int(np.count_nonzero(differs))
        self.weights += tensor.size

    @property
    def summary(self) -> str:
        """One sentence with the counts."""
        return (
            f"training changed {self.changed:,} of {self.weights:,} weights; in "
            f"{self.dtype.name}, {self.kept:,} still differ from the base model"
        )

    @property
    def mostly_lost(self) -> bool:
        """Whether most weights that training changed are in the files as they were."""
        return self.kept < self.changed / 2
