"""``plan(inventory, job, facts) -> Plan``: everything that a launch will do, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Tuple


@dataclass(frozen=True)
class PlannedFile:
    """One text file in the run folder of a host: path relative to that folder, text, mode."""

    path: str
    text: str
    mode: int = 0o600


@dataclass(frozen=True)
class PlannedProcess:
    """One process of a host: a rank, or a service such as MindSpore's scheduler (``rank`` None)."""

    name: str
    rank: Optional[int]
    device_id: Optional[int]
    argv: Tuple[str, ...]
    env: Tuple[Tuple[str, str], ...]


@dataclass(frozen=True)
class HostPlan:
    """What one host receives and runs."""

    host: str
    server_id: str
    run_dir: str
    """Absolute folder of the run on the host: ``<workdir>/runs/<run id>``."""
    python: str
    processes: Tuple[PlannedProcess, ...]
    files: Tuple[PlannedFile, ...]


@dataclass(frozen=True)
class Plan:
    """The whole launch. Pure data: the same inputs give the same bytes."""

    run_id: str
    cluster: str
    mode: str
    recipe: str
    world_size: int
    hosts: Tuple[HostPlan, ...]
    rank_table: Optional[str] = None
    """Text of the merged rank table (recipe ascend_ranktable)."""
