"""What each of several ranks holds of every weight when they share the layers (model parallel).

Megatron's scheme: the first projection of attention and of the feed-forward block is divided by
outputs, the second by inputs, the vocabulary by rows. Nothing here needs MindSpore.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, Optional, Tuple

import numpy as np

from glm2.adapters import DOWN, adapter_shapes
from glm2.config import ModelConfig
from glm2.errors import ConfigError
from glm2.weights import Shape, weight_shapes

if TYPE_CHECKING:
    from glm2.parallel import Layout
    from glm2.settings import Settings

MOMENTS = ("adam_m.", "adam_v.")
_OUTPUTS = ("query_key_value", "dense_h_to_4h", "output_layer")
_INPUTS = ("self_attention.dense", "dense_4h_to_h")


def divided_axis(name: str, *, vocab_emb_dp: bool) -> Optional[int]:
    """The axis of a weight or adapter that ranks share; None: each holds it whole.

    >>> divided_axis("transformer.encoder.layers.0.mlp.dense_4h_to_h.weight", vocab_emb_dp=True)
    1
    """
    layer, _, kind = name.rpartition(".")
    if kind == "embedding_table":
        return None if vocab_emb_dp else 0
    if layer.endswith(_OUTPUTS):
        return None if kind == DOWN else 0
    if layer.endswith(_INPUTS):
        return 1 if kind in ("weight", DOWN) else None
    return None


@dataclass(frozen=True)
class Cut:
    """The part of a tensor that a rank has: rows by number, and a range of columns."""

    rows: np.ndarray
    """Numbers along axis 0, int64."""
    columns: Optional[Tuple[int, int]] = None
    """First and last + 1 along axis 1; None: all."""

    def of(self, whole: np.ndarray) -> np.ndarray:
        """That part of a whole tensor, or of one that has all rows but only these columns."""
        if self.columns and whole.shape[1] != self.columns[1] - self.columns[0]:
            whole = whole[:, self.columns[0] : self.columns[1]]
        return np.ascontiguousarray(whole[self.rows])


@dataclass(frozen=True)
class Written:
    """How a tensor is divided in checkpoint files, as strategy files can say it: in ``model``
    pieces along ``axis``, and each of them in ``shards`` along axis 0."""

    axis: Optional[int]
    model: int
    shards: int
    """Ranks that share a piece of the optimizer's state; 1: each has all of it."""


