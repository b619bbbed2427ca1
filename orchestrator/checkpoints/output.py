"""Write whole tensors, or boxes of them, into one or more new checkpoint files."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, Iterable, List, Mapping, Sequence, Tuple

from orchestrator.checkpoints.assemble import Assembly, WholeTensor
from orchestrator.checkpoints.checksum import named_crc, parallel_crc
from orchestrator.checkpoints.geometry import elements, extent
from orchestrator.checkpoints.layout import Box
from orchestrator.checkpoints.lora import Adapter
from orchestrator.checkpoints.mindspore_ckpt import CRC_TRAILER_BYTES, ckpt_layout, crc_trailer
from orchestrator.checkpoints.newfile import new_file, part_path, write
from orchestrator.checkpoints.safetensors_file import safetensors_layout
from orchestrator.checkpoints.tensor import TEXT, FileIndex, FileLayout, NewTensor, StoredTensor
from orchestrator.checkpoints.transfer import Move, Place, steps, transfer
from orchestrator.checkpoints.workers import Progress, no_progress
from orchestrator.errors import CheckpointError

Part = Tuple[WholeTensor, Box]
"""A tensor, and the box of it that a file receives."""


@dataclass(frozen=True)
class OutputFile:
    """A file to be written. ``texts`` go into the metadata of a safetensors file, which cannot
    hold them among its tensors."""

    path: Path
    parts: Tuple[Part, ...]
    texts: Mapping[str, str] = field(default_factory=dict)
    crc: bool = False

    @property
    def format(self) -> str:
        return self.path.suffix.lstrip(".")

    def layout(self, crc: int = 0) -> FileLayout:
        """Where everything goes. The CRC is known only in the end; it changes no offset."""
        new = [
            NewTensor(t.name, t.dtype, extent(box), elements(box) * t.item_size)
            for t, box in self.parts
        ]
        if self.format == "ckpt":
            return ckpt_layout(new, crc=self.crc)
        metadata = {"format": "ms", **self.texts}
        if self.crc:
            metadata["crc_num"] = f"{crc:010d}"
        return safetensors_layout([n for n in new if n.dtype != TEXT], metadata)


def write_files(
    outputs: Sequence[OutputFile],
    assembly: Assembly,
    sources: Mapping[int, FileIndex],
    *,
    adapters: Mapping[str, Adapter],
    stale: Path,
    check_crc: bool = True,
    verified: bool = False,
    durable: bool = True,
    progress: Progress = no_progress,
) -> None:
    """Write all files; each appears when all are complete. ``sources`` are the files by rank.

    ``stale`` is removed just before: it describes the files that are replaced.
    ``verified`` reads each file back from the disk and compares it with the sources; ``durable``
    is as for ``new_file``. Raises
    CheckpointError when content turns out wrong on the way, or there is no room.
    """
    _refuse_to_replace_sources(outputs, sources)
    layouts = [output.layout() for output in outputs]
    moves = list(_moves(outputs, layouts, adapters))
    # Adapters are read, and not written; their copies must agree all the same.
    hidden = [tensor for a in adapters.values() for tensor in (a.down, a.up)]
    moves += [Move(tensor, ()) for tensor in hidden if tensor.replicas]
    check = [rank for rank, file in sources.items() if check_crc and file.crc is not None]
    total = sum(move.work for move in moves) + sum(one.nbytes for one, _ in assembly.again)
    total += sum(sources[rank].size for rank in check)
    written = sum(layout.size for layout in layouts) if verified else 0
    with ExitStack() as stack:
        descriptors = [
            stack.enter_context(new_file(output.path, layout.size, durable=durable))
            for output, layout in zip(outputs, layouts)
        ]
        for descriptor, layout in zip(descriptors, layouts):
            _write_fixed(descriptor, layout)
        transfer(
            steps(moves, same=assembly.again, check=check),
            sources,
            descriptors,
            total=total + written,
            progress=progress,
        )
        for descriptor, output in zip(descriptors, outputs):
            if output.crc:
                _write_crc(descriptor, output)
        if verified:
            # Imported where needed: it needs numpy, a plain merge may not.
            from orchestrator.checkpoints.verify import Written, verify_files

            verify_files(
                [Written(part_path(output.path), output.path, output.parts) for output in outputs],
                sources,
                adapters,
                progress=lambda done, _: progress(total + done, total + written),
            )
        stale.unlink(missing_ok=True)


def _refuse_to_replace_sources(
    outputs: Sequence[OutputFile], sources: Mapping[int, FileIndex]
) -> None:
    read = {file.path.resolve() for file in sources.values()}
    replaced = next((o.path for o in outputs if o.path.resolve() in read), None)
    if replaced is not None:
        raise CheckpointError(
            f"{replaced} is one of the files to be merged", hint="choose another folder or prefix"
        )


def _moves(
    outputs: Sequence[OutputFile], layouts: Sequence[FileLayout], adapters: Mapping[str, Adapter]
) -> Iterable[Move]:
    """Each tensor once, with all of its places, in the order of the files."""
    tensors: Dict[str, WholeTensor] = {}
    places: Dict[str, List[Place]] = {}
    for number, (output, layout) in enumerate(zip(outputs, layouts)):
        for tensor, box in output.parts:
            tensors[tensor.name] = tensor
            mine = places.setdefault(tensor.name, [])
            if tensor.name in layout.segments:
                mine.append(Place(number, box, layout.segments[tensor.name]))
    for name, tensor in tensors.items():
        yield Move(tensor, tuple(places[name]), adapters.get(name))


def _write_fixed(descriptor: int, layout: FileLayout) -> None:
    for offset, data in layout.fixed:
        write(descriptor, memoryview(data), offset)


def _write_crc(descriptor: int, output: OutputFile) -> None:
    layout = output.layout()
    if output.format == "ckpt":
        at = layout.size - CRC_TRAILER_BYTES
        write(descriptor, memoryview(crc_trailer(parallel_crc(descriptor, at))), at)
    else:
        stored = [
            StoredTensor(t.name, t.dtype, extent(box), layout.segments[t.name])
            for t, box in output.parts
            if t.name in layout.segments
        ]
        _write_fixed(descriptor, output.layout(named_crc(descriptor, stored)))
