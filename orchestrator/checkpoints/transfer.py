"""Move the bytes of whole tensors from shards into new files: one pass, bounded memory.

The work is a run of steps, made lazily and in the order of the new file, and shared by a few
threads. A box that is contiguous on both sides is copied from file to file; a tensor cut along an
inner axis is put together in blocks, each read from, and written to, contiguous runs.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import (
    TYPE_CHECKING,
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

from orchestrator.checkpoints.assemble import WholeTensor
from orchestrator.checkpoints.checksum import check_file
from orchestrator.checkpoints.geometry import (
    elements,
    intersect,
    offset_in,
    run_length,
    runs,
    spans,
)
from orchestrator.checkpoints.layout import Box
from orchestrator.checkpoints.lora import Adapter
from orchestrator.checkpoints.newfile import write
from orchestrator.checkpoints.reading import Piece, ShardReader
from orchestrator.checkpoints.tensor import FileIndex, Segment
from orchestrator.checkpoints.workers import Progress, no_progress, share
from orchestrator.errors import CheckpointError

if TYPE_CHECKING:
    from orchestrator.checkpoints.gather import Gatherer

_STEP_BYTES = 4 << 20  # one step of a plain copy
_CHUNK = 1 << 20
_LONG_RUN = 64 << 10  # shorter runs are gathered in memory


class Place(NamedTuple):
    """Where a box of a tensor goes: number of the output file, and the segments there."""

    output: int
    box: Box
    segments: Tuple[Segment, ...]


@dataclass(frozen=True)
class Move:
    """One tensor on its way: each of ``places`` receives its box of it; ``adapter``, if there is
    one, is added. Replicas of its pieces are compared with them."""

    tensor: WholeTensor
    places: Tuple[Place, ...]
    adapter: Optional[Adapter] = None

    @property
    def work(self) -> int:
        """Bytes to write and to compare."""
        boxes = [place.box for place in self.places]
        boxes += [replica.box for replica in self.tensor.replicas]
        return sum(elements(box) for box in boxes) * self.tensor.item_size


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


class Same(NamedTuple):
    """Step: check that two tensors, differently cut, are equal in one block."""

    one: WholeTensor
    other: WholeTensor
    block: Box


class Check(NamedTuple):
    """Step: compute the checksum of a rank's file and compare it with the one it carries."""

    rank: int


Step = Union[Copy, Gather, Compare, Same, Check]


def steps(
    moves: Iterable[Move],
    *,
    same: Iterable[Tuple[WholeTensor, WholeTensor]] = (),
    check: Iterable[int] = (),
) -> Iterator[Step]:
    """The work: ``moves`` in order, each tensor copied and then compared with its replicas, then
    the pairs that must be the ``same``, and the checksums of the ranks in ``check``: these need
    no disk, which is still writing what was copied. Pure."""
    for move in moves:
        yield from _copying(move)
        yield from _comparing(move.tensor)
    for one, other in same:
        for block in one.blocks():
            yield Same(one, other, block)
    for rank in check:
        yield Check(rank)


def transfer(
    work: Iterator[Step],
    sources: Mapping[int, FileIndex],
    outputs: Sequence[int],
    *,
    total: int,
    progress: Progress = no_progress,
) -> None:
    """Do all steps. ``sources`` are the indexed files by rank, ``outputs`` open descriptors.

    Raises CheckpointError when a source has changed since it was indexed, a checksum is wrong, or
    a replica differs; OSError when writing fails.
    """
    # One writer a file at a time: the kernel allows no more, and lets the others spin for it.
    writing = [threading.Lock() for _ in outputs]
    share(work, lambda: _Worker(sources, outputs, writing), total=total, progress=progress)


