"""What each rank holds: together everything, in memory and in files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm2.config import LoraConfig, ModelConfig
from glm2.division import Cut, Division, rank_config, rank_shapes
from glm2.errors import ConfigError

LAYER = "transformer.encoder.layers.0."
FUSED = LAYER + "self_attention.query_key_value.weight"


def config(heads: int = 8, groups: int = 2) -> ModelConfig:
    return ModelConfig(
        num_layers=1, hidden_size=24, ffn_hidden_size=48, kv_channels=4,
        num_attention_heads=heads, multi_query_group_num=groups, padded_vocab_size=64,
        seq_length=16, pet_config=LoraConfig(target_modules=".*(value|dense)", lora_rank=2),
    )  # fmt: skip


divisions = st.builds(
    Division,
    st.sampled_from([config(), config(groups=8), config(groups=4)]),
    st.integers(1, 4),
    st.sampled_from([1, 2, 4, 8]),
    st.booleans(),
    st.booleans(),
)


def whole(division: Division, name: str) -> np.ndarray:
    shape = division.shapes[name.replace("adam_m.", "")]
    return np.arange(np.prod(shape), dtype=np.int64).reshape(shape)


def covered(division: Division, name: str, cuts: list[Cut]) -> np.ndarray:
    """How many ranks hold each number."""
    counts = np.zeros_like(whole(division, name))
    for cut in cuts:
        columns = slice(*cut.columns) if cut.columns else slice(None)
        index = (cut.rows, columns) if counts.ndim == 2 else (cut.rows,)
        counts[index] += 1
    return counts


@given(divisions, st.sampled_from(["", "adam_m."]))
def test_all_ranks_together_hold_every_number(division: Division, moment: str) -> None:
    ranks = range(division.ranks)
    for name in division.shapes:
        name = moment + name
        memory = covered(division, name, [division.in_memory(name, rank) for rank in ranks])
        files = covered(division, name, [division.in_file(name, rank) for rank in ranks])
        assert memory.min() >= 1, name
        # In files, every number as often as every other: that is what a strategy file can say.
        written = division.written(name)
        assert files.min() == files.max() == division.ranks // (written.model * written.shards)


@given(divisions)
def test_a_rank_has_the_shapes_of_its_own_network(division: Division) -> None:
    shapes = rank_shapes(
        division.config, division.model_parallel, vocab_emb_dp=division.vocab_emb_dp
    )
    own = Division(rank_config(division.config, division.model_parallel))
    for rank in range(division.ranks):
        for name, shape in shapes.items():
            found = division.in_memory(name, rank).of(whole(division, name))
            assert found.shape == shape, name
            if not name.endswith("embedding_table"):  # which each rank may hold whole
                assert own.shapes[name] == shape


@pytest.mark.parametrize("model_parallel", [2, 4, 8])
def test_a_rank_has_the_keys_and_values_of_its_queries(model_parallel: int) -> None:
    network = config()  # 8 heads of 4 channels; heads 0-3 use group 0, heads 4-7 group 1
    division = Division(network, 1, model_parallel)
    for rank in range(model_parallel):
        rows = division.in_memory(FUSED, rank).rows
        own = rank_config(network, model_parallel)
        queries, keys, values = np.split(rows, [own.query_size, own.query_size + own.kv_size])
        groups = {head // 4 for head in queries // 4}
        assert set((keys - network.query_size) // 4) == groups
        assert set((values - network.query_size - network.kv_size) // 4) == groups
    assert division.copies == max(model_parallel // 2, 1)


def test_what_does_not_divide_is_refused_with_the_key() -> None:
    with pytest.raises(ConfigError, match="num_attention_heads 8 cannot be divided among 3"):
        rank_shapes(config(), 3)
