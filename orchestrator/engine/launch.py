"""The life of a launch, in numbered steps.

1. Ask every host for its facts and check it (``engine.preflight``), all at once. Nothing is
   written anywhere yet.
2. Plan. Pure; what is executed is exactly this plan.
3. Open the run: its folder, plan, hosts and first journal entry on the controller.
4. Send the files to every host, verified by checksum (``engine.arming``).
5. Arm the supervisors of all hosts: they end what earlier runs left, take their locks and wait.
6. Start them together; how far apart that was is journaled.
7. Follow to the end (``engine.follow``), or leave that to a background controller.
8. Prove that nothing is left, host by host, and write the ending.

A failure or interruption in steps 4 to 6 undoes what was done: supervisors are stopped and the
run's folders removed from the hosts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

from orchestrator.engine.follow import Ending, failure_record, follow
from orchestrator.engine.hosts import connected, load_hosts, on_each, save_hosts
from orchestrator.engine.reader import HostRun, Observer
from orchestrator.engine.rules import rules_of
from orchestrator.engine.supervisor import Supervisor
from orchestrator.errors import TransportError
from orchestrator.inventory import Host, Inventory
from orchestrator.notifications.announcer import Announcer, notify_file, save_receivers
from orchestrator.planning.facts import HostFacts, alike
from orchestrator.planning.plan import HostPlan, Plan
from orchestrator.runs.journal import Journal
from orchestrator.runs.layout import RunPaths
from orchestrator.runs.lease import Lease
from orchestrator.transport.base import Transport

Progress = Callable[[str], None]
_EXIT_OF = {"succeeded": 0, "failed": 6, "cancelled": 8}
_EXIT_OF_RULE = {"host-silent": 5, "hang": 7}
_BRIEFLY_S = 2.0
_KINDS = ("left", "ports", "devices", "shared_memory", "lock")


@dataclass(frozen=True)
class OpenRun:
    """A run on the controller with connections to its hosts."""

    paths: RunPaths
    journal: Journal
    plan: Plan
    transports: Mapping[str, Transport]
    caller: Tuple[str, ...] = ()
    """The controller that commands are sent by, or in the name of."""

    def controlled_by(self, lease: Lease) -> OpenRun:
        """The same run, whose commands are those of the holder of ``lease``."""
        return replace(self, caller=lease.caller)

    def supervisor(self, host: HostPlan) -> Supervisor:
        return Supervisor(self.transports[host.host], host.python, host.run_dir, self.caller)

    def host_runs(self) -> List[HostRun]:
        return [
            HostRun(self.supervisor(host), tuple(process.name for process in host.processes))
            for host in self.plan.hosts
        ]


def open_run(
    paths: RunPaths,
    inventory: Inventory,
    plan: Plan,
    transports: Mapping[str, Transport],
    facts: Mapping[str, HostFacts],
) -> OpenRun:
    """Step 3: the run exists from here on, and ``status`` shows it. ``paths`` is the folder made
    for it (``RunStore.create``), or that of an attempt that was undone. The versions among the
    ``facts`` of the hosts are journaled."""
    paths.plan.write_text(plan.to_json(), encoding="utf-8")
    planned = {host.host for host in plan.hosts}
    save_hosts(paths.hosts_file, [host for host in inventory.hosts if host.name in planned])
    if plan.rank_table is not None:
        paths.rank_table.write_text(plan.rank_table, encoding="utf-8")
    save_receivers(notify_file(paths), inventory.notify)
    journal = Journal(paths.journal, listener=Announcer(paths))
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
    journal.append("versions", groups=alike({n: f for n, f in facts.items() if n in planned}))
    return OpenRun(paths, journal, plan, {name: transports[name] for name in planned})


def watch_run(run: OpenRun, observer: Observer, *, grace_s: float) -> Ending:
    """Steps 7 and 8. Returns how the run ended, after journaling it.

    Raises Fenced, and journals nothing, when another controller has taken the run over.
    """
    rules = rules_of(run.plan)
    ending = follow(run.paths, run.journal, run.host_runs(), observer, grace_s=grace_s, rules=rules)
    run.journal.append(
        "end",
        outcome=ending.outcome,
        exit_status=exit_status(ending),
        cause=failure_record(ending.failure),
        first_step=ending.first_step,
        last_step=ending.last_step,
        left=prove_clean(run, grace_s=grace_s, lost=ending.given_up),
    )
    return ending


def exit_status(ending: Ending) -> int:
    """The exit status of ``launch`` for an ending: a lost host is a transport failure (5), a
    hang has its own (7)."""
    rule = "" if ending.failure is None else ending.failure.rule
    return _EXIT_OF_RULE.get(rule, _EXIT_OF[ending.outcome])


def prove_clean(run: OpenRun, *, grace_s: float, lost: Sequence[str] = ()) -> List[Dict[str, Any]]:
    """End what may be left on every host and journal a certificate of each. Returns what is left
    or could not be asked, by host (see ``what_is_left``). Empty: all clean.

    ``lost`` are hosts that were silent for too long: it is tried anew whether they can be reached,
    but not for longer than they may be silent.
    """
    plans = {host.host: host for host in run.plan.hosts}
    limit = max(_BRIEFLY_S, rules_of(run.plan).silence_s)
    hosts = [host for host in load_hosts(run.paths.hosts_file) if host.name in lost]
    with connected([_within(host, limit) for host in hosts]) as fresh:
        asking = replace(run, transports={**run.transports, **fresh})
        outcomes = on_each(
            asking.transports,
            "sweeping",
            lambda t: asking.supervisor(plans[t.name]).stop("the run has ended", grace_s=grace_s),
        )
    left: List[Dict[str, Any]] = []
    for outcome in outcomes:
        if outcome.value is None:
            reached = not isinstance(outcome.error, TransportError)
            why = f"not {'asked' if reached else 'reached'}, so not proven clean: {outcome.error}"
            left.append({"host": outcome.host, "unknown": why})
            run.journal.append("no-certificate", host=outcome.host, error=str(outcome.error))
            continue
        run.journal.append("certificate", host=outcome.host, **outcome.value)
        found = what_is_left(outcome.value)
        if found:
            left.append({"host": outcome.host, **found})
    return left


def _within(host: Host, seconds: float) -> Host:
    """The host, to be reached within ``seconds`` or not at all."""
    limit = min(host.ssh.connect_timeout, seconds)
    return replace(host, ssh=replace(host.ssh, connect_timeout=limit))


def what_is_left(certificate: Mapping[str, Any]) -> Dict[str, Any]:
    """The parts of a host's certificate that are not clean: processes (``left``), ``ports``,
    ``devices``, ``shared_memory``, ``lock``."""
    return {kind: certificate[kind] for kind in _KINDS if certificate.get(kind)}
