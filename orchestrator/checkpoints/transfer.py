"""Move the bytes of whole tensors from shards into new files: one pass, bounded memory.

The work is a run of steps, made lazily and in the order of the new file. A box that is contiguous
on both sides is copied from file to file; a tensor cut along an inner axis is put together in
blocks of a few MiB, each read from, and written to, contiguous runs.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from typing import (
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import numpy as np
from numpy.typing import NDArray

from orchestrator.checkpoints.assemble import Piece
from orchestrator.checkpoints.geometry import (
    blocks,
    elements,
    extent,
    intersect,
    offset_in,
    run_length,
    runs,
    spans,
    within,
)
from orchestrator.checkpoints.layout import Box
from orchestrator.checkpoints.tensor import ITEM_SIZE, TEXT, FileIndex, Segment
from orchestrator.errors import CheckpointError

Progress = Callable[[int, int], None]
"""Called with bytes written and bytes in all, one call at a time, from any thread."""

Bytes = NDArray[np.uint8]

BLOCK_BYTES = 4 << 20
"""Memory for one block of a tensor that is put together in memory."""

_COPY_BYTES = 4 << 20  # one step of a plain copy
_CHUNK = 256 << 10  # stays in the cache between reading and writing
_LONG_RUN = 64 << 10  # shorter runs are gathered in memory
_OPEN_FILES = 64
_THREADS = 2


class Place(NamedTuple):
    """Where a box of a tensor goes: number of the output file, and the segments there."""

    output: int
    box: Box
    segments: Tuple[Segment, ...]


@dataclass(frozen=True)
class Move:
    """One tensor on its way: ``pieces`` fill it, each of ``places`` receives its box;
    ``replicas`` must equal the piece with their box."""

    name: str
    item_size: int
    shape: Tuple[int, ...]
    pieces: Tuple[Piece, ...]
    places: Tuple[Place, ...]
    replicas: Tuple[Piece, ...] = ()

    @property
    def work(self) -> int:
        """Bytes to write and to compare."""
        boxes = [place.box for place in self.places] + [replica.box for replica in self.replicas]
        return sum(elements(box) for box in boxes) * self.item_size


class Copy(NamedTuple):
    """Step: plain bytes from a rank's file to an output file."""

    rank: int
    source: int
    output: int
    target: int
    length: int


class Gather(NamedTuple):
    """Step: put one block of a tensor together and hand it to its places."""

    move: Move
    block: Box


class Compare(NamedTuple):
    """Step: check that replicas hold the bytes ``start`` to ``start + length`` of a piece too."""

    name: str
    piece: Piece
    replicas: Tuple[Piece, ...]
    start: int
    length: int


Step = Union[Copy, Gather, Compare]


def item_size(dtype: str, nbytes: int) -> int:
    """Bytes of an element; a text is one element."""
    return nbytes if dtype == TEXT else ITEM_SIZE[dtype]


def steps(moves: Iterable[Move]) -> Iterator[Step]:
    """The work for ``moves``, in order, each tensor copied first and then compared. Pure."""
    for move in moves:
        yield from _copying(move)
        yield from _comparing(move)


def transfer(
    moves: Iterable[Move],
    sources: Mapping[int, FileIndex],
    outputs: Sequence[int],
    *,
    total: int,
    progress: Progress = lambda done, total: None,
) -> None:
    """Do all steps. ``sources`` are the indexed files by rank, ``outputs`` open descriptors.

    Raises CheckpointError when a source has changed since it was indexed, or a write fails for
    want of space.
    """
    work = steps(moves)
    lock = threading.Lock()
    failures: List[BaseException] = []
    done = 0

    def take() -> Optional[Step]:
        with lock:
            return None if failures else next(work, None)

    def count(length: int) -> None:
        nonlocal done
        with lock:
            done += length
            progress(done, total)

    def run() -> None:
        worker = _Worker(sources, outputs)
        try:
            while (step := take()) is not None:
                count(worker.do(step))
        except BaseException as error:  # handed to the caller's thread, which raises it
            failures.append(error)
        finally:
            worker.close()

    helpers = [threading.Thread(target=run, daemon=True) for _ in range(_THREADS - 1)]
    for helper in helpers:
        helper.start()
    run()
    for helper in helpers:
        helper.join()
    if failures:
        raise failures[0]


