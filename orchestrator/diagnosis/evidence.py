"""What the logs of a job say, as data: findings, the logs and processes that they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, FrozenSet, Iterator, Mapping, Optional, Tuple

from orchestrator.diagnosis.signatures import Signature
from orchestrator.errors import Location

Device = Tuple[str, int]
"""A device as HCCL's messages name it: address of its server (or card), and device id."""


@dataclass(frozen=True)
class Named:
    """Whom a line blames: ranks, devices; or which ranks it says did show up."""

    ranks: FrozenSet[int] = frozenset()
    devices: FrozenSet[Device] = frozenset()
    present: FrozenSet[int] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.ranks or self.devices or self.present)


@dataclass(frozen=True)
class Finding:
    """One kind of error in one log: where it stands first, and how often it was seen.

    ``time`` is in seconds of the host's own clock (local time counted as UTC). Without
    ``dated`` the line has no time of its own, and ``time`` is that of the lines before it.
    ``last_time`` is that of its last occurrence.
    """

    signature: Signature
    text: str
    place: Location
    time: Optional[float] = None
    dated: bool = True
    last_time: Optional[float] = None
    named: Named = Named()
    rank: Optional[int] = None
    count: int = 1


@dataclass(frozen=True)
class LogEvidence:
    """What one log file says. Times as in ``Finding``; sizes in bytes.

    ``last_step`` is the time of the last sign of progress in training. ``skimmed`` bytes in the
    middle of a long log were looked through for error lines only.
    """

    file: str
    size: int = 0
    skimmed: int = 0
    first_time: Optional[float] = None
    last_time: Optional[float] = None
    last_step: Optional[float] = None
    findings: Tuple[Finding, ...] = ()
    pids: FrozenSet[int] = frozenset()
    devices: Mapping[Device, int] = field(default_factory=dict)
    """Ranks of devices, as lines of this log tell them."""
    world_size: Optional[int] = None
    rank: Optional[int] = None
    """The rank that wrote it, where its lines say so."""
    device: Optional[Device] = None
    """The device of the rank that wrote it, where its lines say so."""


@dataclass(frozen=True)
class Process:
    """A rank or service and its logs.

    ``clock_ahead`` is how many seconds its host's clock is ahead of ours. ``ended_by_us`` is
    collateral and never the cause. ``exit_time`` is on the scale of the log times.
    """

    name: str
    rank: Optional[int] = None
    host: str = ""
    logs: Tuple[LogEvidence, ...] = ()
    ended_by_us: bool = False
    running: bool = False
    exit_code: Optional[int] = None
    exit_time: Optional[float] = None
    clock_ahead: float = 0.0

    @property
    def findings(self) -> Iterator[Finding]:
        for log in self.logs:
            yield from log.findings

    @property
    def last_time(self) -> Optional[float]:
        """When it was last heard of, on our clock."""
        times = [log.last_time for log in self.logs if log.last_time is not None]
        return max(times) - self.clock_ahead if times else None

    def when(self, seconds: Optional[float]) -> Optional[float]:
        """A time of this process's host on our clock."""
        return None if seconds is None else seconds - self.clock_ahead

    def label(self) -> str:
        """``rank 5 on node1``."""
        named = self.name.removeprefix(f"{self.host}/")
        what = named if self.rank is None else f"rank {self.rank}"
        return f"{what} on {self.host}" if self.host else what


@dataclass(frozen=True)
class Standstill:
    """The run was stopped because no rank got on: a sentence, and the ranks that were behind."""

    sentence: str
    ranks: Tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """A job to be judged.

    ``clocks_known`` says whether the clocks of its hosts were compared with ours. ``devices``
    maps what HCCL calls a device to its rank, as far as the plan or rank table tells it.
    ``lost_hosts`` are those that were given up, with a sentence that says why.
    """

    processes: Tuple[Process, ...]
    world_size: Optional[int] = None
    clocks_known: bool = False
    devices: Mapping[Device, int] = field(default_factory=dict)
    lost_hosts: Mapping[str, str] = field(default_factory=dict)
    standstill: Optional[Standstill] = None

    def by_rank(self) -> Dict[int, Process]:
        return {p.rank: p for p in self.processes if p.rank is not None}
