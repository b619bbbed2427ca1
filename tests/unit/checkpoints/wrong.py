"""Sets for the tests of what is refused: a model in several layouts, and ways to spoil it."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping

import numpy as np
import pytest

from orchestrator.checkpoints.layout import Layout
from orchestrator.checkpoints.merge import merge
from orchestrator.errors import CheckpointError
from tests.unit.checkpoints.sets import (
    CheckpointSet,
    Whole,
    ckpt_bytes,
    part,
    split,
    whole,
    write_set,
)

MODEL = {
    "embedding.weight": whole("Float16", (32, 8), 1),
    "dense.weight": whole("Float16", (8, 32), 2),
    "norm.weight": whole("Float32", (8,), 3),
    "global_step": Whole("Int32", np.array(40, np.int32)),
}
MP4 = {
    "embedding.weight": split((1, 4), 0, -1),
    "dense.weight": split((1, 4), -1, 0),
    "norm.weight": split((1, 4), -1),
}
DP4_OPT = {
    "embedding.weight": split((4,), -1, -1, opt=(1, 4)),
    "dense.weight": split((4,), -1, -1, opt=(1, 4)),
    "norm.weight": split((4,), -1),
}
DP4 = {name: Layout((4,), layout.tensor_map) for name, layout in DP4_OPT.items()}
DP2_MP2 = {
    "embedding.weight": split((2, 2), 0, -1),
    "dense.weight": split((2, 2), -1, 0),
    "norm.weight": split((2, 2), -1),
}


def refuse(made: CheckpointSet, *words: str, **options: object) -> str:
    """Merging must fail with all of ``words`` in the message, and leave nothing behind."""
    out = made.root / "out"
    with pytest.raises(CheckpointError) as caught:
        merge(made.shards, made.strategy, out, **options)  # type: ignore[arg-type]
    assert caught.value.exit_status == 10
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert not [path for path in out.rglob("*") if path.is_file()]
    return message


def rewrite(
    made: CheckpointSet, rank: int, model: Mapping[str, Whole], layouts: Mapping[str, Layout]
) -> None:
    tensors = {
        name: Whole(t.dtype, np.array(part(t.values, layouts.get(name), rank), order="C"))
        for name, t in model.items()
    }
    made.file(rank).write_bytes(ckpt_bytes(tensors))


def flip(path: Path, offset: int) -> None:
    """Flip a bit."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def pipeline(tmp_path: Path) -> CheckpointSet:
    """Two stages of two ranks, a parameter each."""
    stages = [{"embedding.weight": split((2,), 0, -1)}, {"dense.weight": split((2,), -1, 0)}]
    return write_set(tmp_path, {n: MODEL[n] for n in ("embedding.weight", "dense.weight")}, stages)