@dataclass(frozen=True)
class Division:
    """Which part of every tensor each rank holds, in memory and in its checkpoints.

    In memory a rank has the heads and channels that it works on: of a fused projection, rows from
    several places. MindSpore's strategy files know neighbouring rows only; in files, the rows of
    a tensor are therefore in their order, and each rank has the next of them.
    """

    config: ModelConfig
    data_parallel: int = 1
    model_parallel: int = 1
    optimizer_shard: bool = False
    vocab_emb_dp: bool = True

    @property
    def ranks(self) -> int:
        return self.data_parallel * self.model_parallel

    @property
    def copies(self) -> int:
        """Ranks of a model-parallel group that hold the same keys and values."""
        return max(self.model_parallel // self.config.groups, 1)

    @functools.cached_property
    def shapes(self) -> Dict[str, Shape]:
        """Whole shape of every weight and adapter."""
        return {**weight_shapes(self.config), **adapter_shapes(self.config)}

    def axis(self, name: str) -> Optional[int]:
        """The axis along which ranks share a tensor; None: each of them holds it whole."""
        if self.model_parallel == 1:
            return None
        return divided_axis(owner(name), vocab_emb_dp=self.vocab_emb_dp)

    def numbers(self, name: str, model_rank: int) -> np.ndarray:
        """Rows or columns of a divided weight that a rank works on, in the order of its own."""
        axis = self.axis(name)
        size = self.shapes[owner(name)][0 if axis is None else axis]
        if "query_key_value" in name:
            return self._fused(model_rank)
        if "dense_h_to_4h" in name:  # gate | up
            half = size // 2
            return np.concatenate([start + self._equal(half, model_rank) for start in (0, half)])
        return self._equal(size, model_rank)

    def in_memory(self, name: str, rank: int) -> Cut:
        """What a rank works with; of the optimizer's state, what it keeps."""
        shape, axis = self.shapes[owner(name)], self.axis(name)
        data_rank, model_rank = divmod(rank, self.model_parallel)
        rows, columns = np.arange(shape[0]), None
        if axis == 0:
            rows = self.numbers(name, model_rank)
        elif axis == 1:
            own = self.numbers(name, model_rank)
            columns = (int(own[0]), int(own[-1]) + 1)
        if is_moment(name) and self.is_sharded(len(rows)):
            rows = np.split(rows, self.data_parallel)[data_rank]
        return Cut(rows, columns)

    def in_file(self, name: str, rank: int) -> Cut:
        """What the checkpoint of a rank holds."""
        shape, written = self.shapes[owner(name)], self.written(name)
        data_rank, model_rank = divmod(rank, self.model_parallel)
        rows, columns = np.arange(shape[0]), None
        if written.axis == 0:
            rows = np.split(rows, written.model)[model_rank]
        elif written.axis == 1:
            own = self.numbers(name, model_rank)
            columns = (int(own[0]), int(own[-1]) + 1)
        if written.shards > 1:
            place = rank if written.axis is None else data_rank
            rows = np.split(rows, written.shards)[place]
        return Cut(rows, columns)

    def written(self, name: str) -> Written:
        """How the tensor is divided in checkpoint files.

        Rows that cannot be divided evenly stay whole.
        """
        shape, axis = self.shapes[owner(name)], self.axis(name)
        if axis is not None and shape[axis] % self.model_parallel:
            axis = None
        rows = shape[0] // (self.model_parallel if axis == 0 else 1)
        holders = self.data_parallel if axis is not None else self.ranks
        shared = is_moment(name) and self.is_sharded(holders) and rows % holders == 0
        return Written(axis, self.model_parallel if axis is not None else 1,
                       holders if shared else 1)  # fmt: skip

    def is_sharded(self, rows: int) -> bool:
        """Whether the optimizer's state of so many rows on a rank is divided among data ranks."""
        sharded = self.optimizer_shard and self.data_parallel > 1
        return sharded and rows % self.data_parallel == 0

    def _equal(self, size: int, model_rank: int) -> np.ndarray:
        share = size // self.model_parallel
        return np.arange(model_rank * share, (model_rank + 1) * share)

    def _fused(self, model_rank: int) -> np.ndarray:
        """Rows of the queries, keys and values of a rank's heads."""
        config = self.config
        groups = rank_groups(config, self.model_parallel)
        first = model_rank * config.groups // self.model_parallel
        kv = np.arange(first * config.kv_channels, (first + groups) * config.kv_channels)
        keys, values = config.query_size, config.query_size + config.kv_size
        return np.concatenate((self._equal(config.query_size, model_rank), keys + kv, values + kv))


def division_of(settings: Settings, layout: Layout) -> Division:
    """The division of a run's tensors among its ranks."""
    return Division(
        settings.model,
        layout.data_parallel,
        layout.model_parallel,
        layout.optimizer_shard,
        settings.parallel.vocab_emb_dp,
    )


def owner(name: str) -> str:
    """The weight that a tensor of the optimizer's state belongs to; a weight itself.

    >>> owner("adam_m.a.weight")
    'a.weight'
    """
    return name[len(MOMENTS[0]) :] if is_moment(name) else name


def is_moment(name: str) -> bool:
    """Whether a tensor is a part of the optimizer's state."""
    return name.startswith(MOMENTS)


def rank_config(config: ModelConfig, model_parallel: int) -> ModelConfig:
    """The network that one of ``model_parallel`` ranks runs: a narrower one of the same depth."""
    if model_parallel == 1:
        return config
    return dataclasses.replace(
        config,
        num_attention_heads=config.num_attention_heads // model_parallel,
        multi_query_group_num=rank_groups(config, model_parallel),
        multi_query_attention=True,
        ffn_hidden_size=config.ffn_hidden_size // model_parallel,
        padded_vocab_size=config.padded_vocab_size // model_parallel,
    )


def rank_groups(config: ModelConfig, model_parallel: int) -> int:
    """Key/value groups on each rank; with more ranks than groups, ranks share copies of one."""
    return max(config.groups // model_parallel, 1)


def rank_shapes(
    config: ModelConfig, model_parallel: int = 1, *, vocab_emb_dp: bool = True
) -> Dict[str, Shape]:
    """Name and shape of every weight and adapter as one of ``model_parallel`` ranks holds it.

    Raises ConfigError when the network cannot be divided so.
    """
    check_divisible(config, model_parallel, vocab_emb_dp=vocab_emb_dp)
    heads = config.num_attention_heads // model_parallel
    fused = (heads + 2 * rank_groups(config, model_parallel)) * config.kv_channels
    shapes: Dict[str, Shape] = {}
    for name, shape in {**weight_shapes(config), **adapter_shapes(config)}.items():
        axis = divided_axis(name, vocab_emb_dp=vocab_emb_dp)
        if axis is None:
            shapes[name] = shape
            continue
        # Queries are divided; keys and values may be copied, so their part is no simple share.
        own = fused if "query_key_value" in name else shape[axis] // model_parallel
        shapes[name] = (*shape[:axis], own, *shape[axis + 1 :])
    return shapes


def check_divisible(config: ModelConfig, model_parallel: int, *, vocab_emb_dp: bool = True) -> None:
    """Raise ConfigError unless so many ranks can share the layers."""
    for what in ("num_attention_heads", "ffn_hidden_size", "padded_vocab_size"):
        if getattr(config, what) % model_parallel:
            raise ConfigError(
                f"model_config.{what} {getattr(config, what)} cannot be divided among "
                f"{model_parallel} ranks",
                hint=f"make parallel_config.model_parallel a divisor of {what}",
            )
    groups = config.groups
    if groups % model_parallel and model_parallel % groups:
        raise ConfigError(
            f"{groups} key/value groups cannot be divided among {model_parallel} ranks",
            hint="make parallel_config.model_parallel a divisor or a multiple of the groups",
        )
