"""The servers a job runs on: inventory YAML -> Inventory (frozen)."""

from orchestrator.inventory.devices import (
    FOURS_OF_910,
    DevicesError,
    parse_devices,
    unfit_for_910,
)
from orchestrator.inventory.imports import WORKERS, ImportedHost, import_hosts
from orchestrator.inventory.limit import limit
from orchestrator.inventory.model import (
    DeviceIp,
    Gateway,
    Host,
    Inventory,
    Platform,
    ServerId,
    SshAddress,
    SshOptions,
)
from orchestrator.inventory.notify import Notification, Secret
from orchestrator.inventory.patterns import PatternError, expand, fold
from orchestrator.inventory.read import load_inventory, parse_inventory
from orchestrator.inventory.slurm import slurm_inventory
from orchestrator.inventory.standby import Quarantined, utc, working_hosts

__all__ = [
    "FOURS_OF_910",
    "WORKERS",
    "DeviceIp",
    "DevicesError",
    "Gateway",
    "Host",
    "ImportedHost",
    "Inventory",
    "Notification",
    "PatternError",
    "Platform",
    "Quarantined",
    "Secret",
    "ServerId",
    "SshAddress",
    "SshOptions",
    "expand",
    "fold",
    "import_hosts",
    "limit",
    "load_inventory",
    "parse_devices",
    "parse_inventory",
    "slurm_inventory",
    "unfit_for_910",
    "utc",
    "working_hosts",
]
