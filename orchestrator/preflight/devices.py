"""Checks of the devices of one host: present, healthy, free."""

from __future__ import annotations

from typing import Dict, Iterator, List, Optional, Union

from orchestrator.inventory import Host
from orchestrator.preflight.catalogue import (
    HELD_CRIT,
    HELD_WARN,
    NPU_ECC,
    NPU_HEALTH,
    NPU_MEMORY,
    NPU_PRESENT,
    NPU_PROCESSES,
    TOOLS,
    UNDERSTOOD,
)
from orchestrator.preflight.findings import CRIT, WARN, Finding
from orchestrator.preflight.npu_smi import DriverDown, EccCounts, Npu, NpuHealth, NpuTable
from orchestrator.preflight.report import HostReport, answers_by_topic
from orchestrator.preflight.tools import NotUnderstood, Unanswered
from orchestrator.problems import shown

_HEALTHS = ("OK", "Warning", "Alarm", "Critical", "UNKNOWN")
_NPU_SMI = "devices, health, ECC, processes and memory are not checked"
_HCCN_TOOL = "device IPs, links, gateways, TLS and pings are not checked"


def tool_findings(host: Host, report: HostReport) -> Iterator[Finding]:
    """Tools that are missing or hang, and outputs that are not understood."""
    missing = {a.tool for a in report.answers if _missing(a.said)}
    for tool in sorted(missing):
        lost = _NPU_SMI if tool == "npu-smi" else _HCCN_TOOL
        yield TOOLS.bad(WARN, f"{tool} is not found: {lost}", host.name)
    bad = bool(missing)
    for answer in report.answers:
        said = answer.said
        if isinstance(said, Unanswered) and not said.missing:
            bad = True
            command = _of_any_device(said.command, answer.device)
            yield TOOLS.bad(CRIT, f"`{command}`: {said.why}", host.name, answer.device)
        elif isinstance(said, NotUnderstood):
            yield not_understood(said, host.name, answer.device)
    if not bad:
        yield TOOLS.ok("npu-smi and hccn_tool answer", host.name)
    if not any(isinstance(answer.said, NotUnderstood) for answer in report.answers):
        yield UNDERSTOOD.ok("", host.name)


def not_understood(said: NotUnderstood, host: str, device: Optional[int]) -> Finding:
    """The WARN for an output that no parser knows, with the raw text."""
    text = shown(said.text.strip(), 160)
    command = _of_any_device(said.command, device)
    return UNDERSTOOD.bad(
        WARN,
        f"`{command}` is not understood ({said.why}); it printed {text}",
        host,
        device,
        remedy=f"ssh {host} {said.command}; read it, and report its output as a bug of glm2-orch",
    )


def device_findings(host: Host, report: HostReport) -> Iterator[Finding]:
    """What npu-smi says of the host's devices. Of what it does not say nothing is found."""
    tables = (answer.said for answer in report.answers if answer.argv == ("npu-smi", "info"))
    table = next(tables, None)
    healths = answers_by_topic(report, NpuHealth)
    eccs = answers_by_topic(report, EccCounts)
    if isinstance(table, DriverDown):
        yield NPU_PRESENT.bad(
            CRIT,
            f"npu-smi cannot talk to the driver: {shown(table.text)}",
            host.name,
            remedy=f"ssh {host.name} npu-smi info; load the driver, in a container map the devices",
        )
    npus: Dict[int, Npu] = {}
    if isinstance(table, NpuTable):
        npus = {npu.device: npu for npu in table.npus}
        yield from _unspoken(host, table)
    for device in host.devices:
        npu = npus.get(device)
        if isinstance(table, NpuTable) and npu is None:
            there = ", ".join(str(number) for number in sorted(npus))
            yield NPU_PRESENT.bad(
                CRIT, f"device {device} is missing: npu-smi lists {there}", host.name, device
            )
            continue
        if npu is not None and isinstance(table, NpuTable):
            yield NPU_PRESENT.ok(npu.name, host.name, device)
            yield from _held(host, report, table, npu)
        yield from _health(host, device, npu, healths.get(device))
        if device in eccs:
            yield _ecc(host, device, eccs[device])


