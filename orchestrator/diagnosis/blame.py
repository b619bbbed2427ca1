"""Whose fault a first cause is, as far as it decides what to do next: see ``watching.retry``."""

from __future__ import annotations

from orchestrator.diagnosis.cause import Diagnosis
from orchestrator.watching.reducer import LOST

_HOST = {"EL0001", "E30005", "EJ0002", "EJ0003", "EI0010", "E30003", "aicore", "disk-full"}
"""The hardware or system of one host."""
_NETWORK = {"EI0013", "EI0015", "EI0006", "EI0009", "heartbeat", "unreachable-agents"}
_NETWORK |= {"node-timeout", "scheduler-unreachable", "connection-lost", "unique-id"}
_USER = {"EI0003", "EI0005", "dataset", "missing-shard", "loss-nan", "scale-collapse"}
"""The training itself: the same code and data would do it again."""


def blame(diagnosis: Diagnosis, rule: str) -> str:
    """``user``, ``config``, ``host``, ``network`` or ``unknown``. ``rule`` is what made the
    watcher stop the run: a host that was lost is at fault whatever the logs say."""
    if rule in LOST:
        return "host"
    if rule in _USER:
        return "user"
    if diagnosis.signature is None:
        return "unknown"
    if diagnosis.signature.role == "config":
        return "config"
    for kind, ids in (("host", _HOST), ("network", _NETWORK), ("user", _USER)):
        if diagnosis.signature.id in ids:
            return kind
    return "unknown"