class ShardReader:
    """Reads byte ranges of the ranks' files; keeps a bounded number of them open."""

    def __init__(self, files: Mapping[int, FileIndex]) -> None:
        self._files = files
        self._open: OrderedDict[int, int] = OrderedDict()

    def descriptor(self, rank: int) -> int:
        if rank in self._open:
            self._open.move_to_end(rank)
            return self._open[rank]
        file = self._files[rank]
        try:
            descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(
                f"rank {rank}: cannot open {file.path}: {error.strerror}"
            ) from error
        self._open[rank] = descriptor
        if os.fstat(descriptor).st_size != file.size:
            raise self._changed(rank)
        if len(self._open) > _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def read(self, rank: int, offset: int, into: memoryview) -> None:
        """Fill ``into`` from the file of ``rank``."""
        descriptor = self.descriptor(rank)
        while into:
            got = os.preadv(descriptor, [into], offset)
            if not got:
                raise self._changed(rank)
            into = into[got:]
            offset += got

    def read_piece(self, piece: Piece, start: int, into: memoryview) -> None:
        """Fill ``into`` from byte ``start`` of a piece's content."""
        at = 0
        for offset, length in spans(piece.segments, start, len(into)):
            self.read(piece.rank, offset, into[at : at + length])
            at += length

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def _changed(self, rank: int) -> CheckpointError:
        return CheckpointError(
            f"rank {rank}, {self._files[rank].path}: changed while it was being read",
            hint="wait until the training has finished saving, then merge again",
        )


def gather(
    reader: ShardReader, pieces: Sequence[Piece], block: Box, item: int, out: Bytes, scratch: Bytes
) -> Bytes:
    """Put a contiguous block of a tensor together in ``out``; return it, one byte per element of
    the last axis (elements are ``item`` bytes). ``scratch`` is as long as ``out``."""
    unit = next(size for size in (8, 4, 2, 1) if item % size == 0)
    last = item // unit
    shape = (*extent(block), last)
    target = out[: prod(shape) * unit].view(f"u{unit}").reshape(shape)
    for piece in pieces:
        common = intersect(piece.box, block)
        if common is None:
            continue
        start = offset_in(common, piece.box) * item
        length = elements(common) * item
        if run_length(common, block) == elements(common):
            at = offset_in(common, block) * item
            reader.read_piece(piece, start, out.data[at : at + length])
            continue
        reader.read_piece(piece, start, scratch.data[:length])
        part = scratch[:length].view(f"u{unit}").reshape((*extent(common), last))
        target[within(common, block)] = part
    return out[: prod(shape) * unit]


