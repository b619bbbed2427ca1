"""How one parameter is cut over the devices of a pipeline stage, and which part each rank holds.

Rules (MindSpore 2.10, ``parallel/_tensor.py``): the coordinates of a rank are row-major in
``dev_matrix``; ``tensor_map`` names, for each axis of the tensor, the device axes that cut it,
counted from the right; the optimizer shard cuts axis 0 once more, after the model-parallel cut,
among the ranks that would otherwise hold the same slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Tuple

Box = Tuple[Tuple[int, int], ...]
"""A rectangular part of a tensor: ``(start, stop)`` for each axis."""


@dataclass(frozen=True)
class Layout:
    """The cut of one parameter.

    ``dev_matrix`` has one entry for each device axis; its product is the ranks of the stage.
    ``tensor_map`` has, for each axis of the tensor, the device axes that cut it, outermost
    first; an empty tuple: not cut. ``opt_shard_size`` is the number of ranks that share a slice
    between them (-1: all that hold it, 0: none); ``opt_shard_step`` the distance of those ranks.
    """

    dev_matrix: Tuple[int, ...]
    tensor_map: Tuple[Tuple[int, ...], ...]
    opt_shard_step: int = 0
    opt_shard_size: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError, saying why, for a layout that no set of ranks can have."""
        if any(size < 1 for size in self.dev_matrix):
            raise ValueError(f"dev_matrix {list(self.dev_matrix)} has an entry below 1")
        used = [axis for axes in self.tensor_map for axis in axes]
        if any(not 0 <= axis < len(self.dev_matrix) for axis in used):
            raise ValueError(
                f"tensor_map {self.tensor_map} points outside dev_matrix {list(self.dev_matrix)}"
            )
        if len(set(used)) != len(used):
            raise ValueError(f"tensor_map {self.tensor_map} uses a device axis twice")
        if not self.opt_shard_size:
            return
        if self.opt_shard_step < 1 and self._copies > 1:
            raise ValueError(
                f"opt_weight_shard_size is {self.opt_shard_size}, but opt_weight_shard_step is "
                f"{self.opt_shard_step}"
            )
        copies = self._copies
        if self.opt_shard_size < -1 or copies % self.opt_shard:
            raise ValueError(
                f"opt_weight_shard_size {self.opt_shard_size} does not divide the {copies} ranks "
                "that hold the same slice"
            )
        if self.opt_shard > 1 and not self.tensor_map:
            raise ValueError("a scalar cannot be cut by the optimizer shard")
        free = [
            i
            for i, n in enumerate(self.dev_matrix)
            if n > 1 and len(self.dev_matrix) - 1 - i not in used
        ]
        if len(free) == 1 and self.opt_shard > 1:
            step = prod(self.dev_matrix[free[0] + 1 :])
            if self.opt_shard_step != step:
                raise ValueError(
                    f"opt_weight_shard_step is {self.opt_shard_step}, but ranks that hold the "
                    f"same slice are {step} apart"
                )

    @property
    def ranks(self) -> int:
        """Ranks of the pipeline stage."""
        return prod(self.dev_matrix)

    @property
    def opt_shard(self) -> int:
        """Pieces that the optimizer shard makes of a slice; 1: none."""
        if self.opt_shard_size == -1:
            return self._copies
        return max(self.opt_shard_size, 1)

    @property
    def cuts(self) -> Tuple[int, ...]:
        """Number of pieces along each axis of the tensor."""
        cuts = [prod(self._size(axis) for axis in axes) for axes in self.tensor_map]
        if cuts:
            cuts[0] *= self.opt_shard
        return tuple(cuts)

    def position(self, local_rank: int) -> Tuple[int, ...]:
        """Which piece a rank (counted within its stage) holds: index along each axis."""
        return _position(self, local_rank)

    def box(self, local_rank: int, piece: Tuple[int, ...]) -> Box:
        """The part of the full tensor that a rank holds, where all pieces have shape ``piece``."""
        return tuple(
            (index * size, (index + 1) * size)
            for index, size in zip(self.position(local_rank), piece)
        )

    def full_shape(self, piece: Tuple[int, ...]) -> Tuple[int, ...]:
        """Shape of the whole tensor, given that of a piece."""
        return tuple(size * count for size, count in zip(piece, self.cuts))

    def piece_shape(self, full: Tuple[int, ...]) -> Tuple[int, ...]:
        """Shape of every piece of a tensor; ValueError where it does not divide evenly."""
        for axis, (size, count) in enumerate(zip(full, self.cuts)):
            if size % count:
                raise ValueError(f"axis {axis} of length {size} does not divide into {count}")
        return tuple(size // count for size, count in zip(full, self.cuts))

    @property
    def _copies(self) -> int:
        cut = prod(self._size(axis) for axes in self.tensor_map for axis in axes)
        return self.ranks // cut

    def _size(self, axis: int) -> int:
        return self.dev_matrix[len(self.dev_matrix) - 1 - axis]


@lru_cache(maxsize=65536)
def _position(layout: Layout, local_rank: int) -> Tuple[int, ...]:
    coordinates = []
    rest = local_rank
    for size in reversed(layout.dev_matrix):  # coordinates[k] belongs to device axis k
        coordinates.append(rest % size)
        rest //= size
    position = []
    for axes in layout.tensor_map:
        index = 0
        for axis in axes:
            index = index * layout._size(axis) + coordinates[axis]
        position.append(index)
    if position and layout.opt_shard > 1:
        cut = {axis for axes in layout.tensor_map for axis in axes}
        order = 0  # of this rank among those with the same slice
        for axis in reversed(range(len(layout.dev_matrix))):
            if axis not in cut:
                order = order * layout._size(axis) + coordinates[axis]
        position[0] = position[0] * layout.opt_shard + order % layout.opt_shard
    return tuple(position)
