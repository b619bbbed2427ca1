"""The parts with gradients of their own, against the same formulas in float64."""

from __future__ import annotations

from typing import Callable, Tuple

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from glm2.fused import FEW_ROWS, RootMeanSquare, SwiGlu

SIZE, EPS = 24, 1e-5
Pair = Tuple[np.ndarray, np.ndarray]


def normed(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight


def swiglu(both: np.ndarray) -> np.ndarray:
    gate, up = np.split(both, 2, -1)
    return gate / (1 + np.exp(-gate)) * up


def slopes(
    function: Callable[[np.ndarray], np.ndarray], at: np.ndarray, towards: np.ndarray
) -> np.ndarray:
    """Gradient of ``sum(function(at) · towards)`` by central differences, in float64."""
    found = np.empty_like(at)
    for place in np.ndindex(*at.shape):
        step = np.zeros_like(at)
        step[place] = 1e-6
        found[place] = ((function(at + step) - function(at - step)) * towards).sum() / 2e-6
    return found


class Total(nn.Cell):
    """Sum of what a part gives, each number weighted."""

    def __init__(self, part: nn.Cell, towards: np.ndarray) -> None:
        super().__init__()
        self.part, self.towards = part, single(towards)

    def construct(self, *inputs: Tensor) -> Tensor:
        found, _ = self.part(*inputs)
        return (found * self.towards).sum()


@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
class TestRootMeanSquare:
    """Few rows take another way than many; with small numbers, epsilon is most of the root."""

    def numbers(self, rows: int, scale: float) -> Pair:
        draw = np.random.default_rng(rows)
        # Far from mean 0, which a layer norm would subtract.
        return scale * (draw.normal(size=(rows, SIZE)) + 3.0), draw.uniform(0.5, 1.5, SIZE)

    def test_the_result_is_that_of_the_formula(self, rows: int, scale: float) -> None:
        x, weight = self.numbers(rows, scale)
        found, factor = RootMeanSquare(SIZE, EPS)(single(x), single(weight))
        np.testing.assert_allclose(found.asnumpy(), normed(x, weight), rtol=3e-6)
        root = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + EPS)
        np.testing.assert_allclose(factor.asnumpy(), root, rtol=3e-6)

    def test_the_gradients_are_those_of_the_formula(self, rows: int, scale: float) -> None:
        x, weight = self.numbers(rows, scale)
        towards = np.random.default_rng(7).normal(size=x.shape)
        total = Total(RootMeanSquare(SIZE, EPS), towards)
        dx, dweight = ms.grad(total, (0, 1))(single(x), single(weight))
        expected = slopes(lambda at: normed(at * scale, weight), x / scale, towards) / scale
        np.testing.assert_allclose(dx.asnumpy() * scale, expected * scale, rtol=1e-4, atol=1e-5)
        expected = slopes(lambda at: normed(x, at), weight, towards)
        np.testing.assert_allclose(dweight.asnumpy(), expected, rtol=1e-4, atol=1e-5)


def test_swiglu_and_its_gradient_are_those_of_the_formula() -> None:
    draw = np.random.default_rng(3)
    both, towards = 3.0 * draw.normal(size=(5, 2 * SIZE)), draw.normal(size=(5, SIZE))
    found, _ = SwiGlu()(single(both))
    np.testing.assert_allclose(found.asnumpy(), swiglu(both), rtol=1e-5, atol=1e-6)
    gradient = ms.grad(Total(SwiGlu(), towards))(single(both)).asnumpy()
    np.testing.assert_allclose(gradient, slopes(swiglu, both, towards), rtol=1e-4, atol=1e-5)


def single(values: np.ndarray) -> Tensor:
    return Tensor(values.astype(np.float32))
