"""AdamW, the learning rate's course and the dynamic loss scale."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Sequence, Tuple

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from glm2.settings import LossScale, Optimizer, Schedule


class AdamW(nn.Cell):
    """AdamW with bias correction and float32 moments (equal to ``torch.optim.AdamW``).

    The moments are named ``adam_m.<weight>`` and ``adam_v.<weight>`` as in MindFormers'
    checkpoints. Weights with one axis (norms, biases) are not decayed.

    On CPU, float32 weights are updated by MindSpore's Adam in one pass, once they are decayed. Its
    AdamWeightDecay, which does both, takes five times as long as Adam alone.
    """

    def __init__(
        self, weights: Sequence[Parameter], settings: Optimizer, shares: Sequence[int] = ()
    ) -> None:
        """``shares`` are the numbers of pieces along axis 0 that each weight's state is cut into,
        of which this rank has one; none are."""
        super().__init__(auto_prefix=False)
        self.weights = ParameterTuple(weights)
        self.shares = tuple(shares) or (1,) * len(weights)
        both = list(zip(weights, self.shares))
        self.m = ParameterTuple([_moment("adam_m", w, share) for w, share in both])
        self.v = ParameterTuple([_moment("adam_v", w, share) for w, share in both])
        self.beta1, self.beta2, self.eps = settings.beta1, settings.beta2, settings.eps
        on_cpu = ms.get_context("device_target") == "CPU"
        self.fused = tuple(on_cpu and w.dtype == ms.float32 for w in weights)
        self.kernel = ops.Adam()
        self.decay = tuple(settings.weight_decay if w.ndim > 1 else 0.0 for w in weights)

    def construct(self, gradients: Tuple[Tensor, ...], lr: Tensor, updates: Tensor) -> bool:
        """One update, the ``updates``-th (from 1, float32 scalar), with learning rate ``lr``."""
        correct = self.corrections(updates)
        for i in range(len(gradients)):
            self.update(i, gradients[i], lr, correct)
        return True

    def corrections(self, updates: Tensor) -> Tuple[Tensor, Tensor]:
        """What the moments of the ``updates``-th update are divided by."""
        return 1.0 - ops.pow(self.beta1, updates), 1.0 - ops.pow(self.beta2, updates)

    def update(self, i: int, gradient: Tensor, lr: Tensor, correct: Tuple[Tensor, Tensor]) -> bool:
        """Change weight number ``i`` and its moments."""
        if not self.fused[i]:
            weight = self.weights[i]
            ops.assign(weight, self.moved(i, weight, gradient, lr, correct))
            return True
        weight = self.weights[i]
        if self.decay[i] > 0.0:
            ops.assign(weight, weight * (1.0 - lr * self.decay[i]))
        # The kernel divides m/c1 by (sqrt(v) + epsilon) / sqrt(c2), with c1 and c2 of the powers.
        self.kernel(
            weight, self.m[i], self.v[i], 1.0 - correct[0], 1.0 - correct[1], lr, self.beta1,
            self.beta2, ops.sqrt(correct[1]) * self.eps, gradient,
        )  # fmt: skip
        return True

    def moved(
        self, i: int, weight: Tensor, gradient: Tensor, lr: Tensor, correct: Tuple[Tensor, Tensor]
    ) -> Tensor:
        """Weight number ``i``, or the piece of it whose moments are here, after the update of the
        moments."""
        g = gradient.astype(ms.float32)
        m = self.m[i] * self.beta1 + g * (1.0 - self.beta1)
        v = self.v[i] * self.beta2 + ops.square(g) * (1.0 - self.beta2)
        full = weight.astype(ms.float32)
        step = (m / correct[0]) / (ops.sqrt(v / correct[1]) + self.eps) + self.decay[i] * full
        ops.assign(self.m[i], m)
        ops.assign(self.v[i], v)
        return (full - lr * step).astype(weight.dtype)


def _moment(prefix: str, weight: Parameter, share: int) -> Parameter:
    shape = (weight.shape[0] // share, *weight.shape[1:])
    return Parameter(
        ops.zeros(shape, ms.float32), name=f"{prefix}.{weight.name}", requires_grad=False
    )


def learning_rate(schedule: Schedule, update: int, total: int) -> float:
    """The rate of the update number ``update`` (from 0) of ``total``.

    Rises linearly from 0 over ``warmup_steps``, then falls to ``end`` as a polynomial:
    MindFormers' PolynomialWithWarmUpLR.

    >>> learning_rate(Schedule(learning_rate=1.0, end=0.0), 5, 10)
    0.5
    """
    total = schedule.total_steps if schedule.total_steps > 0 else total
    if update < schedule.warmup_steps:
        return schedule.learning_rate * update / schedule.warmup_steps
    decay_steps = max(total - schedule.warmup_steps, 1)
    left = max(1.0 - (update - schedule.warmup_steps) / decay_steps, 0.0)
    return (schedule.learning_rate - schedule.end) * left**schedule.power + schedule.end


@dataclass(frozen=True)
class Scale:
    """The loss scale in use and how many good steps it has seen. A scale of 1 never changes."""

    value: float
    good_steps: int = 0
    dynamic: bool = True

    def after(self, overflow: bool, settings: LossScale) -> Scale:
        """The scale of the next step: less after an overflow, more after a window of good ones."""
        if not self.dynamic:
            return self
        if overflow:
            return replace(self, value=max(self.value / settings.factor, 1.0), good_steps=0)
        if self.good_steps + 1 >= settings.window:
            return replace(self, value=self.value * settings.factor, good_steps=0)
        return replace(self, good_steps=self.good_steps + 1)
