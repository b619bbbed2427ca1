"""Put blocks of tensors together in memory, where bytes alone do not do: numpy's room."""

from __future__ import annotations

from math import prod
from typing import Dict, Optional, Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.checkpoints.assemble import WholeTensor
from orchestrator.checkpoints.geometry import (
    elements,
    extent,
    intersect,
    offset_in,
    run_length,
    whole,
    within,
)
from orchestrator.checkpoints.layout import Box
from orchestrator.checkpoints.lora import Adapter
from orchestrator.checkpoints.reading import Piece, ShardReader

Bytes = NDArray[np.uint8]
Float32 = NDArray[np.float32]


class Gatherer:
    """Reads blocks of tensors through ``reader``; keeps its two buffers between blocks."""

    def __init__(self, reader: ShardReader) -> None:
        self._reader = reader
        self._block = np.empty(0, np.uint8)
        self._scratch = np.empty(0, np.uint8)
        self._down: Dict[str, Float32] = {}

    def block(self, tensor: WholeTensor, block: Box, adapter: Optional[Adapter] = None) -> Bytes:
        """The bytes of a block that is contiguous in its tensor, with ``adapter`` added. Valid
        until the next call."""
        if adapter is None:
            return self._gathered(tensor.pieces, block, tensor.item_size)
        update = self._update(adapter, block)
        data = self._gathered(tensor.pieces, block, tensor.item_size)
        values = as_float32(data, tensor.dtype).reshape(extent(block)) + update
        return from_float32(values, tensor.dtype)

    def _update(self, adapter: Adapter, block: Box) -> Float32:
        """The block of scale · B A: rows of B by columns of A. A is kept, it serves all rows."""
        rows, columns = block
        name = adapter.down.name
        if name not in self._down:
            self._down = {name: self._float32(adapter.down, whole(adapter.down.shape))}
        up = self._float32(adapter.up, (rows, (0, adapter.up.shape[1])))
        product: Float32 = up @ self._down[name][:, columns[0] : columns[1]]
        return product * np.float32(adapter.scale)

    def _float32(self, tensor: WholeTensor, block: Box) -> Float32:
        data = self._gathered(tensor.pieces, block, tensor.item_size)
        return as_float32(data, tensor.dtype).reshape(extent(block)).copy()

    def _gathered(self, pieces: Sequence[Piece], block: Box, item: int) -> Bytes:
        size = elements(block) * item
        if len(self._block) < size:
            self._block, self._scratch = np.empty(size, np.uint8), np.empty(size, np.uint8)
        unit = next(width for width in (8, 4, 2, 1) if item % width == 0)
        last = item // unit
        target = self._block[:size].view(f"u{unit}").reshape((*extent(block), last))
        for piece in pieces:
            common = intersect(piece.box, block)
            if common is None:
                continue
            start = offset_in(common, piece.box) * item
            length = elements(common) * item
            if run_length(common, block) == elements(common):
                at = offset_in(common, block) * item
                self._reader.read_piece(piece, start, self._block[at : at + length].data)
                continue
            self._reader.read_piece(piece, start, self._scratch[:length].data)
            part = self._scratch[:length].view(f"u{unit}").reshape((*extent(common), last))
            target[within(common, block)] = part
        return self._block[:size]


def part_of(data: Bytes, block: Box, common: Box, item: int) -> memoryview:
    """The bytes of ``common`` out of those of ``block``, in C order."""
    array = data.reshape((*extent(block), item))
    return (
        np.ascontiguousarray(array[within(common, block)]).reshape(prod(extent(common)) * item).data
    )


def as_float32(data: Bytes, dtype: str) -> Float32:
    """Values of Float16, BFloat16 or Float32 bytes."""
    if dtype == "BFloat16":
        return (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return data.view(np.float16 if dtype == "Float16" else np.float32).astype(np.float32)


def from_float32(values: Float32, dtype: str) -> Bytes:
    """Bytes of that type, rounded to nearest, ties to even."""
    if dtype == "BFloat16":
        bits = values.view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = np.where(np.isnan(values), (bits >> 16) | 0x40, rounded)
        return rounded.astype(np.uint16).reshape(-1).view(np.uint8)
    kind = np.float16 if dtype == "Float16" else np.float32
    with np.errstate(over="ignore"):  # an overflow is infinity, as in training
        return values.astype(kind).reshape(-1).view(np.uint8)