class _Worker:
    """One thread's buffers and open files."""

    def __init__(
        self,
        sources: Mapping[int, FileIndex],
        outputs: Sequence[int],
        writing: Sequence[threading.Lock],
    ) -> None:
        self._sources = sources
        self._outputs = outputs
        self._writing = writing
        self._reader = ShardReader(sources)
        self._chunk = bytearray(_CHUNK)
        self._other = bytearray(_CHUNK)

    def do(self, step: Step) -> int:
        """Do a step; return the bytes written, compared or checked."""
        if isinstance(step, Copy):
            return self._copy(step)
        if isinstance(step, Gather):
            return self._gather(step)
        if isinstance(step, Compare):
            return self._compare(step)
        if isinstance(step, Same):
            return self._same(step)
        check_file(self._sources[step.rank], self._reader.where(step.rank))
        return self._sources[step.rank].size

    def close(self) -> None:
        self._reader.close()

    def _copy(self, step: Copy) -> int:
        chunk = memoryview(self._chunk)
        for at in range(0, step.length, _CHUNK):
            part = chunk[: min(_CHUNK, step.length - at)]
            self._reader.read(step.rank, step.source + at, part)
            with self._writing[step.output]:
                write(self._outputs[step.output], part, step.target + at)
        return step.length

    def _gather(self, step: Gather) -> int:
        # Imported where needed: a set that is cut along first axes does without numpy.
        from orchestrator.checkpoints.gather import part_of

        item = step.move.tensor.item_size
        data = self._gatherer.block(step.move.tensor, step.block, step.move.adapter)
        written = 0
        for place in step.move.places:
            common = intersect(place.box, step.block)
            if common is None:
                continue
            part = part_of(data, step.block, common, item)
            at, start = 0, offset_in(common, place.box) * item
            for offset, length in spans(place.segments, start, len(part)):
                write(self._outputs[place.output], part[at : at + length], offset)
                at += length
            written += len(part)
        return written

    def _compare(self, step: Compare) -> int:
        for at in range(step.start, step.start + step.length, _CHUNK):
            length = min(_CHUNK, step.start + step.length - at)
            self._reader.read_piece(step.piece, at, memoryview(self._chunk)[:length])
            for replica in step.replicas:
                self._reader.read_piece(replica, at, memoryview(self._other)[:length])
                if self._chunk[:length] != self._other[:length]:
                    raise self._differs(step.name, step.piece.rank, replica.rank)
        return step.length * len(step.replicas)

    def _same(self, step: Same) -> int:
        one = self._gatherer.block(step.one, step.block).tobytes()
        other = self._gatherer.block(step.other, step.block).tobytes()
        if one != other:
            raise self._differs(step.one.name, step.one.pieces[0].rank, step.other.pieces[0].rank)
        return len(one)

    def _differs(self, name: str, rank: int, other: int) -> CheckpointError:
        for suspect in (rank, other):  # a checksum says which of the two is damaged
            check_file(self._sources[suspect], self._reader.where(suspect))
        return CheckpointError(
            f"{self._reader.where(other)}: parameter {name}: expected the same bytes as in "
            f"rank {rank}, found others",
            hint="one file is damaged or of another step, or the parameter is sharded and the "
            "strategy does not say so",
        )

    @cached_property
    def _gatherer(self) -> Gatherer:
        from orchestrator.checkpoints.gather import Gatherer

        return Gatherer(self._reader)


def _copying(move: Move) -> Iterator[Step]:
    tensor = move.tensor
    overlaps = _overlaps(
        tuple(piece.box for piece in tensor.pieces), tuple(place.box for place in move.places)
    )
    if move.adapter or any(_in_short_runs(move, *overlap) for overlap in overlaps):
        for block in tensor.blocks():
            yield Gather(move, block)
        return
    for source, target, common in overlaps:
        piece, place = tensor.pieces[source], move.places[target]
        for start, begin, length in runs(common, piece.box, place.box):
            yield from _copies(tensor.item_size, piece, place, start, begin, length)


@lru_cache(maxsize=64)
def _overlaps(
    sources: Tuple[Box, ...], targets: Tuple[Box, ...]
) -> Tuple[Tuple[int, int, Box], ...]:
    """``(source, target, common box)`` where they meet, target by target. The layers of a model
    are cut alike, so few answers serve all tensors."""
    return tuple(
        (i, j, common)
        for j, target in enumerate(targets)
        for i, source in enumerate(sources)
        for common in [intersect(source, target)]
        if common is not None
    )


def _in_short_runs(move: Move, source: int, target: int, common: Box) -> bool:
    run = run_length(common, move.tensor.pieces[source].box, move.places[target].box)
    return run < elements(common) and run * move.tensor.item_size < _LONG_RUN


def _copies(
    item: int, piece: Piece, place: Place, source: int, target: int, length: int
) -> Iterator[Copy]:
    """A run of elements as byte copies, cut where a segment of either file ends."""
    start, begin, left = source * item, target * item, length * item
    while left:
        there = next(spans(piece.segments, start, min(left, _STEP_BYTES)))
        here = next(spans(place.segments, begin, there.length))
        yield Copy(piece.rank, there.offset, place.output, here.offset, here.length)
        start += here.length
        begin += here.length
        left -= here.length


def _comparing(tensor: WholeTensor) -> Iterator[Compare]:
    at: Dict[Box, List[Piece]] = {}
    for replica in tensor.replicas:
        at.setdefault(replica.box, []).append(replica)
    for piece in tensor.pieces:
        replicas = tuple(at.get(piece.box, ()))
        length = elements(piece.box) * tensor.item_size
        for start in range(0, length if replicas else 0, _STEP_BYTES):
            step = min(_STEP_BYTES, length - start)
            yield Compare(tensor.name, piece, replicas, start, step)
