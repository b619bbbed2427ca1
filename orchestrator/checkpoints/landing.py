"""Where the bytes of shards land in a merged file, in the order in which a shard holds them.

For a merge that reads every shard once, front to back, as it comes from another machine. Pure but
for ``Landings.write``, which writes to the merged file.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Any, Dict, FrozenSet, Iterator, List, Mapping, NamedTuple, Sequence, Tuple

from orchestrator.checkpoints.assemble import WholeTensor
from orchestrator.checkpoints.geometry import extent, offset_in, run_length, spans, whole
from orchestrator.checkpoints.layout import Box
from orchestrator.checkpoints.newfile import write
from orchestrator.checkpoints.reading import Piece
from orchestrator.checkpoints.tensor import Segment
from orchestrator.errors import CheckpointError

_MOST = 4 << 20  # bytes of one landing; the copies of a slice are cut and compared alike
_SMALL_GAP = 64 << 10  # cheaper to send than to ask around
_SHORT_RUN = 64 << 10  # shorter ones are written through memory, not one call each


class Landing(NamedTuple):
    """Bytes of a shard that are needed: ``length`` from ``offset`` of the file, which are the
    bytes from ``start`` on of piece number ``piece`` of tensor number ``tensor``. Replicas count
    behind the pieces."""

    offset: int
    length: int
    tensor: int
    piece: int
    start: int


@dataclass(frozen=True)
class Unit:
    """A stretch of one rank's file that travels, is verified and is remembered as a whole."""

    rank: int
    number: int
    ranges: Tuple[Tuple[int, int], ...]
    landings: Tuple[Landing, ...]

    @property
    def nbytes(self) -> int:
        return sum(length for _, length in self.ranges)


def units(
    tensors: Sequence[WholeTensor], rank: int, *, size: int, most: int, entire: bool
) -> List[Unit]:
    """Cut what ``tensors`` need of a rank's file (of ``size`` bytes) into units of about ``most``
    bytes, in the order of the file. ``entire`` asks for every byte of it."""
    found: List[Unit] = []
    group: List[Landing] = []
    begin = 0
    landings = _landings(tensors, rank)
    for at, landing in enumerate(landings):
        group.append(landing)
        end = landing.offset + landing.length
        is_last = at == len(landings) - 1
        if not is_last and end - begin < most:
            continue
        if entire:
            end = size if is_last else end
            ranges: Tuple[Tuple[int, int], ...] = ((begin, end - begin),)
        else:
            ranges = _ranges(group)
        found.append(Unit(rank, len(found), ranges, tuple(group)))
        group, begin = [], end
    return found


class _Rows(NamedTuple):
    """How a piece lies in its tensor, in elements: rows of ``length``, the first at ``first``;
    ``strides`` are ``(count, distance)`` of each axis that tells rows apart, the outermost first.
    """

    length: int
    first: int
    strides: Tuple[Tuple[int, int], ...]

    def offset(self, number: int) -> int:
        """Where the row with that number begins."""
        offset = self.first
        for count, distance in reversed(self.strides):
            number, index = divmod(number, count)
            offset += index * distance
        return offset


@lru_cache(maxsize=4096)
def _rows(shape: Tuple[int, ...], box: Box) -> _Rows:
    sizes = extent(box)
    length = run_length(box, whole(shape))
    axis, inside = len(sizes), 1
    while inside < length:
        axis -= 1
        inside *= sizes[axis]
    strides = ((sizes[i], prod(shape[i + 1 :])) for i in range(axis) if sizes[i] > 1)
    return _Rows(length, offset_in(box, whole(shape)), tuple(strides))


