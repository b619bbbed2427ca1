"""Boxes of a tensor, and the byte runs that they are in a file. Pure arithmetic, no I/O."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Iterator, Optional, Sequence, Tuple

from orchestrator.checkpoints.layout import Box
from orchestrator.checkpoints.tensor import Segment


def whole(shape: Sequence[int]) -> Box:
    """The box that is all of a tensor."""
    return tuple((0, size) for size in shape)


def extent(box: Box) -> Tuple[int, ...]:
    """Shape of a box."""
    return tuple(stop - start for start, stop in box)


def elements(box: Box) -> int:
    return prod(extent(box))


def intersect(one: Box, other: Box) -> Optional[Box]:
    """The common part of two boxes; None where they have none."""
    common = tuple((max(a[0], b[0]), min(a[1], b[1])) for a, b in zip(one, other))
    return common if all(start < stop for start, stop in common) else None


def within(inner: Box, outer: Box) -> Tuple[slice, ...]:
    """Index of ``inner`` in an array that holds ``outer``."""
    return tuple(slice(i[0] - o[0], i[1] - o[0]) for i, o in zip(inner, outer))


def offset_in(inner: Box, outer: Box) -> int:
    """Elements before the first of ``inner`` in the C order of ``outer``."""
    offset = 0
    for (start, _), (first, last) in zip(inner, outer):
        offset = offset * (last - first) + start - first
    return offset


def run_length(inner: Box, *outers: Box) -> int:
    """Elements of ``inner`` that lie side by side in the C order of each of ``outers``."""
    length = 1
    for axis in reversed(range(len(inner))):
        size = inner[axis][1] - inner[axis][0]
        length *= size
        if any(outer[axis][1] - outer[axis][0] != size for outer in outers):
            break
    return length


def runs(inner: Box, source: Box, target: Box) -> Iterator[Tuple[int, int, int]]:
    """``(offset in source, offset in target, length)`` in elements of each run of ``inner`` that
    is contiguous in both."""
    length = run_length(inner, source, target)
    axis = len(inner)  # first axis inside a run
    inside = 1
    while axis and inside < length:
        axis -= 1
        inside *= inner[axis][1] - inner[axis][0]
    for index in product(*(range(start, stop) for start, stop in inner[:axis])):
        at = (*((i, i + 1) for i in index), *inner[axis:])
        yield offset_in(at, source), offset_in(at, target), length


def blocks(shape: Sequence[int], most: int) -> Iterator[Box]:
    """Cut a tensor into boxes that are contiguous in C order, in that order, each of at most
    ``most`` elements."""
    if not all(shape):
        return
    axis = 0
    while prod(shape[axis + 1 :]) > most:
        axis += 1
    if axis == len(shape):
        yield ()
        return
    rows = max(1, most // prod(shape[axis + 1 :]))
    tail = whole(shape[axis + 1 :])
    for index in product(*(range(size) for size in shape[:axis])):
        head = tuple((i, i + 1) for i in index)
        for start in range(0, shape[axis], rows):
            yield (*head, (start, min(start + rows, shape[axis])), *tail)


def spans(segments: Sequence[Segment], offset: int, length: int) -> Iterator[Segment]:
    """Where ``length`` bytes from byte ``offset`` of a content lie, when the content is the bytes
    of ``segments`` one after the other."""
    for segment in segments:
        if length <= 0:
            return
        if offset >= segment.length:
            offset -= segment.length
            continue
        taken = min(length, segment.length - offset)
        yield Segment(segment.offset + offset, taken)
        offset = 0
        length -= taken
