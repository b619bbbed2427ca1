"""What a step's collectives send, counted, against the least for the layout."""

from __future__ import annotations

import pytest

from benchmarks.glm2_parallel import Shape, volume


@pytest.mark.parametrize(
    ("shape", "more"),
    [
        (Shape(8, 1, shared=True), ()),
        (Shape(1, 8), ("parallel_config.vocab_emb_dp=False",)),
        (Shape(2, 2, shared=True), ("model.model_config.num_layers=1",)),
    ],
    ids=str,
)
def test_at_most_a_tenth_above_the_least(shape: Shape, more: tuple) -> None:
    sent, least = volume(shape, more)
    assert least <= sent <= 1.1 * least
