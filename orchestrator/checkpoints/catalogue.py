"""Which files belong to which rank and step, which steps are complete, and what a merge needs.

Pure: works on a listing, wherever it was made (a folder, or the catalogue of each host).
Names are MindFormers' ``{prefix}_rank_{N}-{epoch}_{step}.ckpt`` or MindSpore's
``{prefix}-{epoch}_{step}.ckpt``, in folders ``rank_N``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import (
    Dict,
    FrozenSet,
    Iterable,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
)

from orchestrator.checkpoints.strategy import Strategy
from orchestrator.errors import CheckpointError

FORMATS = ("ckpt", "safetensors")

_NAME = re.compile(
    r"(?P<prefix>.+?)(?:_rank_(?P<rank>\d{1,7})(?P<again>_\d{1,4})?)?"
    r"-(?P<epoch>\d{1,12})_(?P<step>\d{1,12})\.(?P<format>ckpt|safetensors)",
    re.ASCII,
)
_RANK_FOLDER = re.compile(r"rank_(\d{1,7})", re.ASCII)


class StepId(NamedTuple):
    """Epoch and step as the file name has them; ordered as numbers, 4 before 10."""

    epoch: int
    step: int

    def __str__(self) -> str:
        return f"{self.epoch}_{self.step}"


@dataclass(frozen=True)
class CheckpointFile:
    """One rank's file of one step, wherever it lies.

    ``series`` is the part of the name that the files of one training run share. ``step`` is None
    where the name does not tell. ``sha256`` is in hexadecimal, empty where not known.
    """

    rank: int
    path: str
    series: str
    step: Optional[StepId]
    format: str
    size: int = 0
    sha256: str = ""
    host: str = ""

    @property
    def name(self) -> str:
        """File name without folder."""
        return self.path.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return f"{self.host}:{self.path}" if self.host else self.path


@dataclass(frozen=True)
class Selection:
    """The files of one step. ``missing`` are ranks without one, whose slices others hold."""

    step: Optional[StepId]
    files: Mapping[int, CheckpointFile]
    missing: Tuple[int, ...] = ()
    notes: Tuple[str, ...] = ()


def rank_of_folder(name: str) -> Optional[int]:
    """Rank of a folder ``rank_N``; None for any other name, such as ``rank_0_old``."""
    match = _RANK_FOLDER.fullmatch(name)
    return int(match[1]) if match else None


def checkpoint_file(
    rank: int, path: str, *, size: int = 0, sha256: str = "", host: str = ""
) -> Optional[CheckpointFile]:
    """Read a file name found in the folder of ``rank``; None where it is no checkpoint.

    Raises CheckpointError when the name says another rank than the folder.
    """
    name = path.rsplit("/", 1)[-1]
    extension = name.rsplit(".", 1)[-1]
    if name.startswith(".") or extension not in FORMATS:
        return None
    match = _NAME.fullmatch(name)
    if match is None:
        return CheckpointFile(rank, path, "", None, extension, size, sha256, host)
    if match["rank"] is not None and int(match["rank"]) != rank:
        raise CheckpointError(
            f"{path} lies in the folder of rank {rank}, but is named for rank {match['rank']}",
            hint="move it to its own rank's folder",
            host=host,
        )
    step = StepId(int(match["epoch"]), int(match["step"]))
    series = match["prefix"] + (match["again"] or "")
    return CheckpointFile(rank, path, series, step, extension, size, sha256, host)


def parse_step(text: str) -> Tuple[Optional[int], Optional[int]]:
    """``latest`` → (None, None); ``120`` → (None, 120); ``2_120`` → epoch 2, step 120.

    Raises CheckpointError for anything else.
    """
    if text == "latest":
        return None, None
    match = re.fullmatch(r"(?:(\d{1,12})_)?(\d{1,12})", text, re.ASCII)
    if match is None:
        raise CheckpointError(
            f"{text!r} is no step",
            hint="give latest, a step such as 120, or epoch_step as in 2_120",
        )
    return (int(match[1]) if match[1] else None), int(match[2])


def select(
    files: Iterable[CheckpointFile],
    *,
    ranks: Sequence[int],
    strategy: Optional[Strategy] = None,
    step: str = "latest",
) -> Selection:
    """Choose the files of one step: the one asked for, or the last complete one.

    ``ranks`` are all ranks of the job. A step is complete when every rank has a file of it, or
    when the ranks without one have no file of any step and others hold the same slices (by
    ``strategy``; without one, all ranks hold everything). A step that is asked for by number may
    also be filled up by such replicas where a rank has other steps.

    Raises CheckpointError naming the ranks and the steps they have.
    """
    epoch, number = parse_step(step)
    by_step = _by_step(files, ranks)
    if not by_step:
        raise CheckpointError(
            "no checkpoint file of any rank", hint="folders must be named rank_0, rank_1, …"
        )
    present = {rank for found in by_step.values() for rank in found}
    if number is not None:
        wanted = [
            key for key in by_step if key and key.step == number and epoch in (None, key.epoch)
        ]
        if len(wanted) != 1:
            raise _no_such_step(step, wanted, by_step)
        found = by_step[wanted[0]]
        lost = unavailable(strategy, ranks, set(found))
        if lost:
            raise _incomplete(f"step {wanted[0]} is incomplete", lost, by_step, ranks)
        return _selection(wanted[0], found, ranks, ())
    newest_first = sorted(by_step, key=_order, reverse=True)
    notes: List[str] = []
    for key in newest_first:
        torn = present - set(by_step[key])
        lost = torn or unavailable(strategy, ranks, set(by_step[key]))
        if not lost:
            return _selection(key, by_step[key], ranks, tuple(notes))
        notes.append(f"step {key or '?'} is incomplete: no file of {some_ranks(lost)}")
    key = newest_first[0]
    lost = (present - set(by_step[key])) or unavailable(strategy, ranks, set(by_step[key]))
    raise _incomplete("no step is complete", lost, by_step, ranks)


def unavailable(strategy: Optional[Strategy], ranks: Sequence[int], present: Set[int]) -> Set[int]:
    """Ranks without a file whose slices no present rank holds.

    Without a strategy every rank holds everything, so one present rank is enough.
    """
    absent = set(ranks) - present
    if not absent:
        return set()
    if strategy is None:
        return set() if present else absent
    lost: Set[int] = set()
    for number, layouts in enumerate(strategy.stages):
        first = number * strategy.stage_ranks
        for layout in set(layouts.values()):
            held = {
                layout.position(rank - first)
                for rank in present
                if first <= rank < first + strategy.stage_ranks
            }
            lost.update(
                rank
                for rank in absent
                if first <= rank < first + strategy.stage_ranks
                and layout.position(rank - first) not in held
            )
    return lost


def check_world(ranks: Iterable[int], strategy: Optional[Strategy], where: str) -> Tuple[int, ...]:
    """All ranks of the job whose rank folders are given.

    With a strategy these are its ranks; a folder of a rank beyond them is an error, as it means
    another run's strategy, or a pipeline stage without one. Without a strategy they are the
    ranks from 0 to the highest found.
    """
    found = sorted(set(ranks))
    if not found:
        raise CheckpointError(
            f"{where} has no folder rank_N", hint="give the folder output/checkpoint of the run"
        )
    if strategy is None:
        return tuple(range(found[-1] + 1))
    beyond = [rank for rank in found if rank >= strategy.world_size]
    if beyond:
        stages = len(strategy.stages)
        raise CheckpointError(
            f"{where} has a folder of rank {beyond[0]}, but the strategy covers ranks 0 to "
            f"{strategy.world_size - 1} ({stages} pipeline stage{'s' * (stages > 1)} of "
            f"{strategy.stage_ranks} ranks)",
            hint="the strategy of a pipeline stage is missing, or it belongs to another run",
        )
    return tuple(range(strategy.world_size))


Found = Dict[int, CheckpointFile]


def _by_step(
    files: Iterable[CheckpointFile], ranks: Sequence[int]
) -> Dict[Optional[StepId], Found]:
    wanted: FrozenSet[int] = frozenset(ranks)
    candidates = [file for file in files if file.rank in wanted]
    if any(file.step for file in candidates):  # other names are then no part of the set
        candidates = [file for file in candidates if file.step]
    by_step: Dict[Optional[StepId], Found] = {}
    for file in candidates:
        found = by_step.setdefault(file.step, {})
        other = found.setdefault(file.rank, file)
        if other is not file:
            raise CheckpointError(
                f"rank {file.rank} has two files of step {file.step or '(not in the name)'}: "
                f"{other} and {file}",
                hint="move the files of the other run, or of the other format, away",
            )
    for step, found in by_step.items():
        _check_one_series(step, found)
    return by_step


def _check_one_series(step: Optional[StepId], found: Found) -> None:
    first = next(iter(found.values()))
    for file in found.values():
        if (file.series, file.format) != (first.series, first.format):
            raise CheckpointError(
                f"step {step} mixes two kinds of files: {first} and {file}",
                hint="move the files of the other run, or of the other format, away",
            )


def _selection(
    step: Optional[StepId], found: Found, ranks: Sequence[int], notes: Tuple[str, ...]
) -> Selection:
    missing = tuple(sorted(set(ranks) - set(found)))
    if missing:
        notes = (*notes, f"no file of {some_ranks(missing)}: taken from replicas")
    return Selection(step, dict(sorted(found.items())), missing, notes)


def _no_such_step(
    step: str, wanted: Sequence[Optional[StepId]], by_step: Mapping[Optional[StepId], Found]
) -> CheckpointError:
    have = _some([str(key or "?") for key in sorted(by_step, key=_order)])
    if wanted:
        return CheckpointError(
            f"step {step} exists in several epochs: {_some([str(key) for key in wanted])}",
            hint=f"give the epoch too: {wanted[0]}",
        )
    return CheckpointError(f"no rank has step {step}; found: {have}")


def _incomplete(
    what: str,
    lost: Iterable[int],
    by_step: Mapping[Optional[StepId], Found],
    ranks: Sequence[int],
) -> CheckpointError:
    newest = max(by_step, key=_order)
    having: Dict[str, List[int]] = {}
    for rank in ranks:
        steps = sorted((step for step, found in by_step.items() if rank in found), key=_order)
        text = _some([str(step or "?") for step in steps]) or "no file"
        having.setdefault(text, []).append(rank)
    found = "; ".join(
        f"{some_ranks(some)} {'has' if len(some) == 1 else 'have'} {steps}"
        for steps, some in having.items()
    )
    return CheckpointError(
        f"{what}: expected files of step {newest or '?'} from all {len(ranks)} ranks, "
        f"{some_ranks(lost)} without; found: {found}",
        hint="collect the missing files, or choose a step with --step",
    )


def _order(step: Optional[StepId]) -> StepId:
    return step or StepId(-1, -1)


def some_ranks(ranks: Iterable[int]) -> str:
    """``rank 3``, or ``ranks 0, 1, 2`` of which at most eight are named; for messages."""
    listed = sorted(set(ranks))
    return ("rank " if len(listed) == 1 else "ranks ") + _some([str(rank) for rank in listed])


def _some(items: Sequence[str], most: int = 8) -> str:
    if len(items) <= most:
        return ", ".join(items)
    return ", ".join(items[:most]) + f" and {len(items) - most} more"
