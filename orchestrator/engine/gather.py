"""Facts from the hosts: one probe a host, all at once, nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Mapping, Optional, Sequence, Tuple

import orchestrator.node
from orchestrator.engine.hosts import on_all, on_each
from orchestrator.engine.supervisor import last_object
from orchestrator.errors import HostNotReady, OrchError, one_error
from orchestrator.inventory import Host
from orchestrator.planning.facts import HostFacts
from orchestrator.preflight.room import essential_findings
from orchestrator.preflight.summary import as_errors
from orchestrator.transport.base import Completed, Transport

Progress = Callable[[str], None]


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
    return on_all(transports, "asking hosts", _prober(hosts, scheduler_port), progress)


def gather_some(
    hosts: Sequence[Host],
    transports: Mapping[str, Transport],
    *,
    scheduler_port: int,
    progress: Optional[Progress] = None,
) -> Tuple[Dict[str, Mapping[str, Any]], Dict[str, OrchError]]:
    """As ``gather``, from the hosts that answer; and by name the errors of those that do not."""
    outcomes = on_each(transports, "asking hosts", _prober(hosts, scheduler_port), progress)
    answers = {o.host: o.value for o in outcomes if o.error is None and o.value is not None}
    return answers, {o.host: o.error for o in outcomes if o.error is not None}


def _prober(hosts: Sequence[Host], scheduler_port: int) -> Callable[[Transport], Mapping[str, Any]]:
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

    return probe


def check_ready(
    hosts: Sequence[Host], facts: Mapping[str, HostFacts], *, needs_mindspore: bool
) -> None:
    """Raise HostNotReady (or HostErrors) for hosts on which the job cannot even begin."""
    findings = [
        finding
        for host in hosts
        for finding in essential_findings(host, facts[host.name], mindspore=needs_mindspore)
    ]
    errors = as_errors(findings)
    if errors:
        raise one_error(f"{len(errors)} problems on the hosts", errors)


def no_answer(host: Host, done: Completed, program: str) -> HostNotReady:
    """The error for a ``program`` sent to a host's Python that printed no answer."""
    tail = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
    if done.exit_status in (126, 127):
        return HostNotReady(
            f"cannot run {host.python}: {tail[0]}",
            hint="install Python 3.7 or newer there, or set `python:` in the inventory",
            host=host.name,
        )
    return HostNotReady(
        f"the {program} ended with status {done.exit_status}: {tail[0]}",
        hint=f"try by hand: ssh {host.address} {host.python} --version",
        host=host.name,
    )


def _answer(host: Host, done: Completed) -> Mapping[str, Any]:
    answer = last_object(done.stdout)
    if done.ok and isinstance(answer, dict):
        return answer
    raise no_answer(host, done, "probe")