def write(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset``; CheckpointError where it does not fit on the disk."""
    while data:
        try:
            put = os.pwrite(descriptor, data, offset)
        except OSError as error:
            raise CheckpointError(
                f"cannot write the merged file: {error.strerror}",
                hint="free some space, or write to another disk",
            ) from error
        data = data[put:]
        offset += put


class _Worker:
    """One thread's buffers and open files."""

    def __init__(self, sources: Mapping[int, FileIndex], outputs: Sequence[int]) -> None:
        self._sources = sources
        self._reader = ShardReader(sources)
        self._outputs = outputs
        self._chunk = memoryview(bytearray(_CHUNK))
        self._blocks: Dict[str, Bytes] = {}

    def do(self, step: Step) -> int:
        """Do a step; return the bytes written and compared."""
        if isinstance(step, Copy):
            return self._copy(step)
        if isinstance(step, Gather):
            return self._gather(step)
        return self._compare(step)

    def close(self) -> None:
        self._reader.close()

    def _copy(self, step: Copy) -> int:
        for at in range(0, step.length, _CHUNK):
            part = self._chunk[: min(_CHUNK, step.length - at)]
            self._reader.read(step.rank, step.source + at, part)
            write(self._outputs[step.output], part, step.target + at)
        return step.length

    def _gather(self, step: Gather) -> int:
        move, item = step.move, step.move.item_size
        size = elements(step.block) * item
        out, scratch = self._buffer("block", size), self._buffer("scratch", size)
        data = gather(self._reader, move.pieces, step.block, item, out, scratch)
        written = 0
        array = data.reshape((*extent(step.block), item))
        for place in move.places:
            common = intersect(place.box, step.block)
            if common is None:
                continue
            part = np.ascontiguousarray(array[within(common, step.block)]).reshape(-1).data
            at, start = 0, offset_in(common, place.box) * item
            for offset, length in spans(place.segments, start, len(part)):
                write(self._outputs[place.output], part[at : at + length], offset)
                at += length
            written += len(part)
        return written

    def _compare(self, step: Compare) -> int:
        size = min(_CHUNK, step.length)
        one, other = self._buffer("one", size), self._buffer("other", size)
        for at in range(step.start, step.start + step.length, size):
            length = min(size, step.start + step.length - at)
            self._reader.read_piece(step.piece, at, one.data[:length])
            for replica in step.replicas:
                self._reader.read_piece(replica, at, other.data[:length])
                if not np.array_equal(one[:length], other[:length]):
                    raise self._differs(step, replica, at)
        return step.length * len(step.replicas)

    def _differs(self, step: Compare, replica: Piece, near: int) -> CheckpointError:
        return CheckpointError(
            f"rank {replica.rank}, {self._sources[replica.rank].path}: parameter {step.name}: "
            f"expected the same bytes as in rank {step.piece.rank}, found others "
            f"(near byte {near} of its content)",
            hint="one file is damaged or of another step, or the parameter is sharded and the "
            "strategy does not say so",
        )

    def _buffer(self, name: str, size: int) -> Bytes:
        held = self._blocks.get(name)
        if held is None or len(held) < size:
            held = self._blocks[name] = np.empty(size, np.uint8)
        return held


def _copying(move: Move) -> Iterator[Step]:
    pairs = [
        (piece, place, common)
        for place in move.places
        for piece in move.pieces
        for common in [intersect(piece.box, place.box)]
        if common is not None
    ]
    if any(_in_short_runs(move, *pair) for pair in pairs):
        for block in blocks(move.shape, max(1, BLOCK_BYTES // move.item_size)):
            yield Gather(move, block)
        return
    for piece, place, common in pairs:
        for source, target, length in runs(common, piece.box, place.box):
            yield from _copies(move, piece, place, source, target, length)


def _in_short_runs(move: Move, piece: Piece, place: Place, common: Box) -> bool:
    run = run_length(common, piece.box, place.box)
    return run < elements(common) and run * move.item_size < _LONG_RUN


def _comparing(move: Move) -> Iterator[Step]:
    at: Dict[Box, List[Piece]] = {}
    for replica in move.replicas:
        at.setdefault(replica.box, []).append(replica)
    for piece in move.pieces:
        replicas = tuple(at.get(piece.box, ()))
        length = elements(piece.box) * move.item_size
        for start in range(0, length if replicas else 0, _COPY_BYTES):
            yield Compare(move.name, piece, replicas, start, min(_COPY_BYTES, length - start))


def _copies(
    move: Move, piece: Piece, place: Place, source: int, target: int, length: int
) -> Iterator[Copy]:
    """A run of elements as byte copies, cut where a segment of either file ends."""
    start, begin, left = source * move.item_size, target * move.item_size, length * move.item_size
    while left:
        there = next(spans(piece.segments, start, min(left, _COPY_BYTES)))
        here = next(spans(place.segments, begin, there.length))
        yield Copy(piece.rank, there.offset, place.output, here.offset, here.length)
        start += here.length
        begin += here.length
        left -= here.length
