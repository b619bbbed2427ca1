"""Steps 4 to 6 of a launch: send, arm, start together; and how far apart the starts were.

Nobody starts before everybody is armed: a rank whose peers never come would wait for them, and
end with a message that hides the cause.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from orchestrator.engine import payload
from orchestrator.engine.hosts import on_all, on_each
from orchestrator.engine.launch import OpenRun
from orchestrator.errors import HostErrors, HostNotReady, OrchError, TransportError
from orchestrator.inventory import Inventory, Quarantined, working_hosts
from orchestrator.planning.plan import HostPlan, Plan
from orchestrator.runs.journal import Journal
from orchestrator.transport.base import Transport

Progress = Callable[[str], None]
_NEAR = 0.5
"""A spread of more than this part of HCCL_CONNECT_TIMEOUT is warned of."""


@dataclass(frozen=True)
class Spread:
    """How far apart the hosts were started, clocks corrected. Times in seconds.

    ``clock_s`` is how wrong that can be at most; ``limit_s`` is HCCL_CONNECT_TIMEOUT of the ranks,
    after which those that came first give up on the last; None where they have none.
    """

    spread_s: float
    clock_s: float
    first: str
    last: str
    limit_s: Optional[float]

    @property
    def warning(self) -> str:
        """A sentence where the spread is near the limit or over it; else nothing."""
        if self.limit_s is None or self.spread_s < _NEAR * self.limit_s:
            return ""
        how = "more than" if self.spread_s >= self.limit_s else "near"
        return (
            f"{self.last} was started {self.spread_s:.1f} s after {self.first}, {how} the "
            f"{self.limit_s:g} s of HCCL_CONNECT_TIMEOUT: ranks may give up on each other; "
            "raise it with --env HCCL_CONNECT_TIMEOUT=SECONDS"
        )


@dataclass(frozen=True)
class Started:
    """When a host was started, by its clock; its clock and ours around the answer."""

    host: str
    started: float
    wall: float
    asked: float
    answered: float

    @property
    def ours(self) -> float:
        """When it was started, by our clock. The host reads its clock just before it answers."""
        return self.started - (self.wall - self.answered)


def start_run(run: OpenRun, progress: Progress) -> Tuple[str, ...]:
    """Steps 4 to 6. On any error everything is undone and the error raised; ``give_up`` then ends
    the run, unless it is tried again. Returns what a person should know: leftovers that were
    ended, starts too far apart."""
    plans = {host.host: host for host in run.plan.hosts}
    try:
        _each(run, "sending files", "sent", lambda t: _send(run, plans[t.name], t), progress)
        armed = _each(run, "arming", "armed", lambda t: _arm(run, plans[t.name]), progress)
        notes = _swept(run, armed)
        starts = _each(run, "starting", "started", lambda t: _start(run, plans[t.name]), progress)
    except BaseException:
        undo(run, progress)
        raise
    found = spread([one for one in starts.values() if one is not None], run.plan)
    if found is not None:
        run.journal.append("start-spread", **vars(found))
        notes += [found.warning] if found.warning else []
    run.journal.append("running")
    return tuple(notes)


def give_up(journal: Journal, error: BaseException) -> None:
    """Journal that the run ends before it began, and because of which host, where it is one."""
    cause: Dict[str, Any] = {"rule": "start-failed", "sentence": str(error) or "interrupted"}
    if not isinstance(error, OrchError):
        journal.append("end", outcome="cancelled", exit_status=130, cause=cause)
        return
    errors = error.errors if isinstance(error, HostErrors) else (error,)
    gravest = min(errors, key=lambda one: one.exit_status)
    hosts = {one.host for one in errors}
    cause.update(code=gravest.code, host=hosts.pop() if len(hosts) == 1 else None)
    journal.append("end", outcome="failed", exit_status=error.exit_status, cause=cause)


def spread(starts: Sequence[Started], plan: Plan) -> Optional[Spread]:
    """Of hosts that told when they were started; None where none did."""
    if not starts:
        return None
    first = min(starts, key=lambda one: one.ours)
    last = max(starts, key=lambda one: one.ours)
    return Spread(
        spread_s=round(last.ours - first.ours, 3),
        clock_s=round(max(one.answered - one.asked for one in starts), 3),
        first=first.host,
        last=last.host,
        limit_s=_connect_timeout(plan),
    )


def with_spare(
    inventory: Inventory, error: OrchError, by: str, now: float
) -> Optional[Tuple[Inventory, Tuple[str, ...]]]:
    """The inventory with spares in the places of the hosts that ``error`` is about, and notes that
    say so. None: it is about something else, or there are too few spares."""
    errors = error.errors if isinstance(error, HostErrors) else (error,)
    names = {host.name for host in inventory.hosts}
    if not all(isinstance(one, (HostNotReady, TransportError)) for one in errors):
        return None
    if not all(one.host in names for one in errors):
        return None
    bad = [Quarantined(one.host, one.message, by, since=now) for one in errors]
    try:
        chosen, _ = working_hosts(inventory, bad)
    except HostNotReady:
        return None
    gone = {one.host: one.message for one in errors}
    left_out = [host.name for host in inventory.hosts if host.name in gone]
    came = [host.name for host in chosen.hosts if host.name not in names]
    notes = [
        f"{name} is left out ({gone[name]}); {spare} takes its place"
        for name, spare in zip(left_out, came)
    ]
    return chosen, tuple(notes)


def undo(run: OpenRun, progress: Progress) -> None:
    """Stop what is armed or running and remove the run's folder on every host."""
    plans = {host.host: host for host in run.plan.hosts}

    def clean(transport: Transport) -> None:
        host = plans[transport.name]
        there = transport.run(["test", "-e", f"{host.run_dir}/node/supervisor.py"], timeout=30)
        if there.ok:
            run.supervisor(host).stop("the launch was given up", grace_s=2.0)
        transport.run(["rm", "-rf", "--", host.run_dir], timeout=60)

    for outcome in on_each(run.transports, "undoing", clean, progress):
        if outcome.error is not None:
            run.journal.append("undo-failed", host=outcome.host, error=str(outcome.error))


