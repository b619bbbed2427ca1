"""Which tokens of a batch are learned, and when the others are left out."""

from __future__ import annotations

from typing import Tuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glm2.config import IGNORED_LABEL
from glm2.settings import find_config, load_settings
from glm2.targets import find_targets, targets_in_row

MODEL = "model.model_config."


@st.composite
def batches(draw: st.DrawFn) -> Tuple[np.ndarray, int]:
    """Labels [B, T], and a number of tokens that is enough for each row."""
    rows, length = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    tokens = st.one_of(st.just(IGNORED_LABEL), st.integers(0, 99))
    row = st.lists(tokens, min_size=length, max_size=length)
    labels = np.array(draw(st.lists(row, min_size=rows, max_size=rows)), np.int32)
    least = int((labels[:, 1:] != IGNORED_LABEL).sum(1).max())
    return labels, draw(st.integers(max(least, 1), length + 2))


@given(batches())
def test_each_learned_token_is_predicted_once_by_the_token_before_it(
    batch: Tuple[np.ndarray, int],
) -> None:
    labels, most = batch
    places, chosen = find_targets(labels, most)
    rows, length = labels.shape
    assert places.dtype == chosen.dtype == np.int32
    assert places.shape == chosen.shape == (rows * min(most, length),)
    assert len(set(places)) == len(places)
    found = {int(p): int(t) for p, t in zip(places, chosen) if t != IGNORED_LABEL}
    expected = {
        row * length + token - 1: int(labels[row, token])
        for row in range(rows)
        for token in range(1, length)
        if labels[row, token] != IGNORED_LABEL
    }
    assert found == expected


def test_a_row_that_learns_too_much_is_refused() -> None:
    with pytest.raises(ValueError, match="a row learns 3 tokens, more than 2"):
        find_targets(np.array([[1, 2, 3, 4]], np.int32), most=2)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), 49),
        (("train_dataset.ignore_pad_token_for_loss=False",), 97),
        # An adapter behind the last attention has dropout for each token by its number.
        ((MODEL + "pet_config.pet_type=lora",), 49),
        ((MODEL + "pet_config.pet_type=lora", MODEL + "pet_config.target_modules=.*mlp.*"), 97),
        ((MODEL + "pet_config.pet_type=lora", MODEL + "pet_config.target_modules=.*output.*"), 97),
    ],
)
def test_places_are_fewer_than_tokens_where_that_spares_work(
    overrides: Tuple[str, ...], expected: int
) -> None:
    assert targets_in_row(load_settings(find_config("tiny_cpu"), overrides)) == expected
