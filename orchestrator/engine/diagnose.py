"""The evidence of a run of ours: its logs, and what the journals know of how each rank ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from orchestrator.diagnosis.cause import Diagnosis, first_cause
from orchestrator.diagnosis.evidence import Case, Device, LogEvidence, Process, Standstill
from orchestrator.diagnosis.exits import with_exit
from orchestrator.diagnosis.folder import devices_of
from orchestrator.diagnosis.reading import read_log
from orchestrator.diagnosis.signatures import SignatureTable, load_table
from orchestrator.engine.control import read_plan
from orchestrator.errors import OrchError
from orchestrator.runs.clocks import clock_ahead
from orchestrator.runs.journal import read_events
from orchestrator.runs.layout import RunPaths
from orchestrator.runs.state import ProcessState, ProcessStatus, RunState, read_state
from orchestrator.watching.reducer import LOST, Failure

Progress = Callable[[str], None]

_QUARTER_HOUR = 900.0


def tables(files: Sequence[Path] = ()) -> SignatureTable:
    """The signatures: built in, the user's own (``signatures.yaml`` in the configuration folder
    of glm2-orch), then ``files``; later ones come first. Raises SignatureError."""
    import platformdirs

    own = Path(platformdirs.user_config_dir("glm2-orch")) / "signatures.yaml"
    return load_table([*([own] if own.exists() else []), *files])


def diagnose_run(
    paths: RunPaths,
    table: SignatureTable,
    *,
    whole: bool = False,
    progress: Progress = lambda _text: None,
) -> Diagnosis:
    """The first cause of a run's failure, from its files on the controller; asks no host.

    Where the logs tell nothing, such as when a launch failed before its start, it is what the
    journal holds (rule ``journal``).
    """
    answer = first_cause(run_case(paths, table, whole=whole, progress=progress))
    for event in read_events(paths.journal):
        sentence = (event.get("cause") or {}).get("sentence")
        if event.get("event") == "end" and event.get("outcome") == "failed" and sentence:
            return answer if answer.found else replace(answer, rule="journal", reason=sentence)
    return answer


def run_case(
    paths: RunPaths,
    table: SignatureTable,
    *,
    whole: bool = False,
    progress: Progress = lambda _text: None,
) -> Case:
    """A run as a case."""
    state = read_state(paths)
    ahead = {host.name: clock_ahead(paths, host.name) for host in state.hosts}
    exits = {host.name: _exits(paths, host.name) for host in state.hosts}
    processes: List[Process] = []
    for number, process in enumerate(state.processes, 1):
        progress(f"reading logs: {number}/{len(state.processes)} {process.name}")
        events = exits[process.host].get(process.name, {})
        log = _log(paths, process.name, table, whole)
        processes.append(
            with_exit(_process(process, state, events, log, ahead[process.host] or 0.0), table)
        )
    return Case(
        tuple(processes),
        world_size=state.world_size or None,
        clocks_known=all(offset is not None for offset in ahead.values()),
        devices=_devices(paths),
        lost_hosts=_lost_hosts(paths),
        standstill=_standstill(paths),
    )


def _log(paths: RunPaths, name: str, table: SignatureTable, whole: bool) -> Optional[LogEvidence]:
    path = paths.log(name)
    try:
        return read_log(path, table, name=f"{path.parent.name}/{path.name}", whole=whole)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OrchError(
            f"cannot read {path}: {error.strerror}", hint="see the owner and mode of the file"
        ) from error


def _process(
    process: ProcessState,
    state: RunState,
    events: Mapping[str, Mapping[str, Any]],
    log: Optional[LogEvidence],
    ahead: float,
) -> Process:
    started, exited = events.get("process_started", {}), events.get("process_exited", {})
    exit_time = exited.get("wall")
    if exit_time is not None:
        exit_time += _utc_offset(started.get("wall"), log)
    return Process(
        name=process.name,
        rank=process.rank,
        host=process.host,
        logs=() if log is None else (log,),
        ended_by_us=process.status is ProcessStatus.STOPPED,
        running=process.status is ProcessStatus.RUNNING and not state.status.is_terminal,
        exit_code=process.exit_code,
        exit_time=exit_time,
        clock_ahead=ahead,
    )


def _utc_offset(started: Optional[float], log: Optional[LogEvidence]) -> float:
    """Seconds between the local time in a log and UTC. A log begins soon after its process was
    started, and time zones are quarters of an hour apart."""
    if started is None or log is None or log.first_time is None:
        return 0.0
    offset = round((log.first_time - started) / _QUARTER_HOUR) * _QUARTER_HOUR
    return offset if abs(offset) <= 14 * 3600 else 0.0


def _exits(paths: RunPaths, host: str) -> Dict[str, Dict[str, Mapping[str, Any]]]:
    found: Dict[str, Dict[str, Mapping[str, Any]]] = {}
    for event in read_events(paths.host_journal(host)):
        kind = event.get("event")
        if kind in ("process_started", "process_exited"):
            found.setdefault(str(event.get("name")), {})[str(kind)] = event
    return found


def _devices(paths: RunPaths) -> Dict[Device, int]:
    """What HCCL calls the devices of the run, as far as its plan tells."""
    try:
        plan = read_plan(paths)
    except OrchError:
        return {}
    devices: Dict[Device, int] = {}
    for host in plan.hosts:
        for process in host.processes:
            if process.rank is not None and process.device_id is not None:
                devices[(host.server_id, process.device_id)] = process.rank
    if plan.rank_table is not None:
        devices.update(devices_of(plan.rank_table)[0])
    return devices


def _standstill(paths: RunPaths) -> Optional[Standstill]:
    for event in read_events(paths.journal):
        seen = event.get("evidence") or {}
        if event.get("rule") == "hang" and event.get("action") == "stop":
            ranks = (rank for rank in seen.get("ranks") or () if isinstance(rank, int))
            sentence = event.get("sentence") or seen.get("sentence") or "no rank got on"
            return Standstill(str(sentence), tuple(ranks))
    return None


def _lost_hosts(paths: RunPaths) -> Dict[str, str]:
    lost: Dict[str, str] = {}
    for event in read_events(paths.journal):
        rule = event.get("rule")
        seen = event.get("evidence") or {}
        host = seen.get("host")
        if rule in LOST and isinstance(host, str):
            lost.setdefault(host, str(seen.get("sentence") or Failure(rule, host).sentence()))
    return lost