def _send(run: OpenRun, host: HostPlan, transport: Transport) -> None:
    transport.put(payload.host_files(run.plan, host), host.run_dir)


def _arm(run: OpenRun, host: HostPlan) -> Mapping[str, Any]:
    return run.supervisor(host).arm()


def _start(run: OpenRun, host: HostPlan) -> Optional[Started]:
    asked = time.time()
    answer = run.supervisor(host).start()
    answered = time.time()
    try:
        started, wall = float(answer["started_wall"]), float(answer["wall"])
    except (KeyError, TypeError, ValueError):  # its disk is too full for its journal
        return None
    return Started(host.host, started, wall, asked, answered)


def _swept(run: OpenRun, armed: Mapping[str, Mapping[str, Any]]) -> List[str]:
    notes = []
    for host, answer in armed.items():
        for one in answer.get("swept", []):
            run.journal.append("swept", host=host, **one)
            notes.append(f"{host}: ended {one['swept']} processes that run {one['run_id']} left")
            if one["left"]:
                notes.append(f"{host}: still there of run {one['run_id']}: {one['left']}")
    return notes


def _connect_timeout(plan: Plan) -> Optional[float]:
    """The least HCCL_CONNECT_TIMEOUT of all ranks."""
    found: List[float] = []
    for host in plan.hosts:
        for process in host.processes:
            text = dict(process.env).get("HCCL_CONNECT_TIMEOUT", "")
            if process.rank is not None and text.isdecimal():
                found.append(float(text))
    return min(found) if found else None


def _each(
    run: OpenRun,
    doing: str,
    state: str,
    function: Callable[[Transport], Any],
    progress: Optional[Progress],
) -> Dict[str, Any]:
    answers = on_all(run.transports, doing, function, progress)
    for host in run.plan.hosts:
        run.journal.append("host", host=host.host, state=state)
    return answers
