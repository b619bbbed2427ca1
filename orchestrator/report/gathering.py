"""Everything that a report shows of a run, read once from its files on the controller."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from orchestrator.errors import OrchError
from orchestrator.planning.facts import VERSIONS
from orchestrator.planning.plan import Plan, PlannedProcess, plan_from_json
from orchestrator.report.curves import RankHistory, read_history
from orchestrator.report.reading import RunReader, Snapshot
from orchestrator.runs.clocks import clock_ahead
from orchestrator.runs.journal import read_events
from orchestrator.runs.layout import RunPaths
from orchestrator.runs.state import Event

Progress = Callable[[str], None]

_SECRET = ("TOKEN", "SECRET", "PASSW", "CREDENTIAL", "PRIVATE", "ACCESS_KEY", "API_KEY", "APIKEY")


@dataclass(frozen=True)
class Collected:
    """A complete step that was collected."""

    step: str
    files: int
    nbytes: int


@dataclass(frozen=True)
class Gathered:
    """A run for a report. ``plan`` is None where its file is missing or damaged; ``cause`` is
    the record of a diagnosis, None where there is nothing to look for."""

    shot: Snapshot
    histories: Tuple[RankHistory, ...]
    node_events: Mapping[str, Tuple[Event, ...]]
    ahead: Mapping[str, float]
    plan: Optional[Plan]
    plan_problem: str
    collected: Tuple[Collected, ...]
    cause: Optional[Mapping[str, Any]]


def gather(
    paths: RunPaths,
    cause: Optional[Mapping[str, Any]],
    progress: Progress = lambda _text: None,
) -> Gathered:
    """Read a run; asks no host."""
    shot = RunReader(paths).read()
    histories: List[RankHistory] = []
    for number, rank in enumerate(shot.state.ranks, 1):
        progress(f"reading metrics: {number}/{len(shot.state.ranks)} {rank.name}")
        histories.append(read_history(rank.rank or 0, paths.metrics(rank.name)))
    hosts = [host.name for host in shot.state.hosts]
    plan, problem = _plan(paths)
    return Gathered(
        shot=shot,
        histories=tuple(histories),
        node_events={name: tuple(read_events(paths.host_journal(name))) for name in hosts},
        ahead={name: clock_ahead(paths, name) or 0.0 for name in hosts},
        plan=plan,
        plan_problem=problem,
        collected=_collected(paths),
        cause=cause,
    )


def environment(plan: Plan) -> Tuple[Dict[str, str], Dict[str, str]]:
    """Variables that all ranks have alike, and those that differ, as ``from … to …``.

    The values of names that sound like secrets are hidden: a report is passed on.
    """
    values: Dict[str, List[str]] = defaultdict(list)
    ranks = [one for host in plan.hosts for one in host.processes if one.rank is not None]
    for process in ranks:
        for name, value in process.env:
            values[name].append("(hidden)" if _is_secret(name) else value)
    common: Dict[str, str] = {}
    differing: Dict[str, str] = {}
    for name, own in sorted(values.items()):
        if len(own) == len(ranks) and len(set(own)) == 1:
            common[name] = own[0]
        else:
            differing[name] = f"{own[0]} … {own[-1]}" if len(own) == len(ranks) else "some ranks"
    return common, differing


def software(run: Gathered) -> List[Tuple[Tuple[str, ...], Dict[str, str]]]:
    """Hosts that had the same versions when the run was launched, and those of these that are
    known; the largest group first. Empty for a run that never came so far."""
    said = [event for event in run.shot.events if event.get("event") == "versions"]
    return [
        (
            tuple(map(str, group["hosts"])),
            {name: str(group[name]) for name in VERSIONS if group.get(name) is not None},
        )
        for group in (said[-1]["groups"] if said else ())
    ]


def planned_text(plan: Plan, path: str) -> Optional[str]:
    """A file that the hosts receive, such as ``job.yaml``; None when none receives it."""
    for host in plan.hosts:
        for file in host.files:
            if file.path == path:
                return file.text
    return None


def first_rank(plan: Plan) -> Optional[PlannedProcess]:
    """The process of the lowest rank; None in a plan of services only."""
    ranks = [one for host in plan.hosts for one in host.processes if one.rank is not None]
    return min(ranks, key=lambda one: one.rank or 0, default=None)


def _plan(paths: RunPaths) -> Tuple[Optional[Plan], str]:
    try:
        return plan_from_json(paths.plan.read_text("utf-8")), ""
    except OSError as error:
        return None, f"the plan cannot be read: {error.strerror}"
    except OrchError as error:
        return None, str(error)


def _collected(paths: RunPaths) -> Tuple[Collected, ...]:
    """What ``collect-ckpt`` brought to the run's own folder."""
    try:
        steps = json.loads((paths.checkpoints / "manifest.json").read_text("utf-8"))["steps"]
        return tuple(
            Collected(
                str(step), len(entry["files"]), sum(int(file["size"]) for file in entry["files"])
            )
            for step, entry in steps.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()


def _is_secret(name: str) -> bool:
    return any(word in name.upper() for word in _SECRET)
