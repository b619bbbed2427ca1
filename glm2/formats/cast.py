"""A stored tensor under another name or float type, converted block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator

import numpy as np

from glm2.errors import CheckpointError
from glm2.formats.tensor import Shape, StoredTensor


@dataclass(frozen=True)
class Cast:
    """``source`` as ``name`` and ``dtype``; bit by bit the same where the type is."""

    name: str
    dtype: str
    """float16, bfloat16 or float32."""
    source: StoredTensor

    @property
    def shape(self) -> Shape:
        return self.source.shape

    def blocks(self) -> Iterator[bytes]:
        """CheckpointError for a finite value that the type cannot hold."""
        if self.dtype == self.source.dtype:
            yield from self.source.blocks()
            return
        for block in self.source.blocks():
            values = to_float32(block, self.source.dtype)
            result = from_float32(values, self.dtype)
            lost = np.isinf(to_float32(result, self.dtype)) & np.isfinite(values)
            if lost.any():
                raise CheckpointError(
                    f"{self.source.name} has the value {values[lost][0]:g}, which {self.dtype} "
                    "cannot hold",
                    hint="convert to bfloat16 or float32",
                )
            yield result


def to_float32(data: bytes, dtype: str) -> np.ndarray:
    """The values of some bytes; exact."""
    if dtype == "bfloat16":  # The upper half of a float32.
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).astype(np.float32)


def from_float32(values: np.ndarray, dtype: str) -> bytes:
    """The bytes of some values, each rounded to the nearest, ties to even."""
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):
            return values.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # The carry could make a number, or infinity, of NaN.
    rounded = np.where(np.isnan(values), (bits >> 16) | 0x40, rounded)
    return rounded.astype("<u2").tobytes()
