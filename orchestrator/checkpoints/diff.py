"""Compare two checkpoints parameter by parameter, however each of them is cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Tuple

import numpy as np

from orchestrator.checkpoints.assemble import WholeTensor
from orchestrator.checkpoints.checkpoint import Checkpoint
from orchestrator.checkpoints.gather import Bytes, Gatherer, as_float32
from orchestrator.checkpoints.lora import ADDABLE
from orchestrator.checkpoints.reading import ShardReader
from orchestrator.checkpoints.workers import Progress, no_progress, share


@dataclass(frozen=True)
class Change:
    """A parameter of both that is not the same. ``elements`` differ of ``total``; ``largest`` is
    the greatest absolute difference of floating-point values (None for other types)."""

    name: str
    elements: int
    total: int
    largest: Optional[float]


@dataclass(frozen=True)
class Difference:
    """``other_kind`` says for a name what type and shape it has in A and in B."""

    equal: int
    only_a: Tuple[str, ...]
    only_b: Tuple[str, ...]
    other_kind: Mapping[str, Tuple[str, str]]
    changed: Tuple[Change, ...]

    @property
    def same(self) -> bool:
        return not (self.only_a or self.only_b or self.other_kind or self.changed)


Pair = Tuple[WholeTensor, WholeTensor]


def diff(a: Checkpoint, b: Checkpoint, *, progress: Progress = no_progress) -> Difference:
    """Compare all parameters of two opened checkpoints; raises CheckpointError for broken files."""
    ours = {tensor.name: tensor for tensor in a.tensors}
    theirs = {tensor.name: tensor for tensor in b.tensors}
    pairs: List[Pair] = []
    other_kind: Dict[str, Tuple[str, str]] = {}
    for name, tensor in ours.items():
        if name not in theirs:
            continue
        if _kind(tensor) == _kind(theirs[name]):
            pairs.append((tensor, theirs[name]))
        else:
            other_kind[name] = (_kind(tensor), _kind(theirs[name]))
    changes: Dict[str, Change] = {}
    share(
        iter(pairs),
        lambda: _Comparer(a, b, changes),
        total=sum(one.nbytes for one, _ in pairs),
        progress=progress,
    )
    return Difference(
        len(pairs) - len(changes),
        tuple(name for name in ours if name not in theirs),
        tuple(name for name in theirs if name not in ours),
        other_kind,
        tuple(changes[one.name] for one, _ in pairs if one.name in changes),
    )


def _kind(tensor: WholeTensor) -> str:
    size = f" of {tensor.nbytes} bytes" if tensor.dtype == "str" else ""
    return f"{tensor.dtype}{list(tensor.shape)}{size}"


class _Comparer:
    def __init__(self, a: Checkpoint, b: Checkpoint, changes: Dict[str, Change]) -> None:
        self._readers = (ShardReader(a.files), ShardReader(b.files))
        self._a, self._b = (Gatherer(reader) for reader in self._readers)
        self._changes = changes

    def do(self, pair: Pair) -> int:
        one, other = pair
        differing = 0
        largest = 0.0
        for block in one.blocks():
            mine, theirs = self._a.block(one, block), self._b.block(other, block)
            if np.array_equal(mine, theirs):
                continue
            unequal = (mine != theirs).reshape(-1, one.item_size).any(axis=1)
            differing += int(unequal.sum())
            largest = max(largest, _largest(mine, theirs, one.dtype))
        if differing:
            total = one.nbytes // one.item_size
            measured = largest if one.dtype in ADDABLE else None
            self._changes[one.name] = Change(one.name, differing, total, measured)
        return one.nbytes

    def close(self) -> None:
        for reader in self._readers:
            reader.close()


def _largest(mine: Bytes, theirs: Bytes, dtype: str) -> float:
    if dtype not in ADDABLE:
        return 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(as_float32(mine, dtype) - as_float32(theirs, dtype))
    return float(np.nan_to_num(distance, nan=np.inf, posinf=np.inf).max())
