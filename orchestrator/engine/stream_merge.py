"""Merge a checkpoint while it is collected: shards flow from the hosts into the merged file.

1. The step and the nearest replicas are chosen as for ``collect``.
2. The hosts send outlines of these files (``engine/outline.py``); from them the checkpoint is put
   together on paper and checked like any other, and the merged file is laid out.
3. All hosts send what is needed of their files, front to back. Every byte goes to its place in
   the merged file as it comes; each unit of about 64 MiB is verified and then noted in a journal,
   so that a later attempt begins behind it.
4. Copies of a slice, which several shards hold, must have had the same digests; then the file
   appears under its name.

No shard is ever on this machine's disk, and no tensor in its memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from orchestrator.checkpoints.catalogue import CheckpointFile
from orchestrator.checkpoints.checkpoint import Checkpoint, Reading, open_checkpoint
from orchestrator.checkpoints.checksum import joined_crc
from orchestrator.checkpoints.geometry import whole
from orchestrator.checkpoints.landing import Landing, Landings, Unit, check_comparable, units
from orchestrator.checkpoints.layout import Box
from orchestrator.checkpoints.merge import MergeReport, manifest_path, write_manifest
from orchestrator.checkpoints.mindspore_ckpt import CRC_TRAILER_BYTES
from orchestrator.checkpoints.newfile import resumed_file, write
from orchestrator.checkpoints.output import OutputFile
from orchestrator.checkpoints.tensor import FileLayout
from orchestrator.checkpoints.workers import no_progress
from orchestrator.engine.catalogue import Source, on_holders
from orchestrator.engine.choice import Choice, choose
from orchestrator.engine.fetch import digests_in_background
from orchestrator.engine.outline import OutlineFolder
from orchestrator.engine.receive import Digest, Meter, Part, Progress, receive
from orchestrator.engine.stream_journal import Arrived, Journal
from orchestrator.errors import CheckpointError
from orchestrator.transport.pace import Pace

UNIT_BYTES = 64 << 20
"""What may have to travel again after the command was killed, at most, for each host."""


def merge_from_hosts(
    sources: Sequence[Source],
    dst: Path,
    *,
    step: str = "latest",
    include_optimizer: bool = True,
    trust_replicas: bool = False,
    pace: Optional[Pace] = None,
    progress: Progress = no_progress,
) -> MergeReport:
    """Merge one complete step, which lies on the hosts, into the file ``dst``.

    Without the optimizer's state, that does not travel either. Raises CheckpointError when the
    set is incomplete, corrupt or inconsistent, or the disk has no room; Busy when another process
    is writing the same file; the errors of hosts otherwise. Then what has arrived and is verified
    is kept for the next attempt.
    """
    choice = choose(sources, step=step)
    copies = [file for group in choice.copies.values() for file in group]
    promised = None
    if copies and not trust_replicas:
        firsts = [file for file in choice.files if file.rank in choice.copies]
        promised = digests_in_background(sources, [*firsts, *copies])
    outline = OutlineFolder(dst.with_name(f".{dst.name}.outline"))
    try:
        outline.fetch(sources, choice)
        strategy = outline.strategy if choice.strategies else None
        reading = Reading(
            step=choice.step,
            include_optimizer=include_optimizer,
            trust_replicas=trust_replicas,
            equal_slices=True,  # that check comes when its samples have been fetched
        )
        checkpoint = open_checkpoint(outline.checkpoint, strategy, reading)
        outline.fetch_samples(sources, choice, checkpoint)
        work = _plan(dst, choice, checkpoint, include_optimizer)
        size = work.layout.size
        with resumed_file(dst, work.part, size, notes=work.journal) as (descriptor, found):
            arrived = _stream(sources, choice, work, descriptor, found, pace, progress)
            try:
                _check_equal(checkpoint, work, arrived)
                _check_crcs(checkpoint, work, arrived)
                if promised is not None:
                    _check_copies(choice, promised())
            except CheckpointError:  # what arrived is of no use to anybody
                work.journal.unlink(missing_ok=True)
                work.part.unlink(missing_ok=True)
                raise
            manifest_path(dst).unlink(missing_ok=True)  # it describes the file that is replaced
        return _finished(dst, choice, checkpoint, work, arrived)
    except CheckpointError as error:
        raise outline.renamed(error, choice) from error
    except OSError as error:
        raise CheckpointError(
            f"cannot write in {dst.parent}: {error.strerror}",
            hint="free some space, or choose another folder with --out",
        ) from error
    finally:
        outline.remove()


@dataclass(frozen=True)
class _Work:
    """What has to be done: the new file, and the units that every rank's file travels in."""

    part: Path
    journal: Path
    output: OutputFile
    layout: FileLayout
    units: Mapping[int, Sequence[Unit]]
    fingerprint: str
    """Equal when a later attempt would do the same, byte for byte."""
    crcs: Mapping[int, int]
    """The checksums that files carry and that can be checked on the way, by rank."""
    notes: Tuple[str, ...]


