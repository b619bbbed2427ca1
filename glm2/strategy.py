"""Strategy files: how each parameter of a rank's checkpoint is divided among the ranks.

They are written in MindSpore's own protobuf (ParallelStrategyMap of node_strategy.proto), so
that ``mindspore.merge_pipeline_strategys`` and ``transform_checkpoints`` read them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Mapping, Tuple

from mindspore.train import node_strategy_pb2 as pb

from glm2.parallel import Layout


def write_strategy(folder: Path, layout: Layout, shapes: Mapping[str, Tuple[int, ...]]) -> Path:
    """Write ``ckpt_strategy_rank_N.ckpt`` for parameters of the given local shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"ckpt_strategy_rank_{layout.rank}.ckpt"
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as out:
        out.write(strategy_map(layout, shapes).SerializeToString())
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(file)
    return file


def strategy_map(layout: Layout, shapes: Mapping[str, Tuple[int, ...]]) -> pb.ParallelStrategyMap:
    """The message: every rank holds every parameter whole (data parallel)."""
    strategy = pb.ParallelStrategyMap(current_stage=0)
    # MindSpore reads the pipeline stage of a file from its first operator.
    operator = strategy.parallel_strategy_item.add(node_name="glm2")
    operator.parallel_strategys.stage = 0
    operator.parallel_strategys.parallel_strategy.add(dim=[layout.data_parallel])
    for name, shape in shapes.items():
        layouts = strategy.parallel_layout_item.add(param_name=name).parallel_layouts
        layouts.dev_matrix.add(dim=[layout.data_parallel, layout.model_parallel])
        layouts.tensor_map.add(dim=[-1] * len(shape))
        layouts.param_split_shape.add()
        layouts.indices_offset.add()
        layouts.field = 0
        layouts.opt_weight_shard_step = 0
        layouts.opt_weight_shard_size = 0
    return strategy
