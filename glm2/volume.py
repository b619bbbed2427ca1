"""What ranks send each other in a training step, by arithmetic. Nothing here needs MindSpore."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, List, Tuple

from glm2.adapters import is_adapter
from glm2.describe import BYTES
from glm2.division import division_of
from glm2.settings import Settings
from glm2.targets import targets_in_row

if TYPE_CHECKING:
    from glm2.parallel import Layout

LARGEST = 1 << 22
"""Numbers that are sent at once, at most."""


@dataclass(frozen=True)
class Exchange:
    """A collective of a step, ``count`` times."""

    kind: str
    """all_reduce, all_gather or reduce_scatter."""
    group: str
    """Whose: ``data`` (the same weights) or ``model`` (the same rows)."""
    ranks: int
    numbers: int
    """Of the whole tensor: what is reduced, gathered, or scattered."""
    kind_of_number: str
    count: int

    @property
    def sent(self) -> float:
        """Least bytes that each rank must send: (n-1)/n of the tensor, twice for a sum that all
        have afterwards (Patarasuk and Yuan, 2009)."""
        nbytes = self.numbers * BYTES[self.kind_of_number]
        once = self.count * nbytes * (self.ranks - 1) / self.ranks
        return 2 * once if self.kind == "all_reduce" else once


def exchanges(settings: Settings, layout: Layout, rows: int) -> List[Exchange]:
    """The large collectives of a step of ``rows`` rows at a time on each rank.

    Model parallel as Megatron counts it: each layer adds its activations up twice in the forward
    and twice in the backward pass, the output layer once more; the shared embedding once.
    Without the few numbers of the loss and the norm, and without what recompute repeats.
    """
    config, division = settings.model, division_of(settings, layout)
    found: List[Exchange] = []
    model = layout.model_parallel
    if model > 1:
        sums = 4 * config.num_layers + 1 + (0 if division.vocab_emb_dp else 1)
        # Behind the last attention only what is learned: twice in the feed-forward block, and
        # the output layer's.
        for tokens, count in ((config.seq_length, sums - 3), (targets_in_row(settings), 3)):
            activations = rows * tokens * config.hidden_size
            count *= settings.accumulation
            found.append(
                Exchange("all_reduce", "model", model, activations, config.compute_dtype, count)
            )
    if layout.data_parallel > 1:
        numbers, kind = _gradients(settings, layout)
        kinds = ("reduce_scatter", "all_gather") if layout.optimizer_shard else ("all_reduce",)
        pieces = -(-numbers // LARGEST)
        share = -(-numbers // pieces // layout.data_parallel) * layout.data_parallel
        found += [Exchange(one, "data", layout.data_parallel, share, kind, pieces) for one in kinds]
    return found


def _gradients(settings: Settings, layout: Layout) -> Tuple[int, str]:
    """How many numbers the gradients of a rank have, and of which type they are sent."""
    division = division_of(settings, layout)
    names = [name for name in division.shapes if is_adapter(name)] or list(division.shapes)
    numbers = 0
    for name in names:
        shape, axis = division.shapes[name], division.axis(name)
        if axis is not None:
            own = len(division.numbers(name, layout.model_rank))
            shape = (*shape[:axis], own, *shape[axis + 1 :])
        numbers += prod(shape)
    adapters = settings.model.pet_config is not None
    kind = settings.model.param_init_type
    float32 = adapters or settings.accumulation > 1 or kind == "bfloat16"
    return numbers, "float32" if float32 else kind
