"""A folder of logs from anywhere as a case: which file belongs to which rank, by known layouts.

- runs of ours: ``logs/rank_N.log``; on a host ``ranks/rank_N/stdout.log``, whose ``exit.json``
  tells how the rank ended and whether we ended it
- MindFormers: ``output/log/rank_N/{info,error}.log``, ``mf_parallelN/…``, ``rank_N/mindformer.log``
- msrun: ``worker_N.log``, ``scheduler.log``
- ModelArts: ``…-proc-rank-N-device-M.txt``; ``…-worker-N.log`` is the log of a whole host
- plog: ``plog/plog-PID_TIME.log``, put to the rank whose own log shows that process id

Logs below one folder a host (``10.0.0.1/…``) are taken as those of that host.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from orchestrator.diagnosis.evidence import Case, Device, LogEvidence, Process
from orchestrator.diagnosis.exits import with_exit
from orchestrator.diagnosis.reading import read_log
from orchestrator.diagnosis.signatures import SignatureTable
from orchestrator.errors import UsageError

Progress = Callable[[str], None]

_SUFFIXES = (".log", ".txt", ".out", ".err")
_PACKED = (".gz", ".zip", ".xz", ".zst", ".bz2", ".tar", ".tgz", ".json", ".jsonl")
_RANK = (
    re.compile(r"proc-rank-(\d{1,6})-device-\d+"),
    re.compile(r"(?:^|/)rank[_-]?(\d{1,6})(?:[/._-]|$)"),
    re.compile(r"(?:^|/)worker_(\d{1,6})\.(?:log|txt|out|err)$"),
    re.compile(r"(?:^|/)mf_parallel(\d{1,6})/"),
)
_PLOG_PID = re.compile(r"(?:^|/)(?:plog|device)-(\d{1,18})_")
_MOST_FILES = 50_000
_MOST_TABLE = 64 << 20


@dataclass(frozen=True)
class FoundLog:
    """A log file: its path below the folder, and whose it is as far as the path tells."""

    path: Path
    name: str
    rank: Optional[int] = None
    host: str = ""
    pid: Optional[int] = None


def read_folder(
    folder: Path,
    table: SignatureTable,
    *,
    whole: bool = False,
    progress: Progress = lambda _text: None,
) -> Case:
    """The case that a folder of logs (or one log file) holds.

    Raises UsageError when there is no log in it, or it cannot be read.
    """
    found = discover(folder)
    if not found:
        raise UsageError(
            f"there is no log in {folder}",
            hint=f"give a folder with {', '.join(_SUFFIXES)} files, or the id of a run",
        )
    logs: List[Tuple[FoundLog, LogEvidence]] = []
    for number, log in enumerate(found, 1):
        progress(f"reading logs: {number}/{len(found)} {log.name}")
        try:
            logs.append((log, read_log(log.path, table, name=log.name, whole=whole)))
        except OSError as error:
            raise UsageError(
                f"cannot read {log.path}: {error.strerror}", hint="give it to your user to read"
            ) from error
    devices, size = _rank_tables(folder)
    case = case_of(logs, devices, size)
    paths = {log.name: log.path for log in found}
    ended = (_with_exit_file(process, paths) for process in case.processes)
    return replace(case, processes=tuple(with_exit(process, table) for process in ended))


def discover(folder: Path) -> List[FoundLog]:
    """The log files below ``folder``, in the order of their names. Raises UsageError."""
    if folder.is_file():
        return [_found(folder, folder.name)]
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", hint="give a run id, a folder or a file")
    paths: List[Path] = []
    for top, _, names in os.walk(folder):
        paths += [Path(top, name) for name in names if _is_log(name)]
        if len(paths) > _MOST_FILES:
            raise UsageError(
                f"there are more than {_MOST_FILES} log files in {folder}",
                hint="give the folder of one job",
            )
    paths = sorted(path for path in paths if path.is_file())
    found = [_found(path, path.relative_to(folder).as_posix()) for path in paths]
    return _with_hosts(found)


def case_of(
    logs: Sequence[Tuple[FoundLog, LogEvidence]],
    devices: Mapping[Device, int],
    world_size: Optional[int],
) -> Case:
    """The processes behind log files: files of one rank together. Pure."""
    by_pid = {
        (log.host, pid): log.rank
        for log, evidence in logs
        if log.rank is not None
        for pid in evidence.pids
    }
    twice = _ranks_of_several_hosts([log for log, _ in logs])
    processes: Dict[str, Process] = {}
    for log, evidence in logs:
        rank = log.rank
        if rank is None and log.pid is not None:
            rank = by_pid.get((log.host, log.pid))
        if rank is None:
            rank = evidence.rank
        for part_rank, part in _parts(evidence, rank):
            name = log.name if part_rank is None else f"rank_{part_rank}"
            if part_rank in twice:
                # Numbers of devices, not of ranks: the same on every host.
                name, part_rank = f"{log.host}/{name}", None
            known = processes.get(name) or Process(name, part_rank, log.host)
            processes[name] = replace(known, logs=(*known.logs, part))
    sizes = [log.world_size for _, log in logs if log.world_size]
    ranks = [p.rank for p in processes.values() if p.rank is not None]
    if world_size is None:
        world_size = max([*sizes, *(rank + 1 for rank in ranks)], default=0) or None
    return Case(tuple(processes.values()), world_size, devices=devices)


def _is_log(name: str) -> bool:
    """Also rotated ones (``x.log.1``) and those of glog (``x.log.ERROR.20240101``)."""
    return name.endswith(_SUFFIXES) or (".log." in name and not name.endswith(_PACKED))


def _found(path: Path, name: str) -> FoundLog:
    rank = next((int(m.group(1)) for m in (p.search(name) for p in _RANK) if m), None)
    pid = _PLOG_PID.search(name)
    return FoundLog(path, name, rank, pid=int(pid.group(1)) if pid and rank is None else None)


def _with_hosts(found: List[FoundLog]) -> List[FoundLog]:
    """The first folder of each path is its host, where there are several that hold the logs of
    more than one rank or plogs, and none is the name of a rank or of a layout."""
    tops = {log.name.split("/")[0] for log in found if "/" in log.name}
    layout = re.compile(
        r"(?:rank|worker|mf_parallel|device|plog|debug|run|log|output|attempt)", re.I
    )
    if len(tops) < 2 or any(layout.match(top) for top in tops):
        return found
    return [replace(log, host=log.name.split("/")[0]) if "/" in log.name else log for log in found]


def _ranks_of_several_hosts(found: Sequence[FoundLog]) -> Set[int]:
    hosts: Dict[int, Set[str]] = {}
    for log in found:
        if log.rank is not None:
            hosts.setdefault(log.rank, set()).add(log.host)
    return {rank for rank, names in hosts.items() if len(names) > 1}


def _with_exit_file(process: Process, paths: Mapping[str, Path]) -> Process:
    """How a rank ended, where its host's run folder holds it beside the log."""
    for log in process.logs:
        path = paths.get(log.file)
        if path is None or path.name != "stdout.log":
            continue
        try:
            ending = json.loads(path.with_name("exit.json").read_bytes())
            code, ours = int(ending["code"]), ending.get("collateral") is True
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        # Journals hold Unix time, logs local time: the last line is near enough.
        return replace(process, exit_code=code, exit_time=log.last_time, ended_by_us=ours)
    return process


