"""Facts from the hosts: one probe a host, all at once, nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Sequence

import orchestrator.node
from orchestrator.engine.hosts import on_all
from orchestrator.engine.supervisor import last_object
from orchestrator.errors import HostNotReady, OrchError, one_error
from orchestrator.inventory import Host
from orchestrator.planning.facts import HostFacts
from orchestrator.transport.base import Completed, Transport

Progress = Callable[[str], None]
_MINIMUM_FREE = 64 << 20


def gather(
    hosts: Sequence[Host],
    transports: Mapping[str, Transport],
    *,
    scheduler_port: int,
    progress: Optional[Progress] = None,
) -> Dict[str, Mapping[str, Any]]:
    """Run the probe on every host; its JSON by host name.

    Raises the host's error (HostErrors for several): TransportError when it cannot be reached,
    HostNotReady when it has no Python.
    """
    program = (Path(orchestrator.node.__path__[0]) / "probe.py").read_bytes()
    by_name = {host.name: host for host in hosts}

    def probe(transport: Transport) -> Mapping[str, Any]:
        host = by_name[transport.name]
        devices = ",".join(str(device) for device in host.devices)
        argv = [host.python, "-", "--devices", devices, "--workdir", host.workdir]
        if host.device_target != "Ascend":
            argv += ["--no-device-tools"]
        argv += ["--port", str(scheduler_port)]
        return _answer(host, transport.run(argv, stdin=program, timeout=60))

    return on_all(transports, "asking hosts", probe, progress)


def check_ready(
    hosts: Sequence[Host], facts: Mapping[str, HostFacts], *, needs_mindspore: bool
) -> None:
    """Raise HostNotReady (or HostErrors) for hosts on which the job cannot even begin."""
    errors = [
        error for host in hosts for error in _problems(host, facts[host.name], needs_mindspore)
    ]
    if errors:
        raise one_error(f"{len(errors)} problems on the hosts", errors)


def _problems(host: Host, facts: HostFacts, needs_mindspore: bool) -> list[OrchError]:
    found: list[OrchError] = []
    workdir = facts.workdir
    if workdir is not None and workdir.writable is False:
        found.append(
            HostNotReady(
                f"the workdir {host.workdir} cannot be written: {workdir.error or 'no permission'}",
                hint="give the user write access, or set another workdir in the inventory",
                host=host.name,
            )
        )
    elif (
        workdir is not None
        and workdir.free_bytes is not None
        and workdir.free_bytes < _MINIMUM_FREE
    ):
        found.append(
            HostNotReady(
                f"the workdir {host.workdir} is full: {workdir.free_bytes >> 20} MiB are free",
                hint="free some space, or set another workdir in the inventory",
                host=host.name,
            )
        )
    if needs_mindspore and facts.mindspore is None:
        found.append(
            HostNotReady(
                f"{host.python} has no MindSpore"
                + (f": {facts.mindspore_error}" if facts.mindspore_error else ""),
                hint=f"install it there: {host.python} -m pip install mindspore 'numpy<2'; "
                "or set `python:` in the inventory to the interpreter that has it",
                host=host.name,
            )
        )
    return found


def _answer(host: Host, done: Completed) -> Mapping[str, Any]:
    answer = last_object(done.stdout)
    if done.ok and isinstance(answer, dict):
        return answer
    tail = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
    if done.exit_status in (126, 127):
        raise HostNotReady(
            f"cannot run {host.python}: {tail[0]}",
            hint="install Python 3.7 or newer there, or set `python:` in the inventory",
            host=host.name,
        )
    raise HostNotReady(
        f"the probe ended with status {done.exit_status}: {tail[0]}",
        hint=f"try by hand: ssh {host.address} {host.python} --version",
        host=host.name,
    )
