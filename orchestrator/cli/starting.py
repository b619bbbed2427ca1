"""From a job to running ranks, with the second attempts that a launch may need."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Callable, Dict, Iterator, Mapping, Optional, Tuple

from orchestrator.cli.output import say
from orchestrator.errors import Busy, HostErrors, OrchError, PortTaken

if TYPE_CHECKING:
    from orchestrator.engine.launch import OpenRun
    from orchestrator.inventory import Inventory
    from orchestrator.job import Job
    from orchestrator.planning.facts import HostFacts
    from orchestrator.planning.plan import Plan
    from orchestrator.runs.layout import RunPaths, RunStore
    from orchestrator.runs.lease import Lease
    from orchestrator.transport.base import Transport


PORTS_TRIED = 10
"""So often another run may be faster in taking a port, before a launch gives up."""


@dataclass(frozen=True)
class Wanted:
    """What is to be started."""

    inventory: Inventory
    notes: Tuple[str, ...]
    """How its hosts were chosen."""
    job: Job
    preflight: bool
    wait: Optional[float]
    """Seconds to wait for devices that others hold (infinite: for ever); None: not at all."""
    resume: Optional[RunPaths] = None
    """The run whose checkpoint the ranks go on from."""


@contextmanager
def started(
    wanted: Wanted,
    transports: Mapping[str, Transport],
    store: RunStore,
    confirm: Callable[[Plan], None],
) -> Iterator[OpenRun]:
    """The run with all its ranks started. It is controlled from here until the block ends.

    A host that fails before the start is replaced by a spare, where there is one, and all is
    begun anew; so it is when another run was faster in taking a device and we may wait, or in
    taking a port that was free a moment ago.
    ``transports`` are to all hosts and spares. ``confirm`` is called with the first plan.
    """
    from orchestrator.cli.plan import say_notes
    from orchestrator.cli.progress import steps_shown
    from orchestrator.engine.arming import give_up, start_run, with_spare
    from orchestrator.engine.control import is_running
    from orchestrator.engine.launch import open_run
    from orchestrator.engine.resume import prepare
    from orchestrator.engine.staging import stage_run
    from orchestrator.runs import lease
    from orchestrator.runs.layout import home

    until = math.inf if wanted.wait is None else time.monotonic() + wanted.wait
    paths: Optional[RunPaths] = None
    held: Optional[Lease] = None
    ports = 0 if wanted.job.scheduler_port is not None else PORTS_TRIED
    try:
        while True:
            plan, facts = _planned(wanted, transports, until)
            say_notes(plan)
            if paths is None:
                confirm(plan)
                paths = store.create(plan.run_id)
            run = open_run(paths, wanted.inventory, plan, transports, facts)
            held = held or lease.acquire(paths.lock, "launch")
            run = run.controlled_by(held)
            say(f"run {plan.run_id}: {ranks_on_hosts(plan)}")
            try:
                if wanted.resume is not None:
                    for note in prepare(run, wanted.resume):
                        say(note)
                with steps_shown() as progress:
                    stage_run(run, wanted.job, wanted.inventory.hosts, home() / "staging", progress)
                    found = start_run(run, progress)
                break
            except OrchError as error:
                spare = with_spare(wanted.inventory, error, plan.run_id, time.time())
                if spare is not None:
                    inventory, notes = spare
                    run.journal.append("replanned", notes=list(notes))
                    wanted = replace(wanted, inventory=inventory, notes=(*wanted.notes, *notes))
                elif isinstance(error, PortTaken) and ports > 0:
                    ports -= 1
                    note = f"{error}; another port is chosen"
                    say(f"note: {note}")
                    run.journal.append("replanned", notes=[note])
                elif wanted.wait is None or not _is_busy(error) or time.monotonic() >= until:
                    give_up(run.journal, error)
                    raise
            except BaseException as error:
                if not is_running(paths):  # it may have come just after the start
                    give_up(run.journal, error)
                raise
        for note in found:
            say(f"note: {note}")
        yield run
    finally:
        if held is not None:
            held.release()


def ranks_on_hosts(plan: Plan) -> str:
    ranks = f"{plan.world_size} rank" + ("s" if plan.world_size != 1 else "")
    return f"{ranks} on {len(plan.hosts)} host" + ("s" if len(plan.hosts) != 1 else "")


def _planned(
    wanted: Wanted, transports: Mapping[str, Transport], until: float
) -> Tuple[Plan, Mapping[str, HostFacts]]:
    """Wait for the devices, if we may; then facts, and the plan."""
    from orchestrator.cli import request as requests
    from orchestrator.engine.waiting import wait_for_devices
    from orchestrator.planning.planner import plan

    hosts = wanted.inventory.hosts
    chosen: Dict[str, Transport] = {host.name: transports[host.name] for host in hosts}
    if wanted.wait is not None:
        left = None if until == math.inf else max(0.0, until - time.monotonic())
        wait_for_devices(hosts, chosen, left, say, port=wanted.job.scheduler_port)
    ask = requests.facts_checked if wanted.preflight else requests.facts_unchecked
    facts = ask(wanted.inventory, wanted.job, chosen)
    return plan(wanted.inventory, wanted.job, facts, wanted.notes), facts


def _is_busy(error: OrchError) -> bool:
    errors = error.errors if isinstance(error, HostErrors) else (error,)
    return all(isinstance(one, Busy) for one in errors)
