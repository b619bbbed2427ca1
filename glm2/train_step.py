"""One step of training as graphs: forward, backward, sum over ranks, clipping and update."""

from __future__ import annotations

from typing import NamedTuple, Sequence, Tuple, Union

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from glm2.collectives import AllReduce, data_group, world
from glm2.config import IGNORED_LABEL
from glm2.division import division_of
from glm2.dropout import set_seed
from glm2.model import Glm2, loss_by
from glm2.optimizer import AdamW
from glm2.optimizer_shard import Shards, SharedAdamW, SumGradients, SumOfSquares
from glm2.parallel import Layout, sum_over_ranks
from glm2.settings import Settings
from glm2.targets import find_targets, targets_in_row


class StepResult(NamedTuple):
    """What a step found. All ranks find the same."""

    loss: float
    """Mean over the learned tokens of the whole global batch."""
    norm: float
    """Global norm of the gradients before clipping."""
    finite: bool
    """Whether the gradients were finite; otherwise nothing was updated."""
    stops: int
    """Ranks that were asked to stop."""


class StepNumbers(NamedTuple):
    """The scalars of a step."""

    learning_rate: float
    updates: int
    """Number of this update, from 1."""
    loss_scale: float
    stop: bool
    """Whether this rank was asked to stop: all learn it in the same step, so that none waits for
    another."""

    def tensors(self) -> Tuple[Tensor, ...]:
        """The same as float32 scalars."""
        return tuple(Tensor(float(number), ms.float32) for number in self)


class TrainStep(nn.Cell):
    """A step of one batch, as one graph.

    The loss is the mean over the learned tokens of the whole global batch, so that the same
    rows give the same step however many ranks share them.
    """

    def __init__(self, model: Glm2, settings: Settings, layout: Layout) -> None:
        super().__init__(auto_prefix=False)
        self.weights = ParameterTuple(model.trainable_params())
        self.update = Update(self.weights, settings, layout)
        self.add_up = AllReduce(world(layout))
        self.model_parallel = layout.model_parallel
        self.seed, self.data_rank = settings.seed, layout.data_rank
        self.most = targets_in_row(settings)
        self.scaled_loss = ScaledLoss(model, narrow=self.most < settings.model.seq_length)
        self.differentiate = ops.value_and_grad(self.scaled_loss, None, self.weights)

    def construct(
        self,
        ids: Tensor,
        places: Tensor,
        labels: Tensor,
        lr: Tensor,
        updates: Tensor,
        scale: Tensor,
        stop: Tensor,
    ) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """``ids`` [B, T] int32, ``places`` and ``labels`` of their Targets, the rest float32
        scalars; gives a StepResult's."""
        learned = (labels != IGNORED_LABEL).astype(ms.float32).sum()
        shared = self.add_up(ops.stack((learned, stop)))
        tokens = ops.maximum(shared[0] / self.model_parallel, 1.0)  # so many ranks see each row
        loss, gradients = self.differentiate(ids, places, labels, tokens, scale)
        loss, norm, finite = self.update(loss, gradients, lr, updates, scale)
        return loss, norm, finite, shared[1]

    def prepare(self, ids: np.ndarray, labels: np.ndarray, numbers: StepNumbers) -> None:
        """Compile for inputs like these."""
        self.compile(Tensor(ids), *_tensors(labels, self.most), *numbers.tensors())

    def run(self, ids: np.ndarray, labels: np.ndarray, numbers: StepNumbers) -> StepResult:
        """Do the step with ``ids`` and ``labels`` [B, T] int32."""
        set_seed(self.seed, numbers.updates, first_row=self.data_rank * ids.size)
        *found, stops = self(Tensor(ids), *_tensors(labels, self.most), *numbers.tensors())
        return _result(found, stops.asnumpy())


class AccumulatedStep:
    """A step of several batches, one after the other, whose gradients are added up.

    The result is that of all their rows in one batch, in the memory of one of them.
    """

    def __init__(self, model: Glm2, settings: Settings, layout: Layout) -> None:
        self.weights = ParameterTuple(model.trainable_params())
        self.batches = settings.accumulation
        self.seed = settings.seed
        self.update = Update(self.weights, settings, layout)
        self.layout = layout
        self.most = targets_in_row(settings)
        self._accumulate = _Accumulate(
            model, self.weights, narrow=self.most < settings.model.seq_length
        )
        self._finish = _Finish(self._accumulate, self.update)

    def set_train(self, mode: bool = True) -> None:
        """As of a cell."""
        for cell in (self._accumulate, self._finish):
            cell.set_train(mode)

    def prepare(self, ids: np.ndarray, labels: np.ndarray, numbers: StepNumbers) -> None:
        """Compile for inputs like these."""
        one = numbers.tensors()
        ids, labels = ids[0 :: self.batches], labels[0 :: self.batches]
        self._accumulate.compile(Tensor(ids), *_tensors(labels, self.most), one[2], one[2])
        self._finish.compile(*one[:3])

    def run(self, ids: np.ndarray, labels: np.ndarray, numbers: StepNumbers) -> StepResult:
        """Do the step with ``ids`` and ``labels`` [n·B, T] int32."""
        learned = np.count_nonzero(labels[:, 1:] != IGNORED_LABEL)
        told = np.array([learned, numbers.stop], np.float32)
        tokens, stops = sum_over_ranks(self.layout, told)
        tokens /= self.layout.model_parallel
        lr, updates, scale, _ = numbers.tensors()
        divisor = Tensor(max(tokens, 1.0), ms.float32)
        size = len(ids) // self.batches
        for first in range(0, len(ids), size):
            part = slice(first, first + size)
            before = self.layout.data_rank * len(ids) + first
            set_seed(self.seed, numbers.updates, first_row=before * ids.shape[1])
            targets = _tensors(labels[part], self.most)
            self._accumulate(Tensor(ids[part]), *targets, divisor, scale)
        return _result(self._finish(lr, updates, scale), stops)