Arrivals = Mapping[Tuple[int, int], Arrived]


def _plan(dst: Path, choice: Choice, checkpoint: Checkpoint, include_optimizer: bool) -> _Work:
    if checkpoint.assembly.again:
        one, other = checkpoint.assembly.again[0]
        raise CheckpointError(
            f"parameter {one.name} is cut in one way in pipeline stage {one.stage} and in another "
            f"in stage {other.stage}; on the way they cannot be compared",
            hint="leave --stream out",
        )
    tensors = checkpoint.tensors
    texts = checkpoint.texts() if dst.suffix == ".safetensors" else {}
    output = OutputFile(dst, tuple((tensor, whole(tensor.shape)) for tensor in tensors), texts)
    layout = output.layout()
    crcs: Dict[int, int] = {}
    notes: List[str] = []
    by_rank: Dict[int, Sequence[Unit]] = {}
    for rank, file in checkpoint.files.items():
        if file.crc is not None and file.format == "ckpt" and include_optimizer:
            crcs[rank] = file.crc
        elif file.crc is not None:
            notes.append(f"rank {rank}: the CRC32 of its file was not checked on the way")
        by_rank[rank] = units(tensors, rank, size=file.size, most=UNIT_BYTES, entire=rank in crcs)
    check_comparable(tensors, by_rank)
    identity = {
        "files": [
            (file.rank, file.host, file.path, file.size, choice.changed[file.rank])
            for file in choice.files
        ],
        "layout": [layout.size, repr(layout.fixed), repr(layout.segments)],
        "units": repr(by_rank),
    }
    fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    return _Work(
        dst.with_name(f".{dst.name}.stream"),
        dst.with_name(f".{dst.name}.stream.journal"),
        output,
        layout,
        by_rank,
        fingerprint,
        crcs,
        tuple(notes),
    )


def _stream(
    sources: Sequence[Source],
    choice: Choice,
    work: _Work,
    descriptor: int,
    found: bool,
    pace: Optional[Pace],
    progress: Progress,
) -> Arrivals:
    """Let all units arrive that have not yet; everything about them, those of earlier attempts
    too."""
    for offset, data in work.layout.fixed:
        write(descriptor, memoryview(data), offset)
    journal = Journal(work.journal, work.fingerprint, fresh=not found)
    # A descriptor of its own: after Ctrl-C, threads may write on until the process ends.
    tensors = [tensor for tensor, _ in work.output.parts]
    landings = Landings(tensors, work.layout.segments, os.dup(descriptor), work.layout.size)
    pending = {
        rank: [unit for unit in found if (rank, unit.number) not in journal.arrived]
        for rank, found in work.units.items()
    }
    total = sum(unit.nbytes for found in work.units.values() for unit in found)
    meter = Meter(total, progress, pace)
    meter.here(total - sum(unit.nbytes for found in pending.values() for unit in found))

    def run(source: Source, mine: List[CheckpointFile]) -> None:
        wanted = [(file, unit) for file in mine for unit in pending[file.rank]]
        for _ in range(2):  # what arrives damaged is asked for once more
            sinks = [
                _Landed(unit, landings, journal, _crc_end(file, work)) for file, unit in wanted
            ]
            parts = [Part(file, choice.changed[file.rank], unit.ranges) for file, unit in wanted]
            receive(source, list(zip(parts, sinks)), meter)
            wanted = [pair for pair, sink in zip(wanted, sinks) if not sink.is_good]
            meter.here(-sum(unit.nbytes for _, unit in wanted))
            if not wanted:
                return
        file, unit = wanted[0]
        raise CheckpointError(
            f"rank {file.rank}, {file.path}: what arrived from offset {unit.ranges[0][0]} on is "
            "not what was sent",
            hint="the network or a memory damages data; repeat the command",
            host=source.name,
        )

    try:
        on_holders(sources, [file for file in choice.files if pending[file.rank]], run)
    except Exception:  # all threads have ended
        landings.close()
        journal.close()
        raise
    landings.close()
    journal.close()
    meter.end()
    return journal.arrived


