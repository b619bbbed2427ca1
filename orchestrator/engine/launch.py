"""The life of a launch, in numbered steps.

1. Ask every host for its facts and check it (``engine.preflight``), all at once. Nothing is
   written anywhere yet.
2. Plan. Pure; what is executed is exactly this plan.
3. Open the run: its folder, plan, hosts and first journal entry on the controller.
4. Send the files to every host, verified by checksum.
5. Arm the supervisors of all hosts: they take their locks and wait.
6. Start them together.
7. Follow to the end (``engine.follow``), or leave that to a background controller.
8. Prove that nothing is left, and write the ending.

A failure or interruption in steps 4 to 6 undoes what was done: supervisors are stopped and the
run's folders removed from the hosts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional

from orchestrator.engine import payload
from orchestrator.engine.follow import Ending, failure_record, follow
from orchestrator.engine.hosts import on_all, on_each, save_hosts
from orchestrator.engine.reader import HostRun, Observer
from orchestrator.engine.rules import rules_of
from orchestrator.engine.supervisor import Supervisor
from orchestrator.errors import OrchError
from orchestrator.inventory import Inventory
from orchestrator.planning.plan import HostPlan, Plan
from orchestrator.runs.journal import Journal
from orchestrator.runs.layout import RunPaths, RunStore
from orchestrator.transport.base import Transport

Progress = Callable[[str], None]
_EXIT_OF = {"succeeded": 0, "failed": 6, "cancelled": 8}


@dataclass(frozen=True)
class OpenRun:
    """A run on the controller with connections to its hosts."""

    paths: RunPaths
    journal: Journal
    plan: Plan
    transports: Mapping[str, Transport]

    def supervisor(self, host: HostPlan) -> Supervisor:
        return Supervisor(self.transports[host.host], host.python, host.run_dir)

    def host_runs(self) -> List[HostRun]:
        return [
            HostRun(self.supervisor(host), tuple(process.name for process in host.processes))
            for host in self.plan.hosts
        ]


def open_run(
    store: RunStore, inventory: Inventory, plan: Plan, transports: Mapping[str, Transport]
) -> OpenRun:
    """Step 3: the run exists from here on, and ``status`` shows it."""
    paths = store.create(plan.run_id)
    paths.plan.write_text(plan.to_json(), encoding="utf-8")
    planned = {host.host for host in plan.hosts}
    save_hosts(paths.hosts_file, [host for host in inventory.hosts if host.name in planned])
    if plan.rank_table is not None:
        paths.rank_table.write_text(plan.rank_table, encoding="utf-8")
    journal = Journal(paths.journal)
    journal.append(
        "launch",
        cluster=plan.cluster,
        mode=plan.mode,
        recipe=plan.recipe,
        world_size=plan.world_size,
        plan_digest=plan.digest,
        hosts=[
            {
                "name": host.host,
                "processes": [{"name": item.name, "rank": item.rank} for item in host.processes],
            }
            for host in plan.hosts
        ],
    )
    return OpenRun(paths, journal, plan, transports)


def start_run(run: OpenRun, progress: Progress) -> None:
    """Steps 4 to 6. On any error everything is undone, journaled and the error raised."""
    plans = {host.host: host for host in run.plan.hosts}
    try:
        _each(run, "sending files", "sent", lambda t: _send(run, plans[t.name], t), progress)
        _each(run, "arming", "armed", lambda t: run.supervisor(plans[t.name]).arm(), progress)
        _each(run, "starting", "started", lambda t: run.supervisor(plans[t.name]).start(), progress)
    except BaseException as error:
        undo(run, progress)
        status = error.exit_status if isinstance(error, OrchError) else 130
        outcome = "failed" if isinstance(error, OrchError) else "cancelled"
        cause = {"rule": "start-failed", "sentence": str(error) or "interrupted"}
        run.journal.append("end", outcome=outcome, exit_status=status, cause=cause)
        raise
    run.journal.append("running")


def watch_run(run: OpenRun, observer: Observer, *, grace_s: float) -> Ending:
    """Steps 7 and 8. Returns how the run ended, after journaling it."""
    rules = rules_of(run.plan)
    ending = follow(run.paths, run.journal, run.host_runs(), observer, grace_s=grace_s, rules=rules)
    left = prove_clean(run) if ending.outcome != "succeeded" else []
    run.journal.append(
        "end",
        outcome=ending.outcome,
        exit_status=exit_status(ending),
        cause=failure_record(ending.failure),
        left=left,
    )
    return ending


def exit_status(ending: Ending) -> int:
    """The exit status of ``launch`` for an ending: a lost host is a transport failure (5), a
    hang has its own (7)."""
    if ending.failure is not None and ending.failure.rule == "host-silent":
        return 5
    if ending.failure is not None and ending.failure.rule == "hang":
        return 7
    return _EXIT_OF[ending.outcome]


def prove_clean(run: OpenRun) -> List[Dict[str, Any]]:
    """Sweep every host; what is left or could not be asked, by host. Empty: all clean."""
    plans = {host.host: host for host in run.plan.hosts}
    outcomes = on_each(run.transports, "sweeping", lambda t: run.supervisor(plans[t.name]).sweep())
    left: List[Dict[str, Any]] = []
    for outcome in outcomes:
        if outcome.error is not None:
            left.append({"host": outcome.host, "unknown": str(outcome.error)})
        elif outcome.value is not None and not outcome.value.get("clean"):
            left.append({"host": outcome.host, "left": outcome.value.get("left")})
    return left


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


def _each(
    run: OpenRun,
    doing: str,
    state: str,
    function: Callable[[Transport], Any],
    progress: Optional[Progress],
) -> None:
    on_all(run.transports, doing, function, progress)
    for host in run.plan.hosts:
        run.journal.append("host", host=host.host, state=state)
