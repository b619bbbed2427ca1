"""The tensors of a rank as its checkpoints hold them, and back: see ``division.Division``.

What differs is exchanged among all ranks once a save, tensor by tensor: each puts its rows into a
whole tensor of zeros, the sum has them all, and each takes those that its file holds.
"""

from __future__ import annotations

import re
from typing import Callable, Dict, List, Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from glm2.division import Cut, Division, owner
from glm2.parallel import Layout, sum_over_ranks

_Cuts = Callable[[str, int], Cut]


class FileForm:
    """Of the weights and the optimizer's state of this rank."""

    def __init__(self, division: Division, layout: Layout) -> None:
        self.division, self.layout = division, layout
        self._equal: Dict[str, bool] = {}

    def written(self, parameters: Sequence[Parameter]) -> List[Parameter]:
        """As the checkpoint holds them. All ranks must call this together."""
        found = []
        for p in parameters:
            if not self._is_equal(p.name):
                value = self._moved(p.name, p, self.division.in_memory, self.division.in_file)
                p = Parameter(value, name=p.name, requires_grad=False)
            found.append(p)
        return found

    def empty(self, parameters: Sequence[Parameter]) -> List[Parameter]:
        """What a checkpoint is read into: the parameters where it holds them as they are, zeros
        in their place elsewhere."""
        found = []
        for p in parameters:
            if not self._is_equal(p.name):
                shape = (len(self.division.in_file(p.name, self.layout.rank).rows), *p.shape[1:])
                p = Parameter(ops.zeros(shape, p.dtype), name=p.name, requires_grad=False)
            found.append(p)
        return found

    def take(self, read: Sequence[Parameter], parameters: Sequence[Parameter]) -> None:
        """Fill the parameters from what ``empty`` gave. All ranks must call this together."""
        for value, p in zip(read, parameters):
            if value is not p:
                division = self.division
                p.set_data(self._moved(p.name, value, division.in_file, division.in_memory))

    def _is_equal(self, name: str) -> bool:
        """Whether each rank's file holds what the rank has in memory. Layers are alike."""
        kind = re.sub(r"\.layers\.\d+\.", ".layers.0.", name)
        if kind not in self._equal:
            division = self.division
            self._equal[kind] = all(
                np.array_equal(division.in_memory(kind, r).rows, division.in_file(kind, r).rows)
                for r in range(division.ranks)
            )
        return self._equal[kind]

    def _moved(self, name: str, value: Tensor, source: _Cuts, target: _Cuts) -> Tensor:
        ranks = range(self.division.ranks)
        have, want = source(name, self.layout.rank), target(name, self.layout.rank)
        # float32 holds every float16 and bfloat16 exactly.
        rows = value.astype(ms.float32).asnumpy()
        total = self.division.shapes[owner(name)][0]
        whole = np.zeros((total, *rows.shape[1:]), np.float32)
        if all(np.isin(target(name, r).rows, source(name, r).rows).all() for r in ranks):
            whole[have.rows] = rows
        else:
            owners = np.zeros(total, np.int64)
            for r in reversed(ranks):
                owners[source(name, r).rows] = r
            mine = owners[have.rows] == self.layout.rank
            whole[have.rows[mine]] = rows[mine]
            whole = sum_over_ranks(self.layout, whole)
        return Tensor(want.of(whole)).astype(value.dtype)
