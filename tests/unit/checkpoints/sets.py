"""Checkpoint sets made from whole tensors, without any code of the merger.

The cutting here is written straight from MindSpore's rules with numpy; the files are written by
the protobuf rules in ``raw_record``. Tests compare what the merger gives back with the whole.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Mapping, Optional, Sequence, Tuple

import numpy as np

from orchestrator.checkpoints.layout import Layout
from orchestrator.checkpoints.strategy import Strategy, strategy_bytes

NUMPY_OF = {
    "Float16": np.float16,
    "Float32": np.float32,
    "BFloat16": np.uint16,
    "Int32": np.int32,
    "Int64": np.int64,
    "Bool": np.bool_,
    "Int8": np.int8,
    "UInt8": np.uint8,
    "Float64": np.float64,
}

Array = np.ndarray


@dataclass(frozen=True)
class Whole:
    """A tensor of the model, and its MindSpore type name."""

    dtype: str
    values: Array


def whole(dtype: str, shape: Sequence[int], seed: int) -> Whole:
    """A tensor of random bytes that are valid values."""
    kind = NUMPY_OF[dtype]
    if kind is np.bool_:
        return Whole(dtype, np.random.default_rng(seed).integers(0, 2, shape).astype(kind))
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    data = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return Whole(dtype, data.view(kind).reshape(shape))


def part(values: Array, layout: Optional[Layout], rank: int) -> Array:
    """The slice that a rank (counted in its stage) holds, by splitting one axis after another."""
    if layout is None:
        return values
    sizes = layout.dev_matrix
    coordinates = np.unravel_index(rank, sizes) if sizes else ()
    used = set()
    for axis, axes in enumerate(layout.tensor_map):
        for device_axis in axes:
            index = len(sizes) - 1 - device_axis
            values = np.split(values, sizes[index], axis=axis)[coordinates[index]]
            used.add(index)
    if layout.opt_shard_size:
        rest = [i for i in range(len(sizes)) if i not in used]
        copies = int(np.prod([sizes[i] for i in rest]))
        size = copies if layout.opt_shard_size == -1 else layout.opt_shard_size
        order = 0
        for i in rest:
            order = order * sizes[i] + coordinates[i]
        values = np.split(values, size, axis=0)[order % size]
    return values


def varint(value: int) -> bytes:
    out = b""
    value &= (1 << 64) - 1
    while value > 127:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def field(number: int, data: bytes) -> bytes:
    return varint(number * 8 + 2) + varint(len(data)) + data


def raw_record(name: str, dims: Sequence[int], dtype: str, content: bytes) -> bytes:
    tensor = b"".join(b"\x08" + varint(dim) for dim in dims)
    tensor += field(2, dtype.encode()) + field(3, content)
    return field(1, field(1, name.encode()) + field(2, tensor))


def ckpt_bytes(tensors: Mapping[str, Whole], *, crc: bool = False, slice_bytes: int = 0) -> bytes:
    """A ``.ckpt`` file's content."""
    out = b""
    for name, tensor in tensors.items():
        content = tensor.values.tobytes()
        dims = tensor.values.shape or (0,)
        step = slice_bytes or max(len(content), 1)
        for start in range(0, max(len(content), 1), step):
            out += raw_record(name, dims, tensor.dtype, content[start : start + step])
    if crc:
        out += b"crc_num" + zlib.crc32(out).to_bytes(10, "big")
    return out


@dataclass(frozen=True)
class CheckpointSet:
    """Folders of a set on disk."""

    root: Path
    model: Mapping[str, Whole]

    @property
    def shards(self) -> Path:
        return self.root / "checkpoint"

    @property
    def strategy(self) -> Path:
        return self.root / "strategy"

    def file(self, rank: int, step: str = "1_4") -> Path:
        return self.shards / f"rank_{rank}" / f"glm2_rank_{rank}-{step}.ckpt"


def write_set(
    root: Path,
    model: Mapping[str, Whole],
    stages: Sequence[Mapping[str, Layout]],
    *,
    step: str = "1_4",
    crc: bool = False,
    merged_strategy: bool = False,
) -> CheckpointSet:
    """Cut ``model`` by the layouts of each pipeline stage and write every rank's file, and the
    strategy files. What no stage names goes to all ranks whole."""
    made = CheckpointSet(root, model)
    size = next(iter(stages[0].values())).ranks
    strategy = Strategy(tuple(stages), size)
    named = {name for stage in stages for name in stage}
    made.strategy.mkdir(parents=True, exist_ok=True)
    if merged_strategy:
        (made.strategy / "merged_ckpt_strategy.ckpt").write_bytes(strategy_bytes(strategy))
    for number, stage in enumerate(stages):
        for local in range(size):
            rank = number * size + local
            tensors: Dict[str, Whole] = {}
            for name, tensor in model.items():
                if name in stage or name not in named:
                    cut = part(tensor.values, stage.get(name), local)
                    tensors[name] = Whole(tensor.dtype, np.array(cut, order="C"))
            path = made.file(rank, step)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(ckpt_bytes(tensors, crc=crc))
            if not merged_strategy:
                name = f"ckpt_strategy_rank_{rank}.ckpt"
                (made.strategy / name).write_bytes(strategy_bytes(strategy, number))
    return made


def split(matrix: Sequence[int], *axes: int, opt: Tuple[int, int] = (0, 0)) -> Layout:
    """Shorthand for a layout: ``split((2, 4), 0, -1)``; ``opt`` is (step, size)."""
    return Layout(tuple(matrix), tuple((a,) if a >= 0 else () for a in axes), *opt)
