"""Training: steps, metrics, evaluation in between, checkpoints, and an orderly end when asked."""

from __future__ import annotations

import dataclasses
import math
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Callable, Iterator, Optional, Tuple

import numpy as np
from mindspore import Parameter

from glm2.checkpoint import conclude, load_state, save_checkpoint, step_of
from glm2.communication import seconds_of
from glm2.data import Batches
from glm2.division import division_of
from glm2.file_form import FileForm
from glm2.metrics import Metrics, say, warn
from glm2.model import Glm2
from glm2.optimizer import Scale, learning_rate
from glm2.parallel import Layout, meet
from glm2.resume import NO_STEP, set_aside
from glm2.settings import Settings
from glm2.strategy import write_strategy
from glm2.train_step import StepNumbers, StepResult, make_step
from glm2.volume import exchanges
from glm2.weights import Progress

STOPPED = 143
"""Exit status after SIGTERM, with the checkpoint saved."""
SAY_EVERY_S = 1.0
"""At most one line for people in so many seconds; ``metrics.jsonl`` has every step."""


class Trainer:
    """Trains ``model`` on ``batches`` and leaves checkpoints in ``output``.

    ``evaluate`` is called with the progress at the intervals of the settings, and at the end.
    """

    def __init__(
        self,
        model: Glm2,
        batches: Batches,
        settings: Settings,
        layout: Layout,
        metrics: Metrics,
        output: Path,
        evaluate: Optional[Callable[[Progress], None]] = None,
    ) -> None:
        self.settings, self.layout, self.metrics = settings, layout, metrics
        self.model, self.batches, self.output, self.evaluate = model, batches, output, evaluate
        self.step = make_step(model, settings, layout)
        self.division = division_of(settings, layout)
        self.form = FileForm(self.division, layout)
        self.steps = settings.epochs * batches.steps_per_epoch
        half = settings.model.compute_dtype == "float16"
        self.scale = Scale(settings.loss_scale.initial if half else 1.0, dynamic=half)
        self.progress = Progress(loss_scale=self.scale.value, data_crc=batches.crc())
        self.folder = output / "checkpoint" / f"rank_{layout.rank}"
        self.prefix = f"{settings.checkpoints.prefix}_rank_{layout.rank}"
        self.newest: Optional[Path] = None
        """The checkpoint that was saved or resumed from last."""
        self.stop_asked = threading.Event()
        self._evaluating = False
        self._evaluated = -1
        self._saved: Optional[Progress] = None
        self._goes_on = False
        """Whether all checkpoints in the folder are of this course of training."""
        self._said = -math.inf
        self._pace = 0.0
        self._communication = 0.0
        """Seconds of a step that its collectives take."""

    @property
    def state(self) -> Tuple[Parameter, ...]:
        """All that a checkpoint holds of the network and the optimizer."""
        weights = self.step.weights
        if not self.settings.checkpoints.only_trainable:
            weights = self.model.get_parameters()
        return (*weights, *self.step.update.optimizer.m, *self.step.update.optimizer.v)

    def resume(self, file: Path) -> None:
        """Go on from a checkpoint as if training had never stopped."""
        crc = self.progress.data_crc
        read = self.form.empty(self.state)
        self.progress = self._saved = load_state(read, file)
        self.form.take(read, self.state)
        if self.progress.data_crc != crc:
            warn(
                "the training data, their order or seed differ from those that the checkpoint was "
                "trained on: training goes on at the same position of the new ones"
            )
            self.progress = dataclasses.replace(self.progress, data_crc=crc)
        self.scale = dataclasses.replace(
            self.scale, value=self.progress.loss_scale, good_steps=self.progress.scale_good_steps
        )
        self.newest = file
        here = file.parent.resolve() == self.folder.resolve()
        if here and file.name.startswith(f"{self.prefix}-"):
            set_aside(self.folder, self.prefix, step_of(file))
            self._goes_on = True
        say(f"resumed from {file}: {self.progress.step_num} of {self.steps} steps are done")

    def train(self) -> int:
        """Run all epochs. Returns 0, or STOPPED when a rank was asked to stop."""
        write_strategy(
            self.output / "strategy", self.layout.rank, self.division, [p.name for p in self.state]
        )
        previous = signal.signal(signal.SIGTERM, self._on_stop)
        try:
            return self._train()
        except _StoppedInEvaluation:
            return self._stop()
        finally:
            signal.signal(signal.SIGTERM, previous)

    def _train(self) -> int:
        compiled = False
        for epoch, (ids, labels) in self._batches():
            if not compiled:
                self._compile(ids, labels)
                compiled = True
            begun = time.monotonic()
            result = self.step.run(ids, labels, self._numbers())
            self._advance(epoch, result, time.monotonic() - begun)
            if result.stops:
                return self._stop()
            every, step = self.settings.checkpoints.every_steps, self.progress.step_num
            if step == self.steps or (every and step % every == 0):
                self.save()  # before an evaluation, which may take long
            if self._evaluation_is_due():
                self._evaluate()
        self.save()
        if self.evaluate and self._evaluated != self.progress.step_num:
            self._evaluate()
        return 0

    def _compile(self, ids: np.ndarray, labels: np.ndarray) -> None:
        self.metrics.phase("compile")
        say("compiling the training step …")
        begun = time.monotonic()
        self.step.prepare(ids, labels, self._numbers())
        say(f"compiled in {time.monotonic() - begun:.1f} s")
        if self.layout.world_size > 1 and self.settings.train:
            rows = self.settings.train.batch_size
            step = exchanges(self.settings, self.layout, rows)
            self._communication = seconds_of(step, self.layout)
            say(f"the collectives of a step take {self._communication:.4f} s by themselves")
        self.metrics.phase("train")

    def _batches(self) -> Iterator[Tuple[int, Tuple[np.ndarray, np.ndarray]]]:
        """Number of the epoch (from 0) and batch of each step that is left."""
        first_epoch = max(self.progress.epoch_num - 1, 0)
        done, odd = divmod(self.progress.epoch_rows, self.batches.global_batch)
        if odd:
            warn(f"{odd} rows of this epoch are seen twice: the global batch has another size now")
        for epoch in range(first_epoch, self.settings.epochs):
            for batch in self.batches.epoch(epoch, done if epoch == first_epoch else 0):
                yield epoch, batch

    def _numbers(self) -> StepNumbers:
        return StepNumbers(
            learning_rate(self.settings.schedule, self.progress.global_step, self.steps),
            self.progress.global_step + 1,
            self.scale.value,
            self.stop_asked.is_set(),
        )

    def _advance(self, epoch: int, result: StepResult, seconds: float) -> None:
        """Count a finished step and report it."""
        rate = learning_rate(self.settings.schedule, self.progress.global_step, self.steps)
        used_scale = self.scale.value
        self.scale = self.scale.after(not result.finite, self.settings.loss_scale)
        rows = self.batches.global_batch
        before = self.progress.epoch_rows if epoch + 1 == self.progress.epoch_num else 0
        self.progress = dataclasses.replace(
            self.progress,
            epoch_num=epoch + 1,
            step_num=self.progress.step_num + 1,
            global_step=self.progress.global_step + int(result.finite),
            data_rows=self.progress.data_rows + rows,
            epoch_rows=before - before % rows + rows,
            loss_scale=self.scale.value,
            scale_good_steps=self.scale.good_steps,
        )
        tokens = self.batches.rank_rows * self.settings.model.seq_length
        speed = tokens / seconds / self.layout.model_parallel
        step = self.progress.step_num
        self.metrics.step(
            step=step,
            steps=self.steps,
            epoch=epoch + 1,
            loss=float(f"{result.loss:.9g}"),  # all that float32 has
            lr=rate,
            tokens_per_s_per_p=round(speed, 1),
            step_time_s=round(seconds, 4),
            communication_share=round(min(self._communication / seconds, 1.0), 4),
            loss_scale=used_scale,
            overflow=not result.finite,
        )
        # The first step has one-time costs; after it, a mean over about the last 20 steps.
        self._pace = 0.95 * self._pace + 0.05 * seconds if self._pace and step > 2 else seconds
        now = time.monotonic()
        if step in (1, self.steps) or not result.finite or now - self._said >= SAY_EVERY_S:
            self._said = now
            left = int((self.steps - step) * self._pace)
            note = (
                "" if result.finite else f"  overflow: skipped, loss scale now {self.scale.value:g}"
            )
            say(
                f"step {step}/{self.steps}  epoch {epoch + 1}  loss {result.loss:.4f}  "
                f"lr {rate:.2e}  {speed:.0f} tokens/s/p  {seconds:.3f} s/step  "
                f"eta {left // 60}:{left % 60:02d}" + note
            )

    def save(self) -> None:
        """Write a checkpoint of the current step, unless it is already there.

        The older ones are removed when every rank has this one. Those that another training left
        in the folder are renamed before the first: their numbers may be higher.
        """
        if self._saved == self.progress or not self.progress.step_num:
            return
        self.metrics.phase("checkpoint")
        if not self._goes_on:
            set_aside(self.folder, self.prefix, NO_STEP)
            self._goes_on = True
        step = self.progress.epoch_rows // self.batches.global_batch
        file = save_checkpoint(
            self.folder,
            f"{self.prefix}-{self.progress.epoch_num}_{step}",
            self.form.written(self.state),
            self.progress,
        )
        meet(self.layout)
        conclude(file, self.settings.checkpoints.keep)
        self._saved, self.newest = self.progress, file
        say(f"saved {file}")
        self.metrics.phase("train")

    def _evaluation_is_due(self) -> bool:
        if self.evaluate is None:
            return False
        by_step, by_epoch = self.settings.eval_step_interval, self.settings.eval_epoch_interval
        if by_step > 0 and self.progress.step_num % by_step == 0:
            return True
        ends = self.progress.epoch_rows == self.batches.steps_per_epoch * self.batches.global_batch
        return ends and by_epoch > 0 and self.progress.epoch_num % by_epoch == 0

    def _evaluate(self) -> None:
        assert self.evaluate is not None
        self._evaluating = True
        self.model.set_train(False)
        self.evaluate(self.progress)
        self.model.set_train(True)
        self._evaluating = False
        self._evaluated = self.progress.step_num
        self.metrics.phase("train")

    def _on_stop(self, signum: int, frame: Optional[FrameType]) -> None:
        self.stop_asked.set()
        if self._evaluating and self.layout.world_size == 1:
            raise _StoppedInEvaluation

    def _stop(self) -> int:
        self.save()
        say("stopped on request; the checkpoint is saved")
        return STOPPED


class _StoppedInEvaluation(Exception):
    """SIGTERM during an evaluation, which takes longer than one may wait. Of several ranks each
    ends the evaluation first, as the others count on its results."""
