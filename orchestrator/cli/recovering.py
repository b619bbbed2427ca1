"""After a failure: the next attempt of a run, in the command that followed the one before."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Dict

from orchestrator.cli.output import say

if TYPE_CHECKING:
    from orchestrator.engine.recover import Record
    from orchestrator.runs.layout import RunPaths


def go_on(paths: RunPaths, *, show_logs: bool, output: str) -> bool:
    """Start the attempt that the job's recovery calls for after the ended one of ``paths``, whose
    lease we hold, and follow it to the end. False when there is none: the ending is the last."""
    from orchestrator.cli.launch import launch_again
    from orchestrator.engine.control import ended
    from orchestrator.engine.recover import is_open, kept, next_attempt
    from orchestrator.runs.layout import RunStore, home

    record = kept(paths)
    if record is None or not is_open(RunStore(home()), paths):
        return False
    with suppress(FileNotFoundError):
        os.chdir(record.folder)  # where its relative paths start
    cause = ((ended(paths) or {}).get("cause") or {}).get("sentence") or "the cause is not known"
    say(f"run {paths.run_id} failed: {cause}")
    decision, following = next_attempt(paths, _spares(record))
    if following is None:
        say(f"recovery: {decision.sentence}")
        return False
    say(
        f"recovery: {decision.sentence} (run {following.run_id}, restart {following.number - 1} "
        f"of at most {record.policy.max_restarts})"
    )
    launch_again(paths, following, show_logs=show_logs, output=output)
    return True


def _spares(record: Record) -> Dict[str, int]:
    """For each host of the inventory, how many spares could take its place now."""
    from orchestrator.cli import request as requests
    from orchestrator.errors import HostNotReady
    from orchestrator.inventory import Quarantined, working_hosts
    from orchestrator.runs.layout import home
    from orchestrator.runs.quarantine import Quarantine

    inventory = requests.read_inventory(record.options["inventory_file"], limit_of(record))
    inventory = requests.with_devices(inventory, record.options["request"]["devices"])
    entries = Quarantine(home(), inventory.cluster).entries()
    found: Dict[str, int] = {}
    for host in (*inventory.hosts, *inventory.spares):
        bad = Quarantined(host.name, "", "", 0.0)
        try:
            working_hosts(inventory, [*entries, bad])
            found[host.name] = 1
        except HostNotReady:
            found[host.name] = 0
    return found


def limit_of(record: Record) -> str:
    """``--limit`` of the launch, without the hosts that were left out since."""
    parts = [record.options["limit"]] if record.options["limit"] else []
    return ",".join([*parts, *(f"!{host}" for host in record.left_out)])
