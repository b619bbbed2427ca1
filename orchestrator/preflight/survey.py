"""All that the hosts answered, as the checks see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Iterator, Mapping, Tuple, Union

from orchestrator.errors import OrchError
from orchestrator.inventory import Host
from orchestrator.preflight.hccn_tool import Ping
from orchestrator.preflight.needs import Needs
from orchestrator.preflight.report import Clock, HostReport
from orchestrator.preflight.tools import NotUnderstood, Unanswered


@dataclass(frozen=True)
class Exchange:
    """When the controller asked and when it had the answer, by its own clock, in seconds."""

    asked: float
    answered: float
    clock: Clock

    @property
    def offset(self) -> float:
        """The host's clock minus the controller's, as far as it can be known."""
        # The host began at some time between these two by the controller's clock.
        latest = self.answered - self.clock.duration
        return self.clock.start_wall - (self.asked + latest) / 2

    @property
    def uncertainty(self) -> float:
        """``offset`` may be wrong by so much: half the time that the answer was on its way."""
        return max(0.0, (self.answered - self.asked - self.clock.duration) / 2)


@dataclass(frozen=True)
class PingResult:
    """What came of pinging from one NIC the NIC of the same device id on another host."""

    host: str
    device: int
    peer: str
    address: str
    said: Union[Ping, NotUnderstood, Unanswered]


@dataclass(frozen=True)
class Peer:
    """Another host that a host is to reach."""

    name: str
    address: str
    port: int


@dataclass(frozen=True)
class Survey:
    hosts: Tuple[Host, ...]
    needs: Needs
    reports: Mapping[str, HostReport]
    """Of the hosts that answered."""
    exchanges: Mapping[str, Exchange] = field(default_factory=dict)
    errors: Mapping[str, OrchError] = field(default_factory=dict)
    """Of the other hosts."""
    pings: Tuple[PingResult, ...] = ()
    peers: Mapping[str, Tuple[Peer, ...]] = field(default_factory=dict)
    """Whom each host was to reach."""

    def answered(self) -> Iterator[Tuple[Host, HostReport]]:
        """Hosts with their reports, in the inventory's order."""
        for host in self.hosts:
            if host.name in self.reports:
                yield host, self.reports[host.name]