def _parts(evidence: LogEvidence, rank: Optional[int]) -> List[Tuple[Optional[int], LogEvidence]]:
    """A log that several ranks wrote into, one part a rank."""
    named: Set[int] = {f.rank for f in evidence.findings if f.rank is not None}
    if rank is not None or not named:
        return [(rank, evidence)]
    parts: List[Tuple[Optional[int], LogEvidence]] = []
    for one in sorted(named):
        own = tuple(f for f in evidence.findings if f.rank == one)
        parts.append((one, replace(evidence, findings=own)))
    rest = tuple(f for f in evidence.findings if f.rank is None)
    if rest:
        parts.append((None, replace(evidence, findings=rest)))
    return parts


def _rank_tables(folder: Path) -> Tuple[Dict[Device, int], Optional[int]]:
    """Devices and the number of ranks, from the rank table with the most ranks in the folder."""
    best: Dict[Device, int] = {}
    size: Optional[int] = None
    if not folder.is_dir():
        return best, size
    for path in sorted(folder.rglob("*.json")):
        if not re.search(r"rank_?table|hccl", path.name, re.I) or not path.is_file():
            continue
        if path.stat().st_size > _MOST_TABLE:
            continue
        devices, ranks = devices_of(path.read_text("utf-8", "replace"))
        if len(ranks) > (size or 0):
            best, size = devices, len(ranks)
    return best, size


def devices_of(rank_table: str) -> Tuple[Dict[Device, int], Set[int]]:
    """(server, device) -> rank of a rank table, and its ranks; both empty for another text."""
    devices: Dict[Device, int] = {}
    ranks: Set[int] = set()
    try:
        for server in json.loads(rank_table)["server_list"]:
            for device in server["device"]:
                rank, number = int(device["rank_id"]), int(device["device_id"])
                ranks.add(rank)
                for address in (server["server_id"], server.get("host_ip")):
                    if address:
                        devices[(str(address), number)] = rank
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}, set()
    return devices, ranks
