"""Training: one graph a step, metrics, checkpoints, and an orderly end when asked to stop."""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from pathlib import Path
from typing import Iterator, Optional, Tuple

import mindspore as ms
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops

from glm2.checkpoint import save_checkpoint
from glm2.data import Batches
from glm2.metrics import Metrics, say
from glm2.model import Glm2, learned_tokens, next_token_loss
from glm2.optimizer import AdamW, Scale, learning_rate
from glm2.parallel import Layout, SumGradients, SumOverRanks
from glm2.settings import Settings
from glm2.strategy import write_strategy
from glm2.weights import Progress

STOPPED = 143
"""Exit status after SIGTERM, with the checkpoint saved."""
SAY_EVERY_S = 1.0
"""At most one line for people in so many seconds; ``metrics.jsonl`` has every step."""


class TrainStep(nn.Cell):
    """Forward, backward, sum over ranks, clipping and update, as one graph.

    The loss is the mean over the learned tokens of the whole global batch, so that the same
    rows give the same step however many ranks share them.
    """

    def __init__(self, model: Glm2, settings: Settings, layout: Layout) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.weights = ParameterTuple(model.trainable_params())
        self.optimizer = AdamW(self.weights, settings.optimizer)
        self.clip_norm = settings.optimizer.clip_norm
        self.add_up = SumOverRanks(layout)
        self.add_up_gradients = SumGradients(layout, [w.shape for w in self.weights])
        self.differentiate = ops.value_and_grad(self.scaled_loss, None, self.weights)

    def construct(
        self, ids: Tensor, labels: Tensor, lr: Tensor, updates: Tensor, scale: Tensor, stop: Tensor
    ) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """``ids`` and ``labels`` [B, T] int32, the rest float32 scalars.

        ``stop`` is 1 where this rank was asked to stop. Returns loss, global norm of the
        gradients, whether they were finite (else nothing was updated), and how many ranks
        were asked to stop: all learn it in the same step, so that none waits for another.
        """
        shared = self.add_up(ops.stack((learned_tokens(labels), stop)))
        loss, gradients = self.differentiate(ids, labels, ops.maximum(shared[0], 1.0), scale)
        loss = self.add_up(loss.reshape((1,)))[0] / scale
        gradients = self.add_up_gradients(gradients)
        squares = ops.zeros((), ms.float32)
        for gradient in gradients:
            squares = squares + ops.square(gradient.astype(ms.float32) / scale).sum()
        norm = ops.sqrt(squares)
        finite = ops.isfinite(norm)
        if finite:
            factor = 1.0 / scale
            if self.clip_norm > 0:
                factor = factor * ops.minimum(self.clip_norm / (norm + 1e-6), ops.ones_like(norm))
            clipped = ()
            for gradient in gradients:
                clipped = (*clipped, gradient.astype(ms.float32) * factor)
            self.optimizer(clipped, lr, updates)
        return loss, norm, finite, shared[1]

    def scaled_loss(self, ids: Tensor, labels: Tensor, tokens: Tensor, scale: Tensor) -> Tensor:
        """This rank's part of the mean loss, times the loss scale."""
        return next_token_loss(self.model(ids), labels) / tokens * scale