Step = Union[TrainStep, AccumulatedStep]


def make_step(model: Glm2, settings: Settings, layout: Layout) -> Step:
    """The step that the settings ask for, ready to train."""
    kind = AccumulatedStep if settings.accumulation > 1 else TrainStep
    step = kind(model, settings, layout)
    step.set_train()
    return step


class ScaledLoss(nn.Cell):
    """One rank's part of the mean loss, times the loss scale.

    If ``narrow``, the network behind its last attention works on the learned tokens alone.
    """

    def __init__(self, model: Glm2, narrow: bool) -> None:
        super().__init__(auto_prefix=False)
        self.model, self.narrow = model, narrow

    def construct(
        self, ids: Tensor, places: Tensor, labels: Tensor, tokens: Tensor, scale: Tensor
    ) -> Tensor:
        """``tokens`` is the number of learned tokens of the global batch, float32."""
        logits = self.model(ids, places) if self.narrow else self.model(ids)
        return loss_by(self.model.cross_entropy, logits, labels) / tokens * scale


class Update(nn.Cell):
    """Adds loss and gradients up over the ranks, and changes the weights if all is finite."""

    def __init__(self, weights: Sequence[Parameter], settings: Settings, layout: Layout) -> None:
        super().__init__(auto_prefix=False)
        shards = Shards(weights, division_of(settings, layout), layout)
        if shards.any_shared:
            self.optimizer: AdamW = SharedAdamW(weights, settings.optimizer, shards)
        else:
            self.optimizer = AdamW(weights, settings.optimizer)
        self.clip_norm = settings.optimizer.clip_norm
        self.add_up = AllReduce(data_group(layout))
        self.add_up_gradients = SumGradients(shards, settings.parallel.gradient_groups)
        self.sum_of_squares = SumOfSquares(shards)

    def construct(
        self,
        loss: Tensor,
        gradients: Tuple[Tensor, ...],
        lr: Tensor,
        updates: Tensor,
        scale: Tensor,
    ) -> Tuple[Tensor, Tensor, Tensor]:
        """Loss and gradients are those of this rank, times ``scale``.

        Returns loss, global norm of the gradients, and whether they were finite.
        """
        loss = self.add_up(loss.reshape((1,)))[0] / scale
        gradients = self.add_up_gradients(gradients)
        norm = ops.sqrt(self.sum_of_squares(gradients)) / scale
        finite = ops.isfinite(norm)
        if finite:
            factor = 1.0 / scale
            if self.clip_norm > 0:
                factor = factor * ops.minimum(self.clip_norm / (norm + 1e-6), ops.ones_like(norm))
            clipped = ()
            for gradient in gradients:
                clipped = (*clipped, gradient.astype(ms.float32) * factor)
            self.optimizer(clipped, lr, updates)
        return loss, norm, finite


class _Accumulate(nn.Cell):
    """Adds the gradients of one batch to those of the batches before it."""

    def __init__(self, model: Glm2, weights: Sequence[Parameter], narrow: bool) -> None:
        super().__init__(auto_prefix=False)
        self.loss = Parameter(ops.zeros((1,), ms.float32), name="loss", requires_grad=False)
        self.sums = ParameterTuple(
            [
                Parameter(
                    ops.zeros(w.shape, ms.float32), name=f"accu_grads.{w.name}", requires_grad=False
                )
                for w in weights
            ]
        )
        self.scaled_loss = ScaledLoss(model, narrow)
        self.differentiate = ops.value_and_grad(self.scaled_loss, None, ParameterTuple(weights))

    def construct(
        self, ids: Tensor, places: Tensor, labels: Tensor, tokens: Tensor, scale: Tensor
    ) -> bool:
        loss, gradients = self.differentiate(ids, places, labels, tokens, scale)
        ops.assign_add(self.loss, loss.reshape((1,)))
        for i in range(len(gradients)):
            ops.assign_add(self.sums[i], gradients[i].astype(ms.float32))
        return True


class _Finish(nn.Cell):
    """The update from the sums, which are 0 afterwards."""

    def __init__(self, accumulated: _Accumulate, update: Update) -> None:
        super().__init__(auto_prefix=False)
        self.loss, self.sums, self.update = accumulated.loss, accumulated.sums, update

    def construct(
        self, lr: Tensor, updates: Tensor, scale: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor]:
        gradients = ()
        for total in self.sums:
            gradients = (*gradients, total + 0.0)
        result = self.update(self.loss + 0.0, gradients, lr, updates, scale)
        ops.assign(self.loss, ops.zeros_like(self.loss))
        for total in self.sums:
            ops.assign(total, ops.zeros_like(total))
        return result


def _tensors(labels: np.ndarray, most: int) -> Tuple[Tensor, Tensor]:
    """Places and labels of ``labels`` [B, T]."""
    places, behind = find_targets(labels, most)
    return Tensor(places), Tensor(behind)


def _result(found: Sequence[Tensor], stops: np.ndarray) -> StepResult:
    loss, norm, finite = (value.asnumpy().item() for value in found)
    return StepResult(loss, norm, bool(finite), round(float(stops)))