class _Landed:
    """Sink: one unit, whose bytes go to their places in the merged file as they come."""

    def __init__(self, unit: Unit, landings: Landings, journal: Journal, crc_end: int) -> None:
        self.is_good = False
        self._unit = unit
        self._landings = landings
        self._journal = journal
        self._crc_end = crc_end
        self._done = 0
        self._range = 0
        self._at = unit.ranges[0][0]
        self._next = 0
        self._crc32 = 0  # of what travels
        self._crc = 0  # of what the file's own checksum covers
        self._copy = hashlib.sha256()
        self._copies: Dict[int, str] = {}

    def begin(self) -> int:
        return self._done

    def accept(self, data: memoryview) -> None:
        self._crc32 = zlib.crc32(data, self._crc32)
        self._done += len(data)
        while data:
            start, length = self._unit.ranges[self._range]
            here = data[: start + length - self._at]
            self._land(here)
            self._at += len(here)
            data = data[len(here) :]
            if self._at == start + length and self._range + 1 < len(self._unit.ranges):
                self._range += 1
                self._at = self._unit.ranges[self._range][0]

    def end(self, digest: Digest) -> None:
        if self._crc32 != digest.crc32:
            return
        self.is_good = True
        unit = self._unit
        arrived = Arrived(unit.rank, unit.number, digest.sha256, self._crc, self._copies)
        self._journal.note(arrived)

    def _land(self, data: memoryview) -> None:
        """Bytes of the file from where we are, all of one range."""
        if self._crc_end > self._at:
            self._crc = zlib.crc32(data[: self._crc_end - self._at], self._crc)
        at = self._at
        landings = self._unit.landings
        while data and self._next < len(landings):
            landing = landings[self._next]
            if landing.offset > at:  # a header, or what is not wanted
                skipped = min(len(data), landing.offset - at)
                at, data = at + skipped, data[skipped:]
                continue
            inside = at - landing.offset
            piece = data[: landing.length - inside]
            try:
                self._landings.write(landing, landing.start + inside, piece)
            except OSError as error:
                raise CheckpointError(f"cannot write: {error.strerror}") from error
            self._compare(landing, piece, inside + len(piece) == landing.length)
            at, data = at + len(piece), data[len(piece) :]

    def _compare(self, landing: Landing, data: memoryview, is_last: bool) -> None:
        if self._landings.is_compared(landing):
            self._copy.update(data)
        if is_last:
            if self._landings.is_compared(landing):
                self._copies[self._next] = self._copy.hexdigest()
                self._copy = hashlib.sha256()
            self._next += 1


def _crc_end(file: CheckpointFile, work: _Work) -> int:
    """Where what the file's own checksum covers ends; 0: it is not to be checked."""
    return file.size - CRC_TRAILER_BYTES if file.rank in work.crcs else 0


def _check_equal(checkpoint: Checkpoint, work: _Work, arrived: Arrivals) -> None:
    """Copies of a slice, in files of several ranks, must have had equal bytes."""
    seen: Dict[Tuple[int, Box, int], Tuple[int, str]] = {}
    for (rank, number), unit in sorted(arrived.items()):
        for at, sha256 in sorted(unit.copies.items()):
            landing = work.units[rank][number].landings[at]
            tensor = checkpoint.tensors[landing.tensor]
            box = (*tensor.pieces, *tensor.replicas)[landing.piece].box
            key = (landing.tensor, box, landing.start)
            first, expected = seen.setdefault(key, (rank, sha256))
            if sha256 != expected:
                raise CheckpointError(
                    f"rank {rank}, {checkpoint.files[rank].path}: parameter {tensor.name}: "
                    f"expected the same bytes as in rank {first}, found others",
                    hint="one file is damaged or of another step, or the parameter is sharded and "
                    "the strategy does not say so",
                )


def _check_crcs(checkpoint: Checkpoint, work: _Work, arrived: Arrivals) -> None:
    for rank, expected in work.crcs.items():
        crc = 0
        end = checkpoint.files[rank].size - CRC_TRAILER_BYTES
        for unit in work.units[rank]:
            ((start, length),) = unit.ranges
            covered = max(0, min(start + length, end) - start)
            crc = joined_crc(crc, arrived[rank, unit.number].crc, covered)
        if crc != expected:
            raise CheckpointError(
                f"rank {rank}, {checkpoint.files[rank].path}: expected CRC32 {expected:08x} as "
                f"the file says, found {crc:08x}",
                hint="the file is damaged on its host; use another step",
            )


def _check_copies(choice: Choice, digest: Mapping[int, str]) -> None:
    for rank, group in choice.copies.items():
        for copy in group:
            if digest[copy.rank] != digest[rank]:
                raise CheckpointError(
                    f"rank {copy.rank}, {copy}: expected the same file as rank {rank} has, found "
                    "another",
                    hint="collect without --stream: both files travel then, and the merge says "
                    "which parameter differs",
                )


def _finished(
    dst: Path, choice: Choice, checkpoint: Checkpoint, work: _Work, arrived: Arrivals
) -> MergeReport:
    notes = (*choice.notes, *checkpoint.assembly.notes, *work.notes)
    digests: Dict[str, List[str]] = {}
    for (rank, _), unit in sorted(arrived.items()):
        digests.setdefault(str(rank), []).append(unit.sha256)
    write_manifest(
        manifest_path(dst), checkpoint, [work.output], notes, with_digests=False, units=digests
    )
    work.journal.unlink(missing_ok=True)
    return MergeReport(
        dst,
        (dst,),
        manifest_path(dst),
        choice.step,
        tuple(checkpoint.shards.files),
        len(checkpoint.tensors),
        dst.stat().st_size,
        notes,
    )
