"""Which checkpoint training goes on from: the newest step that every rank has, undamaged.

Each rank looks at its own files only, which may lie on its own host; the ranks tell each other
what they have and step back together.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, List, Optional, Tuple

from glm2.checkpoint import damage, saved_files, step_of
from glm2.errors import CheckpointError, ConfigError
from glm2.metrics import say, warn
from glm2.settings import CHECKPOINT_NAME, LATEST, Settings

Step = Tuple[int, int]
"""Epoch and step of that epoch, from 1."""
NO_STEP: Step = (0, 0)

Gather = Callable[[Step], List[Step]]
"""Tells all ranks a step and returns that of each rank."""


@dataclass(frozen=True)
class Source:
    """Where a rank's checkpoints are, and which of them is meant."""

    folder: Path
    prefix: str
    wanted: Optional[Step] = None
    """None: the newest."""


def source_of(settings: Settings, rank: int) -> Source:
    """What ``resume_training`` and ``load_checkpoint`` mean for this rank.

    ``load_checkpoint`` is a checkpoint file, its folder, or the folder above (``checkpoint``,
    or the whole output); without one it is ``output_dir``.
    """
    place = Path(settings.load_checkpoint or settings.output_dir).expanduser()
    name = "" if settings.resume == LATEST else settings.resume
    prefix = f"{settings.checkpoints.prefix}_rank_{rank}"
    if place.is_file():
        if name:
            raise ConfigError(
                f"resume_training names {name}, and load_checkpoint is a file too: {place}",
                hint="give the folder as load_checkpoint, or resume_training: True",
            )
        name, place = place.name, place.parent
        match = CHECKPOINT_NAME.match(name)
        if match and match["prefix"].endswith(f"_rank_{rank}"):
            prefix = match["prefix"]
        if place.name.startswith("rank_"):
            place = place.parent
    wanted = step_of(Path(name)) if name else None
    for folder in (place / f"rank_{rank}", place / "checkpoint" / f"rank_{rank}", place):
        if saved_files(folder, prefix):
            return Source(folder, prefix, wanted)
    raise CheckpointError(
        f"there is nothing to resume from: no {prefix}-EPOCH_STEP.ckpt in {place}",
        hint="give the run's output/checkpoint as --load_checkpoint, or leave resume_training out",
    )


def choose(source: Source, gather: Gather) -> Path:
    """The file of the newest step that every rank has whole, or of the step that is wanted.

    Says from which steps it went back and why. Raises CheckpointError where no step is left.
    """
    files = saved_files(source.folder, source.prefix)
    if source.wanted:
        files = [file for file in files if step_of(file) == source.wanted]
    limit: Optional[Step] = None
    while True:
        files = _whole(files, limit)
        steps = gather(step_of(files[-1]) if files else NO_STEP)
        oldest, newest = min(steps), max(steps)
        without = [str(rank) for rank, step in enumerate(steps) if step == oldest]
        if oldest == NO_STEP:
            what = "no step is whole" if source.wanted is None else f"step {_name(source.wanted)}"
            raise CheckpointError(
                f"{what} on all ranks: rank {', '.join(without)} has none in "
                f"{source.folder} or its own folder like it"
                if source.wanted is None
                else f"{what} is missing or damaged on rank {', '.join(without)}",
                hint="collect the files of all ranks, or begin from weights alone",
            )
        if oldest == newest:
            return files[-1]
        if not source.wanted:
            say(
                f"step {_name(newest)} is not on all ranks: rank {', '.join(without)} goes back to "
                f"{_name(oldest)}"
            )
        limit = oldest


def set_aside(folder: Path, prefix: str, after: Step) -> None:
    """Rename the files behind a step: training takes another course from there, and neither the
    next resume nor the removal of the oldest files may mistake them for its own.
    """
    for file in saved_files(folder, prefix):
        if step_of(file) > after:
            os.replace(file, f"{file}.left")
            say(f"{file} is of another course of training: renamed to {file.name}.left")


def _whole(files: List[Path], limit: Optional[Step]) -> List[Path]:
    """The files up to the newest one not above ``limit`` that is undamaged."""
    files = [file for file in files if limit is None or step_of(file) <= limit]
    while files:
        problem = damage(files[-1])
        if not problem:
            break
        warn(f"{files[-1]} is damaged and passed over: {problem}")
        files = files[:-1]
    return files


def _name(step: Step) -> str:
    return f"{step[0]}_{step[1]}"
