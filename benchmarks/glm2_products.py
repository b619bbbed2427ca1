"""The matrix products of one decoded token as a graph of MindSpore, for ``glm2_decode``."""

from __future__ import annotations

from typing import Dict, Sequence, Tuple

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops


class Products(nn.Cell):
    """Each layer's linear layers in turn, and the output layer, with nothing between them."""

    def __init__(
        self, weights: Dict[str, np.ndarray], linears: Sequence[Tuple[str, int]], layers: int
    ) -> None:
        super().__init__()
        names = [
            f"transformer.encoder.layers.{number}.{name}"
            for number in range(layers)
            for name, _ in linears
        ]
        names.append("transformer.output_layer.weight")
        self.weights = ParameterTuple([Parameter(Tensor(weights[n]), name=n) for n in names])
        self.product = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = self.product(x[:, : weight.shape[1]], weight)
        return x
