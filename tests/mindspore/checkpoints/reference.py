"""Sets saved by MindSpore, and what MindSpore's own tools make of them.

Run as ``python -m tests.mindspore.checkpoints.reference ROOT``: one process for all cases, as
importing MindSpore takes seconds. For each case ``ROOT/<case>/`` holds ``checkpoint``,
``strategy`` and ``merged.ckpt`` (the merged strategy), and MindSpore's results in ``whole`` and,
where a target is given, ``resharded`` (its strategy in ``target.ckpt``). ``ROOT/other`` holds
files in forms of their own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Mapping, Sequence, Tuple

import mindspore as ms
import numpy as np
from mindspore.train import node_strategy_pb2 as pb

from orchestrator.checkpoints.layout import Layout
from tests.unit.checkpoints.sets import part, split

Stage = Dict[str, Layout]

SHAPES: Mapping[str, Tuple[object, Tuple[int, ...]]] = {
    "embedding.weight": (ms.float16, (16, 8)),
    "dense.weight": (ms.bfloat16, (8, 16)),
    "norm.weight": (ms.float32, (8,)),
    "bias": (ms.float16, (16,)),
}
SCALARS = {"global_step": np.array(40, np.int32), "scale_sense": np.array([1024.0], np.float32)}


@dataclass(frozen=True)
class Case:
    stages: Sequence[Stage]
    target: Sequence[Stage] = ()


def _with_moments(stage: Stage) -> Stage:
    return {p + name: cut for p in ("", "adam_m.", "adam_v.") for name, cut in stage.items()}


DP8_OPT = _with_moments(
    {
        "embedding.weight": split((8,), -1, -1, opt=(1, 8)),
        "dense.weight": split((8,), -1, -1, opt=(1, 8)),
        "norm.weight": split((8,), -1),
        "bias": split((8,), -1, opt=(1, 8)),
    }
)
MP4 = _with_moments(
    {
        "embedding.weight": split((1, 4), 0, -1),
        "dense.weight": split((1, 4), -1, 0),
        "norm.weight": split((1, 4), -1),
        "bias": split((1, 4), 0),
    }
)
DP2_MP2_OPT = _with_moments(
    {
        "embedding.weight": split((2, 2), 0, -1, opt=(2, 2)),
        "dense.weight": split((2, 2), -1, 0, opt=(2, 2)),
        "norm.weight": split((2, 2), -1),
        "bias": split((2, 2), 0, opt=(2, 2)),
    }
)
DP8_PARTIAL = _with_moments(
    {
        "embedding.weight": split((8,), -1, -1, opt=(1, 4)),
        "dense.weight": split((8,), -1, -1, opt=(1, 2)),
        "norm.weight": split((8,), -1),
        "bias": split((8,), -1, opt=(1, -1)),
    }
)
STAGE_0 = _with_moments({n: DP2_MP2_OPT[n] for n in ("embedding.weight", "bias")})
STAGE_1 = _with_moments({n: DP2_MP2_OPT[n] for n in ("dense.weight", "norm.weight")})
STAGE_1_PLAIN = _with_moments(
    {"dense.weight": split((2, 2), -1, 0), "norm.weight": split((2, 2), -1)}
)

CASES = {
    "dp8_opt": Case([DP8_OPT], [MP4]),
    "dp8_partial": Case([DP8_PARTIAL], [DP2_MP2_OPT]),
    "mp4": Case([MP4], [DP2_MP2_OPT]),
    "dp2_mp2_opt": Case([DP2_MP2_OPT], [DP8_OPT]),
    "dp2_mp2_pp2": Case([STAGE_0, STAGE_1]),
    "dp2_mp2_pp2_plain": Case([STAGE_0, STAGE_1_PLAIN]),
}


def main(root: Path) -> None:
    for name, case in CASES.items():
        make(root / name, case)
    make_other(root / "other")


def make(root: Path, case: Case) -> None:
    model = parameters()
    size = next(iter(case.stages[0].values())).ranks
    named = {name for stage in case.stages for name in stage}
    for number, stage in enumerate(case.stages):
        for local in range(size):
            rank = number * size + local
            own = {n: t for n, t in model.items() if n in stage or n not in named}
            save(
                root / "checkpoint" / f"rank_{rank}" / f"g_rank_{rank}-1_4.ckpt", own, stage, local
            )
            write_strategy(root / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt", stage, number)
    ms.merge_pipeline_strategys(str(root / "strategy"), str(root / "merged.ckpt"))
    source = str(root / "checkpoint")
    ms.transform_checkpoints(source, str(root / "whole"), "checkpoint_", str(root / "merged.ckpt"))
    if case.target:
        write_strategy(root / "target.ckpt", case.target[0], 0)
        ms.transform_checkpoints(
            source,
            str(root / "resharded"),
            "checkpoint_",
            str(root / "merged.ckpt"),
            str(root / "target.ckpt"),
        )


def make_other(root: Path) -> None:
    """One plain model in every form that MindSpore saves."""
    model = parameters()
    save(root / "plain.ckpt", model, {}, 0)
    save(root / "crc.ckpt", model, {}, 0, crc_check=True)
    known = {name: t for name, t in model.items() if t.dtype != ms.bfloat16}  # numpy's types
    save(root / "crc.safetensors", known, {}, 0, format="safetensors", crc_check=True)
    for mode in ("AES-GCM", "AES-CBC", "SM4-CBC"):
        key = {"enc_key": b"0123456789ABCDEF", "enc_mode": mode}
        save(root / f"{mode}.ckpt", model, {}, 0, **key)
    records = [{"name": "w", "data": ms.Tensor(np.arange(6, dtype=np.float32))}]
    extra = {"epoch": 3, "rate": 0.5, "done": True, "note": "текст"}
    ms.save_checkpoint(records, str(root / "texts.ckpt"), append_dict=extra)


def parameters() -> Dict[str, ms.Tensor]:
    rng = np.random.default_rng(1)
    model = {}
    for prefix in ("", "adam_m.", "adam_v."):
        for name, (dtype, shape) in SHAPES.items():
            values = ms.Tensor(rng.standard_normal(shape).astype(np.float32))
            model[prefix + name] = values.astype(ms.float32 if prefix else dtype)
    model.update({name: ms.Tensor(values) for name, values in SCALARS.items()})
    return model


def save(
    path: Path, model: Mapping[str, ms.Tensor], stage: Stage, rank: int, **how: object
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = []
    for name, tensor in model.items():
        if name in stage:
            values = tensor.astype(ms.float32).asnumpy()
            cut = np.array(part(values, stage[name], rank), order="C")
            tensor = ms.Tensor(cut).astype(tensor.dtype)
        records.append({"name": name, "data": tensor})
    ms.save_checkpoint(records, str(path), **how)


def write_strategy(path: Path, stage: Stage, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    strategy = pb.ParallelStrategyMap(current_stage=1)
    item = strategy.parallel_strategy_item.add(node_name="MatMul")
    item.parallel_strategys.stage = number
    item.parallel_strategys.parallel_strategy.add(dim=[1])
    for name, layout in stage.items():
        made = strategy.parallel_layout_item.add(param_name=name).parallel_layouts
        made.dev_matrix.add(dim=layout.dev_matrix)
        made.tensor_map.add(dim=[axes[0] if axes else -1 for axes in layout.tensor_map])
        made.param_split_shape.add()
        made.indices_offset.add()
        made.field = 0
        made.opt_weight_shard_step = layout.opt_shard_step
        made.opt_weight_shard_size = layout.opt_shard_size
    path.write_bytes(strategy.SerializeToString())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