class Landings:
    """Writes what lands to a file of ``size`` bytes, in which each tensor lies in ``segments``;
    from several threads. The open ``descriptor`` is taken over."""

    def __init__(
        self,
        tensors: Sequence[WholeTensor],
        segments: Mapping[str, Sequence[Segment]],
        descriptor: int,
        size: int,
    ) -> None:
        self._tensors = tensors
        self._segments = segments
        self._descriptor = descriptor
        self._size = size
        self._compared = _compared(tensors)

    def is_compared(self, landing: Landing) -> bool:
        """Whether other ranks hold the same bytes, which must be equal."""
        return (landing.tensor, landing.piece) in self._compared

    def write(self, landing: Landing, start: int, data: memoryview) -> None:
        """Put ``data``, bytes from ``start`` on of the landing's piece, where they belong."""
        tensor = self._tensors[landing.tensor]
        segments = self._segments.get(tensor.name)
        if segments is None or landing.piece >= len(tensor.pieces):
            return  # a text that goes elsewhere, or a copy of what another rank brings
        item = tensor.item_size
        rows = _rows(tensor.shape, tensor.pieces[landing.piece].box)
        run = rows.length * item
        at_once = len(rows.strides) == 1 and run < _SHORT_RUN and len(segments) == 1
        while data:
            number, inside = divmod(start, run)
            count = len(data) // run
            if at_once and count and not inside:
                taken = count * run
                self._put_rows(segments[0].offset, rows, item, number, data[:taken])
            else:
                taken = min(run - inside, len(data))
                self._put(segments, rows.offset(number) * item + inside, data[:taken])
            data = data[taken:]
            start += taken

    def close(self) -> None:
        """Give the descriptor back; nothing may be written any more."""
        if "_map" in self.__dict__:
            self._map.close()
        os.close(self._descriptor)

    def _put(self, segments: Sequence[Segment], offset: int, data: memoryview) -> None:
        at = 0
        for where, length in spans(segments, offset, len(data)):
            write(self._descriptor, data[at : at + length], where)
            at += length

    def _put_rows(self, base: int, rows: _Rows, item: int, number: int, data: memoryview) -> None:
        # Imported where needed: most layouts do without.
        import numpy as np

        run = rows.length * item
        target: np.ndarray[Any, np.dtype[np.uint8]] = np.ndarray(
            (len(data) // run, run),
            np.uint8,
            buffer=self._map,
            offset=base + rows.offset(number) * item,
            strides=(rows.strides[0][1] * item, 1),
        )
        target[:] = np.frombuffer(data, np.uint8).reshape(target.shape)

    @cached_property
    def _map(self) -> mmap.mmap:
        return mmap.mmap(self._descriptor, self._size)


def check_comparable(tensors: Sequence[WholeTensor], by_rank: Mapping[int, Sequence[Unit]]) -> None:
    """Copies of a slice must be cut alike in all files, or they cannot be compared on the way."""
    cuts: Dict[Tuple[int, int], List[Tuple[int, int]]] = {}
    for found in by_rank.values():
        for unit in found:
            for landing in unit.landings:
                cut = cuts.setdefault((landing.tensor, landing.piece), [])
                cut.append((landing.start, landing.length))
    for number, tensor in enumerate(tensors):
        boxes = {piece.box: cuts.get((number, at)) for at, piece in enumerate(tensor.pieces)}
        for at, replica in enumerate(tensor.replicas, len(tensor.pieces)):
            if boxes.get(replica.box) != cuts.get((number, at)):
                raise CheckpointError(
                    f"parameter {tensor.name}: rank {replica.rank} holds it in other parts than "
                    f"rank {tensor.pieces[0].rank}, so that it cannot be compared on the way",
                    hint="leave --stream out",
                )


def _compared(tensors: Sequence[WholeTensor]) -> FrozenSet[Tuple[int, int]]:
    """Tensor and piece number of all pieces that there are copies of, and of the copies."""
    found = set()
    for number, tensor in enumerate(tensors):
        boxes = {replica.box for replica in tensor.replicas}
        for at, piece in enumerate((*tensor.pieces, *tensor.replicas)):
            if piece.box in boxes:
                found.add((number, at))
    return frozenset(found)


def _landings(tensors: Sequence[WholeTensor], rank: int) -> List[Landing]:
    return sorted(
        landing
        for number, tensor in enumerate(tensors)
        for at, piece in enumerate((*tensor.pieces, *tensor.replicas))
        if piece.rank == rank
        for landing in _cut(number, at, piece)
    )


def _cut(tensor: int, number: int, piece: Piece) -> Iterator[Landing]:
    start = 0
    total = sum(segment.length for segment in piece.segments)
    while start < total:
        span = next(spans(piece.segments, start, min(_MOST, total - start)))
        yield Landing(span.offset, span.length, tensor, number, start)
        start += span.length


def _ranges(landings: Sequence[Landing]) -> Tuple[Tuple[int, int], ...]:
    found: List[Tuple[int, int]] = []
    for landing in landings:
        end = landing.offset + landing.length
        if found and landing.offset - sum(found[-1]) <= _SMALL_GAP:
            found[-1] = (found[-1][0], end - found[-1][0])
        else:
            found.append((landing.offset, landing.length))
    return tuple(found)
