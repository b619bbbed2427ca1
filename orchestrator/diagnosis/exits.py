"""How a process ended, as a finding: the system's SIGKILL or a crash leave no line of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

from orchestrator.diagnosis.evidence import Finding, LogEvidence, Process
from orchestrator.diagnosis.signatures import SignatureTable
from orchestrator.errors import Location

_KILLED = 137
_CRASHED = (132, 134, 135, 136, 139)


def with_exit(process: Process, table: SignatureTable) -> Process:
    """``process`` with a finding for a signal that ended it and that we did not send, and with
    its end as the time of lines around which there is none."""
    process = replace(process, logs=tuple(_dated(log, process.exit_time) for log in process.logs))
    name = _signature_of(process)
    if name is None:
        return process
    finding = Finding(
        signature=table[name],
        text=f"{process.name} ended with exit status {process.exit_code}",
        place=Location("journal"),
        time=process.exit_time,
        last_time=process.exit_time,
    )
    record = LogEvidence("journal", findings=(finding,), last_time=process.exit_time)
    return replace(process, logs=(*process.logs, record))


def _dated(log: LogEvidence, exit_time: Optional[float]) -> LogEvidence:
    findings = tuple(
        replace(finding, time=exit_time, last_time=exit_time) if finding.time is None else finding
        for finding in log.findings
    )
    return replace(log, findings=findings)


def _signature_of(process: Process) -> Optional[str]:
    if process.ended_by_us or process.exit_code is None:
        return None
    if process.exit_code == _KILLED:
        return "killed"
    return "crash" if process.exit_code in _CRASHED else None
