"""``glm2-orch notify``: try the receivers of an inventory; and the process that tells them."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import click

from orchestrator.cli.output import output_option, print_json, say
from orchestrator.errors import PartialFailure, SpecError

if TYPE_CHECKING:
    from orchestrator.notifications.delivery import Delivery


@click.group()
def notify() -> None:
    """Tell people and programs of runs (`notify:` of the inventory)."""


@notify.command()
@click.option(
    "-i", "--inventory", "inventory_file", required=True, metavar="FILE", help="Inventory (YAML)."
)
@output_option("table", "json")
def test(inventory_file: str, output: str) -> None:
    """Send a message to every receiver of an inventory, and say whether it arrived."""
    from orchestrator.cli.request import read_inventory
    from orchestrator.notifications.delivery import Patience, deliver
    from orchestrator.notifications.message import trial

    inventory = read_inventory(inventory_file, None)
    if not inventory.notify:
        raise SpecError(
            f"{inventory.source} has no `notify`",
            hint="add e.g. `notify: [{to: webhook, url_file: ~/.config/ops.url}]`",
        )
    patience = Patience(pauses=())
    fared = deliver(
        inventory.notify, trial(inventory.cluster, time.time()), patience=patience, done=_tell
    )
    failed = [one for one in fared if one.problem is not None]
    if output == "json":
        print_json({"receivers": [vars(one) for one in fared]})
    if failed:
        raise PartialFailure(
            f"{len(failed)} of {len(fared)} receivers did not take the message",
            hint="correct `notify` of the inventory, or the variables and files that it names",
        )


@notify.command(hidden=True)
@click.argument("run")
@output_option("table", "json")
def send(run: str, output: str) -> None:
    """Tell the receivers of RUN of the journal entry on standard input (used by launch)."""
    from orchestrator.notifications.announcer import load_receivers, notify_file
    from orchestrator.notifications.delivery import deliver
    from orchestrator.notifications.message import message_of
    from orchestrator.runs.journal import Journal
    from orchestrator.runs.layout import RunStore, home

    paths = RunStore(home()).resolve(run)
    journal = Journal(paths.journal)
    entry = json.loads(sys.stdin.buffer.read())
    launch = next((e for e in journal.events() if e["event"] == "launch"), {})
    message = message_of(paths.run_id, entry, launch)
    if message is None:
        return
    receivers = [one for one in load_receivers(notify_file(paths)) if message.event in one.on]

    def note(one: Delivery) -> None:
        if one.problem is None:
            journal.append("notified", of=message.event, to=one.name, attempts=one.attempts)
        else:
            fields = {"to": one.name, "attempts": one.attempts, "problem": one.problem}
            journal.append("notify-failed", of=message.event, **fields)

    fared = deliver(receivers, message, done=note)
    if output == "json":
        print_json({"receivers": [vars(one) for one in fared]})


def _tell(one: Delivery) -> None:
    say(f"{one.name}: " + ("taken" if one.problem is None else f"not taken: {one.problem}"))
