"""Asks all hosts, at once, what the checks of ``orchestrator.preflight`` want to know.

One round trip a host gives the facts for the plan, too. Where a host does not know its peers'
device IPs from the inventory, the pings take a second one, because every host has to have said
its addresses first.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from orchestrator.engine.gather import no_answer
from orchestrator.engine.hosts import on_each
from orchestrator.engine.shipped import shipped
from orchestrator.engine.supervisor import last_object
from orchestrator.errors import HostNotReady, OrchError, one_error
from orchestrator.inventory import Host
from orchestrator.job import Job
from orchestrator.node import probe
from orchestrator.node.preflight import AT_ONCE
from orchestrator.planning.environment import SCHEDULER_PORT
from orchestrator.planning.facts import HostFacts
from orchestrator.preflight.catalogue import ANSWERS, CHECKPOINT, REACHABLE
from orchestrator.preflight.checks import judge
from orchestrator.preflight.findings import ASCEND, Finding
from orchestrator.preflight.hccn_tool import Ping
from orchestrator.preflight.needs import HCCL_BASE_PORT, Needs, cluster_address, needs_of
from orchestrator.preflight.network import known_addresses
from orchestrator.preflight.peers import choose_peers
from orchestrator.preflight.pings import PlannedPing, choose
from orchestrator.preflight.report import HostReport, parse_answers, parse_report
from orchestrator.preflight.summary import as_errors
from orchestrator.preflight.survey import Exchange, PingResult, Survey
from orchestrator.preflight.tools import NotUnderstood, Unanswered
from orchestrator.transport.base import Transport

Progress = Callable[[str], None]

_BASE_S = 60.0
_READING_S = 3600.0
_TOOLS_A_DEVICE = 9


def survey(
    hosts: Sequence[Host],
    transports: Mapping[str, Transport],
    job: Optional[Job],
    *,
    full: bool = False,
    progress: Optional[Progress] = None,
) -> Survey:
    """Ask every host. A host that cannot be asked is in ``errors``; the others are not held up.

    ``full``: ping all pairs and read large files whole. Raises PlanError when the job's recipe
    cannot start ranks on these hosts.
    """
    needs = needs_of(hosts, job)
    by_name = {host.name: host for host in hosts}
    early = _pings_of(_declared(hosts), full)
    port = (job.scheduler_port if job is not None else None) or SCHEDULER_PORT
    meeting = HCCL_BASE_PORT if any(host.device_target == ASCEND for host in hosts) else port
    peers = choose_peers(hosts, meeting, full=full) if _are_apart(hosts) else {}

    def ask(transport: Transport) -> Tuple[HostReport, Exchange, List[PingResult]]:
        host = by_name[transport.name]
        request = _request(host, needs, port, full)
        request["peers"] = [(peer.address, peer.port) for peer in peers.get(host.name, ())]
        pings = early.get(host.name, [])
        seconds = _BASE_S + _tools_s(len(host.devices) * _TOOLS_A_DEVICE) + _pings_s(len(pings))
        if full:
            seconds += _READING_S  # large files on slow disks
        asked = time.time()
        answer = _ask(host, transport, {"survey": request, "pings": _pairs(pings)}, seconds)
        answered = time.time()
        report = parse_report(answer, host=host.name)
        exchange = Exchange(asked, answered, report.clock)
        return report, exchange, _results(host, pings, answer)

    outcomes = on_each(transports, "checking hosts", ask, progress)
    answers = {o.host: o.value for o in outcomes if o.value is not None}
    found = Survey(
        hosts=tuple(hosts),
        needs=needs,
        reports={name: report for name, (report, _, _) in answers.items()},
        exchanges={name: exchange for name, (_, exchange, _) in answers.items()},
        errors={o.host: o.error for o in outcomes if o.error is not None},
        pings=tuple(result for _, _, results in answers.values() for result in results),
        peers=peers,
    )
    if early:
        return found
    return _with_pings(found, transports, full, progress)


@dataclass(frozen=True)
class Result:
    """What a preflight found, and the facts of the hosts that answered, for the plan."""

    findings: Sequence[Finding]
    facts: Mapping[str, HostFacts]
    errors: Mapping[str, OrchError]
    """Why the other hosts did not answer."""

    def refuse(self) -> None:
        """Raise for what is critical: the hosts' own errors, and HostNotReady for each CRIT;
        HostErrors for several."""
        others = [f for f in self.findings if f.check not in (REACHABLE.name, ANSWERS.name)]
        critical = as_errors(others)
        parts = []
        if self.errors:
            total = len({*self.facts, *self.errors})
            parts.append(f"{len(self.errors)} of {total} hosts failed")
        if critical:
            parts.append(f"{len(critical)} critical findings")
        if parts:
            message = f"preflight: {', '.join(parts)}"
            raise one_error(message, [*self.errors.values(), *critical])


def preflight(
    hosts: Sequence[Host],
    transports: Mapping[str, Transport],
    job: Optional[Job],
    *,
    full: bool = False,
    progress: Optional[Progress] = None,
) -> Result:
    """``survey``, judged."""
    found = survey(hosts, transports, job, full=full, progress=progress)
    facts = {name: report.facts for name, report in found.reports.items()}
    return Result(judge(found), facts, found.errors)


def _with_pings(
    found: Survey, transports: Mapping[str, Transport], full: bool, progress: Optional[Progress]
) -> Survey:
    """The second round trip, where there is anything to ping."""
    addresses = {
        host.name: known_addresses(host, report)
        for host, report in found.answered()
        if host.device_target == ASCEND
    }
    pings = {name: planned for name, planned in _pings_of(addresses, full).items() if planned}
    by_name = {host.name: host for host in found.hosts}

    def ask(transport: Transport) -> List[PingResult]:
        host = by_name[transport.name]
        planned = pings[host.name]
        request = {"pings": _pairs(planned)}
        return _results(host, planned, _ask(host, transport, request, _pings_s(len(planned))))

    if not pings:
        return found
    chosen = {name: transports[name] for name in pings}
    outcomes = on_each(chosen, "pinging between devices", ask, progress)
    return replace(
        found,
        errors={**found.errors, **{o.host: o.error for o in outcomes if o.error is not None}},
        pings=tuple(result for o in outcomes for result in o.value or ()),
    )


def _are_apart(hosts: Sequence[Host]) -> bool:
    return len(hosts) > 1 and all(host.connection != "local" for host in hosts)


def _declared(hosts: Sequence[Host]) -> Dict[str, Dict[int, str]]:
    """Addresses of all NICs, when the inventory declares those of all hosts; else nothing."""
    if not all(host.device_ips and host.device_target == ASCEND for host in hosts):
        return {}
    return {h.name: {d: str(ip) for d, ip in zip(h.devices, h.device_ips)} for h in hosts}


def _pings_of(
    addresses: Mapping[str, Mapping[int, str]], full: bool
) -> Dict[str, List[PlannedPing]]:
    return choose(addresses, full=full) if len(addresses) > 1 else {}


def _request(host: Host, needs: Needs, port: int, full: bool) -> Dict[str, Any]:
    return {
        "devices": list(host.devices),
        "workdir": host.workdir,
        "port": port,
        "tools": host.device_target == ASCEND,
        "address": "127.0.0.1" if host.connection == "local" else cluster_address(host),
        "ports": sorted(needs.ports.get(host.name, {})),
        # A folder of weights holds the shards of the host's own ranks: it only has to be there.
        "files": [(f.path, f.check is not CHECKPOINT) for f in needs.files if f.absolute],
        "whole": full,
    }


def _ask(
    host: Host, transport: Transport, request: Mapping[str, Any], seconds: float
) -> Mapping[str, Any]:
    argv = [host.python, "-"]
    done = transport.run(argv, stdin=program(request), timeout=seconds)
    answer = last_object(done.stdout)
    if done.ok and isinstance(answer, dict):
        return answer
    raise no_answer(host, done, "preflight")


def program(request: Mapping[str, Any]) -> bytes:
    """The Python program that answers ``request`` on a host."""
    run = f"package.preflight.main(json.loads({json.dumps(request)!r}))"
    return shipped(("probe", "preflight"), run)


def _pairs(pings: Sequence[PlannedPing]) -> List[Tuple[int, str]]:
    return [(ping.device, ping.address) for ping in pings]


def _results(
    host: Host, planned: Sequence[PlannedPing], answer: Mapping[str, Any]
) -> List[PingResult]:
    """Answers in the order of what was asked. Raises HostNotReady when they do not fit."""
    try:
        said = [
            one.said
            for one in parse_answers(answer["pings"] if planned else [])
            if isinstance(one.said, (Ping, NotUnderstood, Unanswered))
        ]
        if len(said) != len(planned):
            raise ValueError(f"{len(said)} answers to {len(planned)} pings")
    except (KeyError, TypeError, ValueError) as error:
        raise HostNotReady(
            f"the answer to the pings is not usable: {error}", host=host.name, hint="run it again"
        ) from error
    return [
        PingResult(host.name, ping.device, ping.peer, ping.address, one)
        for ping, one in zip(planned, said)
    ]


def _tools_s(calls: int) -> float:
    """Time for so many tools that all hang."""
    return probe.TOOL_TIMEOUT_S * -(-calls // AT_ONCE)


def _pings_s(pings: int) -> float:
    return _BASE_S + _tools_s(pings)