class Trainer:
    """Trains ``model`` on ``batches`` and leaves checkpoints in ``output``."""

    def __init__(
        self,
        model: Glm2,
        batches: Batches,
        settings: Settings,
        layout: Layout,
        metrics: Metrics,
        output: Path,
    ) -> None:
        self.settings, self.layout, self.metrics = settings, layout, metrics
        self.batches, self.output = batches, output
        self.step = TrainStep(model, settings, layout)
        self.step.set_train()
        self.steps = settings.epochs * batches.steps_per_epoch
        half = settings.model.compute_dtype == "float16"
        self.scale = Scale(settings.loss_scale.initial if half else 1.0, dynamic=half)
        self.progress = Progress(loss_scale=self.scale.value)
        self.stop_asked = threading.Event()
        self._saved: Optional[Progress] = None
        self._said = -math.inf
        self._pace = 0.0

    def train(self) -> int:
        """Run all epochs. Returns 0, or STOPPED when a rank was asked to stop."""
        state = (*self.step.weights, *self.step.optimizer.m, *self.step.optimizer.v)
        write_strategy(
            self.output / "strategy", self.layout, {p.name: tuple(p.shape) for p in state}
        )
        previous = signal.signal(signal.SIGTERM, lambda *_: self.stop_asked.set())
        try:
            return self._train()
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _train(self) -> int:
        compiled = False
        for epoch, (ids, labels) in self._batches():
            inputs = self._inputs(ids, labels)
            if not compiled:
                self.metrics.phase("compile")
                say("compiling the training step …")
                begun = time.monotonic()
                self.step.compile(*inputs)
                compiled = True
                say(f"compiled in {time.monotonic() - begun:.1f} s")
                self.metrics.phase("train")
            begun = time.monotonic()
            loss, _, finite, stops = (value.asnumpy() for value in self.step(*inputs))
            self._advance(epoch, float(loss), bool(finite), time.monotonic() - begun)
            if stops:
                self.save()
                say("stopped on request; the checkpoint is saved")
                return STOPPED
            every = self.settings.checkpoints.every_steps
            if every and self.progress.step_num % every == 0:
                self.save()
        self.save()
        return 0

    def _batches(self) -> Iterator[Tuple[int, Tuple[np.ndarray, np.ndarray]]]:
        for epoch in range(self.settings.epochs):
            for batch in self.batches.epoch(epoch):
                yield epoch, batch

    def _inputs(self, ids: np.ndarray, labels: np.ndarray) -> Tuple[Tensor, ...]:
        numbers = (
            learning_rate(self.settings.schedule, self.progress.global_step, self.steps),
            self.progress.global_step + 1,
            self.scale.value,
            float(self.stop_asked.is_set()),
        )
        return (Tensor(ids), Tensor(labels), *(Tensor(float(n), ms.float32) for n in numbers))

    def _advance(self, epoch: int, loss: float, finite: bool, seconds: float) -> None:
        """Count a finished step and report it."""
        rate = learning_rate(self.settings.schedule, self.progress.global_step, self.steps)
        used_scale = self.scale.value
        self.scale = self.scale.after(not finite, self.settings.loss_scale)
        self.progress = dataclasses.replace(
            self.progress,
            epoch_num=epoch + 1,
            step_num=self.progress.step_num + 1,
            global_step=self.progress.global_step + int(finite),
            data_rows=self.progress.data_rows + self.batches.global_batch,
            loss_scale=self.scale.value,
            scale_good_steps=self.scale.good_steps,
        )
        tokens = self.batches.dataset.batch_size * self.settings.model.seq_length
        speed = tokens / seconds / self.layout.model_parallel
        step = self.progress.step_num
        self.metrics.step(
            step=step,
            steps=self.steps,
            epoch=epoch + 1,
            loss=round(loss, 6),
            lr=rate,
            tokens_per_s_per_p=round(speed, 1),
            step_time_s=round(seconds, 4),
            loss_scale=used_scale,
            overflow=not finite,
        )
        # The first step has one-time costs; after it, a mean over about the last 20 steps.
        self._pace = seconds if step <= 2 else 0.95 * self._pace + 0.05 * seconds
        now = time.monotonic()
        if step in (1, self.steps) or not finite or now - self._said >= SAY_EVERY_S:
            self._said = now
            left = int((self.steps - step) * self._pace)
            note = "" if finite else f"  overflow: skipped, loss scale now {self.scale.value:g}"
            say(
                f"step {step}/{self.steps}  epoch {epoch + 1}  loss {loss:.4f}  lr {rate:.2e}  "
                f"{speed:.0f} tokens/s/p  {seconds:.3f} s/step  eta {left // 60}:{left % 60:02d}"
                + note
            )

    def save(self) -> None:
        """Write a checkpoint of the current step, unless it is already there."""
        if self._saved == self.progress or not self.progress.step_num:
            return
        self.metrics.phase("checkpoint")
        settings = self.settings.checkpoints
        step = self.progress.step_num - (self.progress.epoch_num - 1) * self.batches.steps_per_epoch
        file = save_checkpoint(
            self.output / "checkpoint" / f"rank_{self.layout.rank}",
            f"{settings.prefix}_rank_{self.layout.rank}-{self.progress.epoch_num}_{step}",
            (*self.step.weights, *self.step.optimizer.m, *self.step.optimizer.v),
            self.progress,
            settings.keep,
        )
        self._saved = self.progress
        say(f"saved {file}")
        self.metrics.phase("train")
