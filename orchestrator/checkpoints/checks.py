"""Signs that a strategy does not belong to the files, which neither types nor shapes betray."""

from __future__ import annotations

from typing import Dict, Mapping, Sequence, Tuple

from orchestrator.checkpoints.assemble import WholeTensor
from orchestrator.checkpoints.reading import Piece, ShardReader, where
from orchestrator.checkpoints.tensor import FileIndex
from orchestrator.errors import CheckpointError

_SAMPLE = 4 << 10
_FEW = 16  # bytes that may well be equal by chance
_HINT = "the strategy belongs to another run"


def check_slices_differ(tensors: Sequence[WholeTensor], files: Mapping[int, FileIndex]) -> None:
    """Slices of one parameter that are all equal are really copies of it: CheckpointError.

    Constant content (moments before the first step, gains of ones) says nothing. Reads at most
    4 KiB of a slice.
    """
    reader = ShardReader(files)
    try:
        for tensor in tensors:
            if len(tensor.pieces) > 1 and _are_copies(reader, tensor):
                raise CheckpointError(
                    f"{reader.where(tensor.pieces[1].rank)}: parameter {tensor.name}: expected "
                    f"another slice than in rank {tensor.pieces[0].rank} by the strategy, found "
                    "the same bytes in all ranks: they hold copies, not slices",
                    hint=f"{_HINT}; if slices may be equal (experts made from one), merge with "
                    "--equal-slices",
                )
    finally:
        reader.close()


def _are_copies(reader: ShardReader, tensor: WholeTensor) -> bool:
    first = _sample(reader, tensor, tensor.pieces[0])
    if any(_sample(reader, tensor, piece) != first for piece in tensor.pieces[1:]):
        return False
    item = tensor.item_size
    different = {first[at : at + item] for at in range(0, len(first), item)}
    return len(first) >= _FEW and len(different) > 1


def check_biases(tensors: Sequence[WholeTensor], files: Mapping[int, FileIndex]) -> None:
    """A bias is as long as one side of its weight. Where that holds for the slices and no longer
    for what the strategy makes of them, the strategy cuts the wrong axis."""
    by_name: Dict[str, WholeTensor] = {tensor.name: tensor for tensor in tensors}
    for tensor in tensors:
        weight = by_name.get(f"{tensor.name[: -len('bias')]}weight")
        if not tensor.name.endswith("bias") or weight is None:
            continue
        if len(tensor.shape) != 1 or len(weight.shape) != 2:
            continue
        slices = _piece_shape(tensor)[0] in _piece_shape(weight)
        if slices and tensor.shape[0] not in weight.shape:
            raise CheckpointError(
                f"{where(files, weight.pieces[0].rank)}: parameter {weight.name}: expected a side "
                f"of {tensor.shape[0]} when merged, as {tensor.name} is long, found "
                f"{list(weight.shape)}",
                hint=_HINT,
            )


def _sample(reader: ShardReader, tensor: WholeTensor, piece: Piece) -> bytes:
    """Some bytes of a piece: its middle, where a padded vocabulary does not reach."""
    size = tensor.nbytes // len(tensor.pieces)
    length = min(_SAMPLE, size)
    data = bytearray(length)
    start = (size - length) // 2
    reader.read_piece(piece, start - start % max(tensor.item_size, 1), memoryview(data))
    return bytes(data)


def _piece_shape(tensor: WholeTensor) -> Tuple[int, ...]:
    return tuple(stop - start for start, stop in tensor.pieces[0].box)
