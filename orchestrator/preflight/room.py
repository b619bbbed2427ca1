"""Checks of what a host offers a job: work folder, shared memory, open files, names, ports,
software, and the files that the job reads."""

from __future__ import annotations

from typing import Dict, Iterator, List

from orchestrator.inventory import Host
from orchestrator.planning.facts import HostFacts
from orchestrator.preflight.catalogue import (
    CHECKPOINT,
    DATASET,
    LOW_FREE,
    LOW_FREE_ASCEND,
    LOW_OPEN_FILES,
    LOW_SHM,
    MINDFORMERS,
    MINDSPORE,
    MINIMUM_FREE,
    OPEN_FILES,
    RESOLVES,
    SHM,
    VOCABULARY,
    WORKDIR,
)
from orchestrator.preflight.compare import Place, differences
from orchestrator.preflight.findings import ASCEND, CRIT, WARN, Finding
from orchestrator.preflight.needs import NeededFile, Needs
from orchestrator.preflight.report import HostReport
from orchestrator.preflight.survey import Survey
from orchestrator.problems import shown


def essential_findings(host: Host, facts: HostFacts, *, mindspore: bool) -> Iterator[Finding]:
    """Without these a job cannot even begin: a work folder, and MindSpore where it is needed."""
    yield from _workdir(host, facts)
    if mindspore and facts.mindspore is None:
        yield MINDSPORE.bad(
            CRIT,
            f"{host.python} has no MindSpore"
            + (f": {facts.mindspore_error}" if facts.mindspore_error else ""),
            host.name,
            remedy=f"install it there: {host.python} -m pip install mindspore 'numpy<2'; "
            "or set `python:` in the inventory to the interpreter that has it",
        )


def room_findings(host: Host, report: HostReport) -> Iterator[Finding]:
    """Shared memory, open files, and the host's own name."""
    if host.device_target == ASCEND:
        yield _shm(host, report)
        limit = report.open_files
        if limit is not None and limit < LOW_OPEN_FILES:
            evidence = f"a process may open {limit} files"
            yield OPEN_FILES.bad(WARN, evidence, host.name)
        else:
            yield OPEN_FILES.ok("unlimited" if limit is None else str(limit), host.name)
    if report.name_error is None:
        yield RESOLVES.ok("", host.name)
    else:
        name = shown(report.facts.hostname or "")
        evidence = f"{name} is not resolved: {report.name_error}"
        yield RESOLVES.bad(WARN, evidence, host.name)


def port_findings(host: Host, report: HostReport, needs: Needs) -> Iterator[Finding]:
    """Ports that must be free; one finding for all free ports of a check."""
    by_check: Dict[str, List[int]] = {}
    checks = {check.name: check for check in needs.ports.get(host.name, {}).values()}
    for port, check in needs.ports.get(host.name, {}).items():
        by_check.setdefault(check.name, []).append(port)
    for name, ports in by_check.items():
        taken = [port for port in ports if port in report.ports_taken]
        for port in taken:
            who = report.ports_taken[port]
            evidence = f"port {port} is taken" + (f" by {shown(who, 100)[1:-1]}" if who else "")
            yield checks[name].bad(CRIT, evidence, host.name)
        if not taken:
            yield checks[name].ok(f"{_span(ports)} free", host.name)


def file_findings(survey: Survey) -> Iterator[Finding]:
    """Files that the job reads: there, and the same everywhere."""
    for file in survey.needs.files:
        if file.absolute:
            yield from _file(survey, file)
        else:
            yield file.check.bad(
                CRIT,
                f"{file.key} {shown(file.path)} is a relative path, and every rank starts in a "
                "folder of its own",
                remedy=f"give the absolute path that it has on the hosts: set {file.key}",
            )
    checked = {file.check.name for file in survey.needs.files}
    why = survey.needs.no_files or "the job reads none from the hosts"
    for check in (DATASET, VOCABULARY, CHECKPOINT):
        if check.name not in checked:
            yield check.skip(why)
    if MINDFORMERS.name not in checked:
        yield MINDFORMERS.skip("the job does not run it, or it is staged")


def _file(survey: Survey, file: NeededFile) -> Iterator[Finding]:
    contents: Dict[Place, str] = {}
    for host, report in survey.answered():
        found = report.files.get(file.path)
        if found is None:
            continue
        if found.error is not None:
            state = "is missing" if found.missing else f"cannot be read: {found.error}"
            evidence = f"{file.path} {state} ({file.key})"
            yield file.check.bad(CRIT, evidence, host.name)
            continue
        if not file.alike or found.sha256 is None:
            yield file.check.ok(f"{file.path} is there", host.name)
            continue
        how = " of samples" if found.sampled else ""
        size = f"{found.bytes} bytes" if found.bytes < 1 << 20 else f"{found.bytes >> 20} MiB"
        contents[host.name, None] = f"{size}, sha256{how} {found.sha256[:12]}"
    yield from differences(file.check, f"{file.path} with", contents, noun="host", status=CRIT)


def _workdir(host: Host, facts: HostFacts) -> Iterator[Finding]:
    room = facts.workdir
    if room is None or room.writable is None:
        return
    if room.writable is False:
        yield WORKDIR.bad(
            CRIT,
            f"the workdir {host.workdir} cannot be written: {room.error or 'no permission'}",
            host.name,
            remedy="give the user write access, or set another workdir in the inventory",
        )
        return
    if room.free_bytes is None:
        return
    if room.free_bytes < MINIMUM_FREE:
        evidence = f"the workdir {host.workdir} is full: {room.free_bytes >> 20} MiB are free"
        yield WORKDIR.bad(CRIT, evidence, host.name)
        return
    free = f"{room.free_bytes / 2**30:.1f} GiB free"
    low = LOW_FREE_ASCEND if host.device_target == ASCEND else LOW_FREE
    if room.free_bytes < low:
        evidence = f"{free} in {host.workdir}: a checkpoint may not fit"
        yield WORKDIR.bad(WARN, evidence, host.name)
    else:
        yield WORKDIR.ok(free, host.name)


def _shm(host: Host, report: HostReport) -> Finding:
    free = report.shm_free_bytes
    if free is None:
        return SHM.bad(WARN, "/dev/shm is not there", host.name)
    if free < LOW_SHM:
        return SHM.bad(WARN, f"{free >> 20} MiB are free in /dev/shm", host.name)
    return SHM.ok(f"{free / 2**30:.1f} GiB free", host.name)


def _span(ports: List[int]) -> str:
    return f"port {ports[0]}" if len(ports) == 1 else f"ports {min(ports)}-{max(ports)}"
