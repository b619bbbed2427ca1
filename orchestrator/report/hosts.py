"""A run host by host: what its ranks do, how fast, and what needs a look. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import Dict, FrozenSet, List, Mapping, Optional, Tuple

from orchestrator.preflight.npu_smi import NpuTable
from orchestrator.report.reading import Snapshot, Track
from orchestrator.runs.state import HostState, ProcessState, ProcessStatus
from orchestrator.watching.progress import number

SILENT_S = 15.0
"""A host that beats every second and was not heard of for so long needs a look."""

_PHASES = ("startup", "compile", "train", "checkpoint", "eval", "done")
_TROUBLES = ("slow", "silent", "failed")


@dataclass(frozen=True)
class Usage:
    """Of the devices of a host: the mean of their use and of their memory in use (percent), and
    the highest temperature."""

    busy: Optional[float] = None
    memory: Optional[float] = None
    celsius: Optional[int] = None


def usage_of(table: NpuTable) -> Usage:
    """What a host's ``npu-smi info`` says of all its devices."""
    busy = [npu.busy_percent for npu in table.npus if npu.busy_percent is not None]
    memory = [
        100.0 * npu.hbm_used_mb / npu.hbm_total_mb
        for npu in table.npus
        if npu.hbm_used_mb is not None and npu.hbm_total_mb
    ]
    celsius = [npu.celsius for npu in table.npus if npu.celsius is not None]
    return Usage(
        busy=sum(busy) / len(busy) if busy else None,
        memory=sum(memory) / len(memory) if memory else None,
        celsius=max(celsius, default=None),
    )


@dataclass(frozen=True)
class HostView:
    """A host and its ranks, in their order. ``doing`` says what each does, in the words of
    ``live.MARKS``; speeds are the median of its ranks in tokens/s/p."""

    name: str
    ranks: Tuple[int, ...]
    doing: Tuple[str, ...]
    phase: str
    step: Optional[int]
    loss: Optional[float]
    speed: Optional[float]
    speeds: Tuple[float, ...]
    heard_s: Optional[float]
    silent: bool
    usage: Optional[Usage] = None

    @property
    def troubles(self) -> int:
        """How much it needs a look; 0: not at all."""
        weights = {"slow": 1, "silent": 10, "failed": 1000}
        return sum(weights.get(doing, 0) for doing in self.doing)

    @property
    def worst(self) -> str:
        """What most needs a look of what its ranks do."""
        counts = Counter(self.doing)
        for trouble in reversed(_TROUBLES):
            if counts[trouble]:
                return trouble
        return counts.most_common(1)[0][0] if counts else "waiting"


def host_views(shot: Snapshot, now: float, devices: Mapping[str, Usage]) -> Tuple[HostView, ...]:
    """The hosts in the order of their first ranks."""
    by_host: Dict[str, List[ProcessState]] = {host.name: [] for host in shot.state.hosts}
    for rank in shot.state.ranks:
        by_host[rank.host].append(rank)
    slow = frozenset(rank for one in shot.stragglers for rank in one.ranks)
    views = [
        _host(host, by_host[host.name], shot, slow, now, devices.get(host.name))
        for host in shot.state.hosts
    ]
    return tuple(sorted(views, key=lambda view: view.ranks[:1]))


def _host(
    host: HostState,
    ranks: List[ProcessState],
    shot: Snapshot,
    slow: FrozenSet[int],
    now: float,
    usage: Optional[Usage],
) -> HostView:
    over = shot.state.status.is_terminal
    heard = None if host.heard is None or over else max(0.0, now - host.heard)
    # While nobody listens, no host is heard: that says nothing about the host.
    listened = not shot.state.unwatched and host.outcome is None
    silent = listened and heard is not None and heard > SILENT_S
    tracks = [shot.tracks.get(rank.rank or 0, Track(rank.rank or 0)) for rank in ranks]
    doing = tuple(_doing(rank, silent, slow) for rank in ranks)
    steps = [step for rank in ranks if (step := whole(rank.step)) is not None]
    losses = [loss for rank in ranks if (loss := number(rank.loss)) is not None]
    speeds = [v for rank in ranks if (v := number(rank.tokens_per_s_per_p)) is not None]
    phases = Counter(rank.phase for rank in ranks if isinstance(rank.phase, str))
    return HostView(
        name=host.name,
        ranks=tuple(rank.rank for rank in ranks if rank.rank is not None),
        doing=doing,
        phase=phases.most_common(1)[0][0] if phases else "-",
        step=min(steps, default=None),
        loss=median(losses) if losses else None,
        speed=median(speeds) if speeds else None,
        speeds=medians([track.speeds for track in tracks]),
        heard_s=heard,
        silent=silent,
        usage=usage,
    )


def medians(series: List[Tuple[float, ...]]) -> Tuple[float, ...]:
    """The median of several series, aligned at their ends."""
    filled = [one for one in series if one]
    if not filled:
        return ()
    length = min(map(len, filled))
    return tuple(map(median, zip(*(one[-length:] for one in filled))))


def whole(value: object) -> Optional[int]:
    """A step as a rank reported it; None for what is no step."""
    fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53
    return value if fits else None  # type: ignore[return-value]


def _doing(rank: ProcessState, silent: bool, slow: FrozenSet[int]) -> str:
    if rank.status is not ProcessStatus.RUNNING:
        return str(rank.status.value)
    if silent:
        return "silent"
    if rank.rank in slow:
        return "slow"
    return rank.phase if rank.phase in _PHASES else "running"
