"""The metrics of ranks as event files that TensorBoard reads, by ``tensorboardX``."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable

from orchestrator.errors import HostNotReady, UsageError
from orchestrator.runs.journal import read_events
from orchestrator.runs.layout import RunPaths
from orchestrator.watching.progress import number

_FIELDS = {
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "loss_scale": "train/loss_scale",
    "tokens_per_s_per_p": "speed/tokens_per_s_per_p",
    "step_time_s": "speed/step_time_s",
}


def write_scalars(paths: RunPaths, ranks: Iterable[int], folder: Path) -> int:
    """Write ``folder/<run>/rank_N/`` for each rank; returns the number of steps written.

    Raises HostNotReady without the library, UsageError when the folder cannot be written or
    holds events of this run already (TensorBoard would show every step twice).
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise HostNotReady(
            "tensorboardX is not installed here, and event files are written by it",
            hint="install it: python -m pip install 'glm2-orch[tensorboard]'",
        ) from None
    steps = 0
    for rank in ranks:
        target = folder / paths.run_id / f"rank_{rank}"
        if target.exists() and any(target.iterdir()):
            raise UsageError(
                f"{target} is not empty", hint="give another folder, or remove this one"
            )
        try:
            writer = SummaryWriter(str(target))
        except OSError as error:
            raise UsageError(
                f"cannot write {target}: {error.strerror}", hint="give a folder you can write"
            ) from error
        with writer:
            for line in read_events(paths.metrics(f"rank_{rank}")):
                step = line.get("step")
                if not isinstance(step, int):
                    continue
                steps += 1
                for field, tag in _FIELDS.items():
                    value = number(line.get(field))
                    if value is not None:
                        writer.add_scalar(tag, value, step, walltime=number(line.get("wall")))
    return steps
