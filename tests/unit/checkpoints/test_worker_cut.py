"""The worker's cut as the orchestrator knows it, held against the worker's own."""

from __future__ import annotations

import pytest

from glm2.config import LoraConfig, ModelConfig
from glm2.division import Division
from orchestrator.checkpoints.assemble import WholeTensor
from orchestrator.checkpoints.worker_cut import WorkerCut, worker_cut, worker_strategy

CONFIG = ModelConfig(
    num_layers=1, hidden_size=32, ffn_hidden_size=48, kv_channels=8, num_attention_heads=8,
    multi_query_group_num=2, padded_vocab_size=64, seq_length=16,
    pet_config=LoraConfig(target_modules=".*(query_key_value|dense)"),
)  # fmt: skip


@pytest.mark.parametrize(
    "cut",
    [
        WorkerCut(1, 1, False, True),
        WorkerCut(4, 1, True, True),
        WorkerCut(2, 2, True, False),
        WorkerCut(3, 2, True, True),  # 64 rows do not divide among 3: some state stays whole
        WorkerCut(2, 8, True, True),
    ],
    ids=str,
)
def test_both_sides_cut_alike(cut: WorkerCut) -> None:
    division = Division(CONFIG, cut.data, cut.model, cut.shard_optimizer, cut.whole_embedding)
    names = [p + name for name in division.shapes for p in ("", "adam_m.", "adam_v.")]
    shapes = {name: division.shapes[name.removeprefix("adam_m.").removeprefix("adam_v.")]
              for name in names}  # fmt: skip
    tensors = [WholeTensor(n, "Float32", shape, (), (), None) for n, shape in shapes.items()]
    strategy = worker_strategy([*tensors, WholeTensor("step_num", "Int64", (), (), (), None)], cut)
    assert set(strategy.names()) == set(names)
    for name, shape in shapes.items():
        for rank in range(division.ranks):
            layout = strategy.layout(rank, name)
            assert layout is not None
            box = layout.box(rank, layout.piece_shape(shape))
            own = division.in_file(name, rank)
            columns = own.columns or ((0, shape[1]) if len(shape) > 1 else None)
            assert box[0] == (own.rows[0], own.rows[-1] + 1), (name, rank)
            assert len(shape) == 1 or box[1] == columns, (name, rank)


def test_what_a_configuration_leaves_open_is_filled_in() -> None:
    assert worker_cut({}, 4) == WorkerCut(4, 1, False, True)
    values = {
        "parallel_config": {"data_parallel": 0, "model_parallel": 2, "vocab_emb_dp": False},
        "parallel": {"enable_parallel_optimizer": True},
    }
    assert worker_cut(values, 8) == WorkerCut(4, 2, True, False)
