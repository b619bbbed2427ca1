"""Any layout that MindSpore could give a parameter, for laws that hold for all."""

from __future__ import annotations

from typing import List

import numpy as np
from hypothesis import strategies as st

from orchestrator.checkpoints.layout import Layout


@st.composite
def layouts(draw: st.DrawFn, ranks: int = 8) -> Layout:
    """Any layout of a tensor of shape (16, 16, 16) on 8 ranks."""
    matrix = draw(st.sampled_from([(8,), (2, 4), (4, 2), (2, 2, 2), (1, 8), (2, 1, 4)]))
    axes = draw(st.permutations(range(len(matrix))))
    used = draw(st.integers(0, len(matrix)))
    tensor_map: List[List[int]] = [[], [], []]
    for axis in axes[:used]:
        tensor_map[draw(st.integers(0, 2))].append(axis)
    cut = tuple(tuple(entry) for entry in tensor_map)
    free = [i for i, n in enumerate(matrix) if n > 1 and len(matrix) - 1 - i not in axes[:used]]
    if not free or not draw(st.booleans()):
        return Layout(matrix, cut)
    copies = int(np.prod([matrix[i] for i in free]))
    step = int(np.prod(matrix[free[0] + 1 :])) if len(free) == 1 else 1
    size = draw(st.sampled_from([-1, *(n for n in (2, 4, 8) if copies % n == 0)]))
    try:
        return Layout(matrix, cut, step, size)
    except ValueError:
        return Layout(matrix, cut)
