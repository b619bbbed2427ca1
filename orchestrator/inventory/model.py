"""What an inventory says, with all settings resolved (frozen)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, NewType, Optional, Tuple

from orchestrator.errors import Location
from orchestrator.inventory.notify import Notification

SshAddress = NewType("SshAddress", str)
"""Where ssh connects to: a DNS name or an IP address."""

ServerId = NewType("ServerId", str)
"""``server_id`` of the rank table: any text of at most 64 characters, usually the host's IP."""

DeviceIp = NewType("DeviceIp", str)
"""Address of the RoCE NIC of one device."""

SPARES = "spares"
"""Name of the group whose hosts stand by: no job runs on them until one takes another's place."""


@dataclass(frozen=True)
class Gateway:
    """A host that connections lead through (ProxyJump). Paths are absolute."""

    address: SshAddress
    user: Optional[str] = None
    port: int = 22
    key: Optional[str] = None
    known_hosts: Optional[str] = None


@dataclass(frozen=True)
class SshOptions:
    """How to reach a host over SSH. Paths have ``~`` expanded and are relative to the inventory
    file's folder where written so. Times in seconds."""

    user: Optional[str] = None
    port: int = 22
    key: Optional[str] = None
    known_hosts: Optional[str] = None
    connect_timeout: float = 10.0
    gateways: Tuple[Gateway, ...] = ()
    """On the way to the host, the nearest to us first."""
    proxy_command: Optional[str] = None
    """Shell command whose standard input and output are the connection (ssh_config's own)."""


@dataclass(frozen=True)
class Host:
    """One server of the inventory with its settings resolved (defaults < group < host)."""

    name: str
    address: SshAddress
    server_id: ServerId
    devices: Tuple[int, ...]
    device_target: str
    workdir: str
    """Absolute folder on the host."""
    python: str
    connection: str = "ssh"
    """``ssh`` or ``local``."""
    setup: str = ""
    """Shell line run before each rank, e.g. ``source …/set_env.sh``."""
    env: Mapping[str, str] = field(default_factory=dict)
    device_ips: Tuple[DeviceIp, ...] = ()
    """Declared device IPs in the order of ``devices``; empty: ask the host."""
    groups: Tuple[str, ...] = ()
    ssh: SshOptions = SshOptions()
    shared_workdir: Optional[str] = None
    """Where the controller sees ``workdir``, when it lies on a file system that both share."""


@dataclass(frozen=True)
class Platform:
    """A job that a platform has spread over servers already, of which this machine is one."""

    table: str
    """Rank table of the whole job, version 1.0."""
    first_rank: int
    """Rank of the first device here."""
    devices: Tuple[int, ...]
    """Number of devices of each server, in the order of the ranks."""


@dataclass(frozen=True)
class Inventory:
    """The hosts a job runs on, in the order of the file, and the defaults for jobs."""

    cluster: str
    hosts: Tuple[Host, ...]
    source: str
    """File name, for messages."""
    job: Mapping[str, object] = field(default_factory=dict)
    """The ``job:`` section: defaults for launch options (config, recipe, scheduler_port …)."""
    job_locations: Mapping[Tuple[str, ...], Location] = field(default_factory=dict)
    """Places of the values in ``job``, for messages."""
    folder: str = "."
    """Folder of the file: relative paths in it start here."""
    spares: Tuple[Host, ...] = ()
    """Hosts of the group ``spares``, not among ``hosts`` unless ``limit`` names them."""
    notify: Tuple[Notification, ...] = ()
    """Who is told of a run's start, failure, recovery and end."""
    platform: Optional[Platform] = None
    """Where ranks and rank table come from a platform; ``hosts`` is this machine alone then."""
