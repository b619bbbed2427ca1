"""``launch --wait``: until nobody holds the devices any more."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import orchestrator.node
from orchestrator.engine.hosts import on_all
from orchestrator.engine.supervisor import last_object
from orchestrator.errors import Busy, HostNotReady
from orchestrator.inventory import Host
from orchestrator.transport.base import Transport

_POLL_S = 2.0

Holders = Tuple[Tuple[str, str, Tuple[str, ...]], ...]
"""(host, run, leases) of all that are held."""


def wait_for_devices(
    hosts: Sequence[Host],
    transports: Mapping[str, Transport],
    seconds: Optional[float],
    say: Callable[[str], None],
    *,
    port: Optional[int] = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return when no device of ``hosts`` is leased, nor the ``port`` that MindSpore's scheduler
    is to have on the first of them; whom it waits for is said, and said again when that changes.
    Raises Busy after ``seconds`` (None: never)."""
    until = None if seconds is None else clock() + seconds
    told: Holders = ()
    while True:
        found = holders(hosts, transports, port)
        if not found:
            return
        if until is not None and clock() >= until:
            raise Busy(
                f"waited {seconds:g} s in vain: {_sentence(found)}",
                hint="wait longer, choose other hosts with --limit, or stop that run",
                host=found[0][0],
            )
        if found != told:
            told = found
            say(f"waiting: {_sentence(found)}")
        sleep(_POLL_S if until is None else min(_POLL_S, max(0.0, until - clock())))


def holders(
    hosts: Sequence[Host], transports: Mapping[str, Transport], port: Optional[int] = None
) -> Holders:
    """Who holds devices of the hosts now, or the port. Nothing has to be on the hosts for it."""
    program = (Path(orchestrator.node.__path__[0]) / "holders.py").read_bytes()
    by_name = {host.name: host for host in hosts}

    def ask(transport: Transport) -> List[Dict[str, Any]]:
        host = by_name[transport.name]
        names = [f"device_{device}" for device in host.devices]
        if port is not None and host is hosts[0]:
            names.append(f"port_{port}")
        done = transport.run([host.python, "-", host.workdir, *names], stdin=program)
        answer = last_object(done.stdout)
        if not done.ok or not isinstance(answer, dict):
            raise HostNotReady(
                f"{host.python} cannot tell who holds the devices (status {done.exit_status})",
                host=host.name,
                hint="see: glm2-orch preflight",
            )
        held: List[Dict[str, Any]] = answer["held"]
        return held

    answers = on_all(transports, "looking at the devices", ask)
    found: List[Tuple[str, str, Tuple[str, ...]]] = []
    for name, held in answers.items():
        runs = sorted({str(entry["run_id"]) for entry in held})
        for run in runs:
            leases = tuple(entry["lease"] for entry in held if str(entry["run_id"]) == run)
            found.append((name, run, leases))
    return tuple(found)


def _sentence(found: Holders) -> str:
    host, run, leases = found[0]
    ports = [name.replace("_", " ") for name in leases if name.startswith("port_")]
    devices = len(leases) - len(ports)
    held = [f"{devices} device" + "s" * (devices != 1)] if devices else []
    more = f", and {len(found) - 1} more hosts" if len(found) > 1 else ""
    return f"run {run} holds {' and '.join([*held, *ports])} of {host}{more}"