def _unspoken(host: Host, table: NpuTable) -> Iterator[Finding]:
    listed = {npu.device for npu in table.npus}
    for device in host.devices:
        if device in listed and device not in table.accounted:
            text = "it does not say whether a process is on the device"
            yield UNDERSTOOD.bad(WARN, f"`npu-smi info`: {text}", host.name, device)


def _health(
    host: Host, device: int, npu: Optional[Npu], own: Optional[NpuHealth]
) -> Iterator[Finding]:
    """One finding from the table and from ``-t health``: the worse of the two counts."""
    states = ([npu.health] if npu else []) + ([own.status] if own else [])
    bad = [state for state in states if state != "OK"]
    if not states:
        return
    if not bad:
        yield NPU_HEALTH.ok("OK", host.name, device)
        return
    details = [text for text in ((own.code, own.information) if own else ()) if text]
    evidence = ": ".join([f"health {bad[0]}", *details])
    if all(state not in _HEALTHS for state in bad):
        yield UNDERSTOOD.bad(WARN, f"unknown health {shown(bad[0])}", host.name, device)
    else:
        mild = all(state == "Warning" for state in bad)
        yield NPU_HEALTH.bad(WARN if mild else CRIT, evidence, host.name, device)


def _ecc(host: Host, device: int, counts: EccCounts) -> Finding:
    errors = counts.fatal or counts.others
    if not errors:
        return NPU_ECC.ok("no errors", host.name, device)
    evidence = ", ".join(f"{name} {count}" for name, count in errors)
    return NPU_ECC.bad(CRIT if counts.fatal else WARN, evidence, host.name, device)


def _held(host: Host, report: HostReport, table: NpuTable, npu: Npu) -> Iterator[Finding]:
    processes = [process for process in table.processes if process.device == npu.device]
    for process in processes:
        name = shown(process.name) if process.name else "a process without a name"
        evidence = f"{name} (pid {process.pid}) holds {process.memory_mb} MB"
        remedy = f"ssh {host.name} kill {process.pid}, after asking its owner"
        run = report.run_ids.get(process.pid)
        if run is not None:
            evidence += f", of run {shown(run)}"
            remedy = f"glm2-orch stop {run}"
        yield NPU_PROCESSES.bad(CRIT, evidence, host.name, npu.device, remedy=remedy)
    if processes:
        return  # the memory is theirs
    if npu.device in table.accounted:
        yield NPU_PROCESSES.ok("none", host.name, npu.device)
    yield from _memory(host, npu)


def _memory(host: Host, npu: Npu) -> Iterator[Finding]:
    if npu.hbm_used_mb is None or not npu.hbm_total_mb:
        text = "`npu-smi info` does not say how much device memory is used"
        yield UNDERSTOOD.bad(WARN, text, host.name, npu.device)
        return
    share = npu.hbm_used_mb / npu.hbm_total_mb
    evidence = f"{npu.hbm_used_mb} of {npu.hbm_total_mb} MB held"
    if share <= HELD_WARN:
        yield NPU_MEMORY.ok(evidence, host.name, npu.device)
        return
    status = CRIT if share > HELD_CRIT else WARN
    yield NPU_MEMORY.bad(status, f"{evidence}, by no process seen", host.name, npu.device)


def _of_any_device(command: str, device: Optional[int]) -> str:
    """The command with N for the device, so that what all devices say is the same."""
    return command.replace(f" -i {device}", " -i N")


def _missing(said: Union[object, Unanswered]) -> bool:
    return isinstance(said, Unanswered) and said.missing


def chip_names(report: HostReport) -> List[str]:
    """Names of the chips, such as ``910ProB``."""
    tables = [answer.said for answer in report.answers if isinstance(answer.said, NpuTable)]
    return [npu.name for table in tables for npu in table.npus]
