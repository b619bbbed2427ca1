"""Taking a run up again: reopening it, following it in the background, ending it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional

from orchestrator.engine import payload
from orchestrator.engine.hosts import connected, load_hosts, on_each
from orchestrator.engine.launch import OpenRun
from orchestrator.errors import Busy, HostNotReady, OrchError, PlanError
from orchestrator.notifications.announcer import Announcer
from orchestrator.planning.plan import Plan, plan_from_json
from orchestrator.runs import lease
from orchestrator.runs.journal import Journal
from orchestrator.runs.layout import RunPaths
from orchestrator.transport.base import Transport
from orchestrator.transport.pool import Outcome
from orchestrator.watching.reducer import STOP_REASON

Progress = Callable[[str], None]
Answer = Dict[str, Any]


def read_plan(paths: RunPaths) -> Plan:
    """The plan that a run executes. Raises PlanError when the file is damaged."""
    try:
        text = paths.plan.read_text("utf-8")
    except OSError as error:
        raise PlanError(
            f"cannot read the plan of run {paths.run_id}: {error.strerror}",
            hint="the run folder is damaged; launch a new run",
        ) from None
    return plan_from_json(text)


@contextmanager
def reopened(paths: RunPaths) -> Iterator[OpenRun]:
    """An existing run, with transports to its hosts. Commands are sent in the name of its newest
    controller; who takes the run's lease becomes that (``OpenRun.controlled_by``)."""
    plan = read_plan(paths)
    epoch = lease.last_epoch(paths.lock)
    caller = ("--epoch", str(epoch)) if epoch else ()
    with connected(load_hosts(paths.hosts_file)) as transports:
        journal = Journal(paths.journal, listener=Announcer(paths))
        yield OpenRun(paths, journal, plan, transports, caller)


def take_over(run: OpenRun, held: lease.Lease) -> OpenRun:
    """The run, controlled by the holder of ``held``, whoever controlled it before: from now on
    the hosts refuse that one. Hosts that do not answer now learn of it when they are followed."""
    plans = {host.host: host for host in run.plan.hosts}
    states = on_each(run.transports, "asking", lambda t: run.supervisor(plans[t.name]).status())
    known = [(outcome.value or {}).get("controller") or {} for outcome in states]
    held.raise_to(1 + max([held.epoch - 1, *(int(one.get("epoch", 0)) for one in known)]))
    run = run.controlled_by(held)
    run.journal.append("take-over", epoch=held.epoch, owner=held.owner)
    on_each(run.transports, "taking over", lambda t: run.supervisor(plans[t.name]).claim())
    return run


def watch_in_background(paths: RunPaths) -> int:
    """Start a controller for the run that outlives this process; returns its pid.

    Returns once that process holds the run's lease. Raises OrchError when it ends before.
    """
    with paths.controller_log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli.main", "control", paths.run_id],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
            env={**os.environ, "GLM2_ORCH_HOME": str(paths.dir.parent.parent)},
        )
    while True:
        held = lease.holder(paths.lock)
        if held is not None and held.get("pid") == process.pid:
            return process.pid
        if process.poll() is not None:
            if process.returncode in (0, 5, 6, 7, 8):
                return process.pid
            raise OrchError(
                f"the background controller ended with status {process.returncode}",
                hint=f"see {paths.controller_log}; take over with: glm2-orch attach {paths.run_id}",
            )
        time.sleep(0.05)


def stop_run(run: OpenRun, *, grace_s: float, progress: Progress) -> List[Outcome[Answer]]:
    """Ask every host at once to end the run; certificates by host. Idempotent."""
    plans = {host.host: host for host in run.plan.hosts}
    if not ended(run.paths):
        run.journal.append("decision", action="stop", rule="stop-requested", evidence={})

    def stop(transport: Transport) -> Answer:
        host = plans[transport.name]
        try:
            return run.supervisor(host).stop(STOP_REASON, grace_s=grace_s)
        except HostNotReady:
            if transport.run(["test", "-e", host.run_dir]).ok:
                raise
        # A launch that was given up, or a run whose folder was removed since: the node side is
        # sent once more, to look for what may be left.
        try:
            transport.put(payload.host_files(run.plan, host), host.run_dir)
            return run.supervisor(host).stop(STOP_REASON, grace_s=grace_s)
        finally:
            transport.run(["rm", "-rf", "--", host.run_dir], timeout=60)

    outcomes = on_each(run.transports, "stopping", stop, progress)
    for outcome in outcomes:
        if outcome.value is not None:
            run.journal.append("certificate", host=outcome.host, **outcome.value)
    return outcomes


def end_unwatched(run: OpenRun, watch: Callable[[OpenRun], object]) -> None:
    """After ``stop_run``: let the controller write the ending, or do it where there is none.

    ``watch`` follows the run to its end; it is called only when no controller is alive.
    """
    try:
        held = lease.acquire(run.paths.lock, "stop")
    except Busy:
        wait_for_end(run.paths)
        return
    try:
        if not ended(run.paths):
            watch(run.controlled_by(held))
    finally:
        held.release()


def is_running(paths: RunPaths) -> bool:
    """Whether all ranks were started and no ending is journaled."""
    kinds = [event["event"] for event in Journal(paths.journal).events()]
    return "running" in kinds and "end" not in kinds


def ended(paths: RunPaths) -> Optional[Mapping[str, Any]]:
    """The run's ``end`` entry, or None."""
    ends = [event for event in Journal(paths.journal).events() if event["event"] == "end"]
    return ends[-1] if ends else None


def wait_for_end(paths: RunPaths, timeout: float = 60.0) -> None:
    """Wait until the run's ending is journaled, its controller is gone, or the time is over."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and lease.holder(paths.lock) is not None:
        if ended(paths):
            return
        time.sleep(0.1)
