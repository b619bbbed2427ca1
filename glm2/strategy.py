"""Strategy files: how each parameter of a rank's checkpoint is divided among the ranks.

They are written in MindSpore's own protobuf (ParallelStrategyMap of node_strategy.proto), so
that ``mindspore.merge_pipeline_strategys`` and ``transform_checkpoints`` read them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterable

from mindspore.train import node_strategy_pb2 as pb

from glm2.division import Division, owner


def write_strategy(folder: Path, rank: int, division: Division, names: Iterable[str]) -> Path:
    """Write ``ckpt_strategy_rank_N.ckpt`` for the tensors of a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"ckpt_strategy_rank_{rank}.ckpt"
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as out:
        out.write(strategy_map(division, names).SerializeToString())
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)
    return file


def strategy_map(division: Division, names: Iterable[str]) -> pb.ParallelStrategyMap:
    """The message. Ranks are numbered row by row in a matrix of data × model parallel."""
    strategy = pb.ParallelStrategyMap(current_stage=0)
    # MindSpore reads the pipeline stage of a file from its first operator.
    operator = strategy.parallel_strategy_item.add(node_name="glm2")
    operator.parallel_strategys.stage = 0
    operator.parallel_strategys.parallel_strategy.add(dim=[division.data_parallel])
    for name in names:
        written, axes = division.written(name), len(division.shapes[owner(name)])
        layouts = strategy.parallel_layout_item.add(param_name=name).parallel_layouts
        layouts.dev_matrix.add(dim=[division.data_parallel, division.model_parallel])
        layouts.tensor_map.add(dim=[0 if axis == written.axis else -1 for axis in range(axes)])
        layouts.param_split_shape.add()
        layouts.indices_offset.add()
        layouts.field = 0
        if written.shards > 1:
            # Ranks that hold the same piece are so far apart.
            step = 1 if written.axis is None else division.model_parallel
            layouts.opt_weight_shard_step, layouts.opt_weight_shard_size = step, written.shards
        else:
            layouts.opt_weight_shard_step = layouts.opt_weight_shard_size = 0
    return strategy
