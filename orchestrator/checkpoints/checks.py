"""Signs that a strategy does not belong to the files, which neither types nor shapes betray."""

from __future__ import annotations

from typing import Dict, Mapping, Sequence, Tuple

from orchestrator.checkpoints.assemble import WholeTensor
from orchestrator.checkpoints.reading import Piece, ShardReader, where
from orchestrator.checkpoints.tensor import FileIndex
from orchestrator.errors import CheckpointError

SAMPLE = 4 << 10
"""Bytes of a slice that are compared with the others'."""

_FEW = 16  # bytes that may well be equal by chance
_HINT = "the strategy belongs to another run"


def check_slices_differ(
    tensors: Sequence[WholeTensor], files: Mapping[int, FileIndex], most: int = SAMPLE
) -> None:
    """Slices of one parameter that are all equal are really copies of it: CheckpointError.

    Constant content (moments before the first step, gains of ones) says nothing. Reads at most
    ``most`` bytes of a slice.
    """
    reader = ShardReader(files)
    try:
        for tensor in tensors:
            if len(tensor.pieces) > 1 and _are_copies(reader, tensor, most):
                raise CheckpointError(
                    f"{reader.where(tensor.pieces[1].rank)}: parameter {tensor.name}: expected "
                    f"another slice than in rank {tensor.pieces[0].rank} by the strategy, found "
                    "the same bytes in all ranks: they hold copies, not slices",
                    hint=f"{_HINT}; if slices may be equal (experts made from one), merge with "
                    "--equal-slices",
                )
    finally:
        reader.close()


def sample(tensor: WholeTensor, most: int = SAMPLE) -> Tuple[int, int]:
    """Start and length, in the bytes of any piece, of what is compared: its middle, where a
    padded vocabulary does not reach."""
    size = tensor.nbytes // len(tensor.pieces)
    length = min(most, size)
    start = (size - length) // 2
    return start - start % max(tensor.item_size, 1), length


def _are_copies(reader: ShardReader, tensor: WholeTensor, most: int) -> bool:
    first = _read_sample(reader, tensor, tensor.pieces[0], most)
    if any(_read_sample(reader, tensor, piece, most) != first for piece in tensor.pieces[1:]):
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


def _read_sample(reader: ShardReader, tensor: WholeTensor, piece: Piece, most: int) -> bytes:
    start, length = sample(tensor, most)
    data = bytearray(length)
    reader.read_piece(piece, start, memoryview(data))
    return bytes(data)


def _piece_shape(tensor: WholeTensor) -> Tuple[int, ...]:
    return tuple(stop - start for start, stop in tensor.pieces[0].box)
