"""Dropout: how much it zeroes, that the seed decides, and that it is off outside of training."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops

from glm2.dropout import Dropout, set_seed

ONES = Tensor(np.ones((300, 200), np.float32))


def masks(cell: Dropout, *seed: int) -> np.ndarray:
    set_seed(*seed)
    return cell(ONES).asnumpy()


@pytest.fixture(scope="module")
def cell() -> Dropout:
    return Dropout(0.1, place=3).set_train()


def test_a_tenth_is_zero_and_the_mean_stays(cell: Dropout) -> None:
    found = masks(cell, 0, 1)
    np.testing.assert_allclose(np.unique(found), [0.0, 1 / 0.9], rtol=1e-6)
    assert found.mean() == pytest.approx(1.0, abs=0.01)
    for axis in range(2):  # no row or column is dropped as one
        assert (found == 0).mean(axis).max() < 0.35
    # As many neighbours are zero together as independent draws would have.
    both = (found[:, 1:] == 0) & (found[:, :-1] == 0)
    assert both.mean() == pytest.approx(0.01, abs=0.003)
    both = (found[1:] == 0) & (found[:-1] == 0)
    assert both.mean() == pytest.approx(0.01, abs=0.003)


def test_the_seed_decides(cell: Dropout) -> None:
    first = masks(cell, 0, 1)
    np.testing.assert_array_equal(masks(cell, 0, 1), first)
    for other in (masks(cell, 0, 2), masks(cell, 1, 1)):
        assert ((other == 0) & (first == 0)).mean() == pytest.approx(0.01, abs=0.003)


def test_layers_have_masks_of_their_own(cell: Dropout) -> None:
    first = masks(cell, 0, 1)
    other = masks(Dropout(0.1, place=4).set_train(), 0, 1)
    assert ((other == 0) & (first == 0)).mean() == pytest.approx(0.01, abs=0.003)


def test_the_gradient_has_the_mask_of_the_forward_pass(cell: Dropout) -> None:
    set_seed(5)

    def loss(x: Tensor) -> Tensor:
        return ops.square(cell(x)).sum()

    gradient = ms.grad(loss)(ONES).asnumpy()
    np.testing.assert_allclose(gradient, 2 * cell(ONES).asnumpy() / 0.9, rtol=1e-5)


def test_outside_of_training_nothing_happens_and_the_seed_is_no_weight() -> None:
    quiet = Dropout(0.5, place=1)
    quiet.set_train(False)
    np.testing.assert_array_equal(quiet(ONES).asnumpy(), ONES.asnumpy())
    assert list(quiet.get_parameters()) == []


def test_a_part_of_the_rows_and_columns_has_the_mask_that_it_has_in_the_whole(
    cell: Dropout,
) -> None:
    whole = masks(cell, 7)
    part = Dropout(0.1, place=3).set_train()
    part.first_column = 50
    set_seed(7, first_row=100)
    np.testing.assert_array_equal(part(ONES[100:, 50:]).asnumpy(), whole[100:, 50:])
