"""A distributed checkpoint, opened: found, indexed, put together on paper and checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, Mapping, Optional, Tuple

from orchestrator.checkpoints.assemble import (
    Assembly,
    WholeTensor,
    assemble_tensors,
    is_optimizer_state,
)
from orchestrator.checkpoints.checks import check_biases, check_slices_differ
from orchestrator.checkpoints.geometry import whole
from orchestrator.checkpoints.lora import Adapter, pair_adapters
from orchestrator.checkpoints.reading import BASE, Piece, ShardReader
from orchestrator.checkpoints.shards import ShardSet, index_file, open_shards
from orchestrator.checkpoints.strategy import load_strategy
from orchestrator.checkpoints.tensor import TEXT, FileIndex
from orchestrator.errors import CheckpointError

MAX_TEXT_BYTES = 1 << 20


@dataclass(frozen=True)
class Reading:
    """How to read a checkpoint.

    ``step`` is ``latest`` (the last complete one), a step, or ``epoch_step``.
    ``redundancy_removed`` accepts sets in which each slice was saved by one rank only.
    ``trust_replicas`` takes the first copy of a slice without comparing the others.
    ``equal_slices`` accepts a parameter all of whose slices are equal.
    ``lora_alpha`` merges LoRA adapters into their weights, which are in the same set, or in the
    file ``lora_base``.
    """

    step: str = "latest"
    include_optimizer: bool = True
    redundancy_removed: bool = False
    trust_replicas: bool = False
    equal_slices: bool = False
    lora_alpha: Optional[float] = None
    lora_base: Optional[Path] = None


@dataclass(frozen=True)
class Checkpoint:
    """All tensors of a checkpoint, and the files (by rank) that their pieces are in."""

    shards: ShardSet
    assembly: Assembly
    files: Mapping[int, FileIndex]
    adapters: Mapping[str, Adapter]

    @property
    def tensors(self) -> Tuple[WholeTensor, ...]:
        return self.assembly.tensors

    @property
    def notes(self) -> Tuple[str, ...]:
        return (*self.shards.selection.notes, *self.assembly.notes)

    def texts(self) -> Dict[str, str]:
        """The texts stored among the tensors, read."""
        reader = ShardReader(self.files)
        try:
            return {t.name: self._text(reader, t) for t in self.tensors if t.dtype == TEXT}
        finally:
            reader.close()

    def _text(self, reader: ShardReader, tensor: WholeTensor) -> str:
        where = f"{reader.where(tensor.pieces[0].rank)}: text {tensor.name}"
        if tensor.nbytes > MAX_TEXT_BYTES:
            raise CheckpointError(f"{where}: {tensor.nbytes} bytes are too long for a text")
        data = bytearray(tensor.nbytes)
        reader.read_piece(tensor.pieces[0], 0, memoryview(data))
        try:
            return data.decode("utf-32-le")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{where}: it is not UTF-32") from error


def open_checkpoint(
    source: Path, strategy: Optional[Path], reading: Reading = Reading()
) -> Checkpoint:
    """Open the checkpoint below ``source`` (a folder of ``rank_N`` folders, or one file).

    ``strategy`` is a strategy file or the folder of them; None means that every rank holds
    everything. Content is read only in small samples. Raises CheckpointError when the set is
    incomplete, corrupt, or does not fit the strategy.
    """
    layouts = load_strategy(strategy) if strategy is not None else None
    shards = open_shards(source, layouts, step=reading.step)
    assembly = assemble_tensors(
        shards,
        include_optimizer=reading.include_optimizer,
        redundancy_removed=reading.redundancy_removed,
    )
    check_biases(assembly.tensors, shards.files)
    if not reading.equal_slices:
        check_slices_differ(assembly.tensors, shards.files)
    assembly = replace(
        assembly,
        tensors=tuple(_with_doubtful_copies(t, shards, reading) for t in assembly.tensors),
    )
    files: Dict[int, FileIndex] = dict(shards.files)
    adapters: Dict[str, Adapter] = {}
    if reading.lora_alpha is not None:
        if reading.lora_base is not None:
            files[BASE] = index_file(reading.lora_base)
            assembly = _with_base(assembly, files[BASE])
        kept, adapters = pair_adapters(assembly.tensors, reading.lora_alpha)
        assembly = replace(assembly, tensors=tuple(kept))
    if not assembly.tensors:
        raise CheckpointError(f"{source}: no parameter is left")
    return Checkpoint(shards, assembly, files, adapters)


def _with_doubtful_copies(tensor: WholeTensor, shards: ShardSet, reading: Reading) -> WholeTensor:
    """Keep the replicas that are to be compared: not those in files known to be equal."""
    if reading.trust_replicas or not tensor.replicas:
        return replace(tensor, replicas=())
    digests = {rank: file.sha256 for rank, file in shards.selection.files.items()}
    first = {piece.box: digests[piece.rank] for piece in tensor.pieces}
    doubtful = [
        replica
        for replica in tensor.replicas
        if not first[replica.box] or digests[replica.rank] != first[replica.box]
    ]
    return replace(tensor, replicas=tuple(doubtful))


def _with_base(assembly: Assembly, base: FileIndex) -> Assembly:
    """The weights of a file of base weights, and the tensors of the set.

    A base that was trained may carry its optimizer's state and the scalars of its progress: those
    of the set count.
    """
    found = [t for t in base.tensors.values() if t.shape and not is_optimizer_state(t.name)]
    names = {stored.name for stored in found}
    clash = next((t.name for t in assembly.tensors if t.name in names), None)
    if clash:
        raise CheckpointError(
            f"parameter {clash} is in the shards and in {base.path}",
            hint="leave --lora_base out, or give a set that holds only adapters",
        )
    weights = [
        WholeTensor(
            stored.name,
            stored.dtype,
            stored.shape,
            (Piece(BASE, whole(stored.shape), stored.segments),),
            (),
            None,
        )
        for stored in found
    ]
    return replace(assembly, tensors=(*weights, *assembly.tensors))
