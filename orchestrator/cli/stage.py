"""``glm2-orch stage``: bring files to the hosts, once, before any job needs them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, List, Optional, Sequence

import click

from orchestrator.cli.output import console, output_option, print_json, say, seconds
from orchestrator.cli.request import inventory_options
from orchestrator.errors import OrchError, UsageError, one_error

if TYPE_CHECKING:
    from orchestrator.engine.manifests import Manifest
    from orchestrator.engine.staging import Staged
    from orchestrator.inventory import Host
    from orchestrator.transport.pool import Outcome


@click.command()
@inventory_options
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and touch no host.")
@click.option("--verify", is_flag=True, help="Read again what the hosts have, to be sure of it.")
@click.option(
    "--direct", is_flag=True, help="Over SSH from here to each host: encrypted, and slower."
)
@click.option(
    "--prune",
    "older_than",
    metavar="TIME",
    help="Send nothing; remove what no launch has used for so long, e.g. 30d.",
)
@output_option("table", "json")
def stage(
    inventory_file: str,
    limit: Optional[str],
    dry_run: bool,
    verify: bool,
    direct: bool,
    older_than: Optional[str],
    output: str,
) -> None:
    """Bring the files of `stage:` (in the inventory's `job:` section) to all hosts.

    One copy leaves this machine; hosts pass it on to each other, block by block, and check each.
    What a host has is not sent again, a transfer that was cut goes on where it was. `launch` does
    the same first. Between hosts the bytes are not encrypted: see --direct.

    What hosts have stays there until --prune. That keeps what this inventory stages, and what
    living runs use.
    """
    from orchestrator.cli.hosts import parse_duration
    from orchestrator.cli.progress import steps_shown
    from orchestrator.cli.request import read_inventory
    from orchestrator.cli.unstage import prune
    from orchestrator.engine.hosts import connected
    from orchestrator.engine.manifests import read_source
    from orchestrator.engine.staging import stage_files
    from orchestrator.job import JobDefaults, stage_of
    from orchestrator.runs.layout import home

    inventory = read_inventory(inventory_file, limit)
    wanted = stage_of(JobDefaults(inventory.job, inventory.job_locations, inventory.folder))
    if not wanted.items and older_than is None:
        raise UsageError(
            f"{inventory.source} stages nothing",
            hint="add `stage: [{from: ./data, to: data}]` to its `job:` section",
        )
    with steps_shown() as progress:
        manifests = [read_source(item, home() / "staging", progress) for item in wanted.items]
    if older_than is not None:
        if verify or direct:
            raise UsageError(
                "--prune sends nothing", hint="leave --verify and --direct out, or --prune"
            )
        age_s = parse_duration(older_than, "--prune")
        prune(inventory.hosts, [m.digest for m in manifests], age_s, output, dry_run=dry_run)
        return
    if dry_run:
        _show_wanted(manifests, inventory.hosts, output)
        return
    begun = time.monotonic()
    with connected(inventory.hosts) as transports, steps_shown() as progress:
        outcomes = stage_files(
            inventory.hosts,
            transports,
            manifests,
            encrypt=direct or wanted.encrypt,
            verify=verify,
            progress=progress,
        )
    _show_result(outcomes, manifests, time.monotonic() - begun, output)


def _show_wanted(manifests: Sequence[Manifest], hosts: Sequence[Host], output: str) -> None:
    items = [
        {
            "name": m.item.name,
            "from": m.item.source,
            "place": m.item.place,
            "files": len(m.files),
            "bytes": m.bytes,
            "digest": m.digest,
            "on_hosts": m.item.on_host(hosts[0].workdir),
        }
        for m in manifests
    ]
    if output == "json":
        print_json({"hosts": [host.name for host in hosts], "items": items})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("NAME", "FROM", "FILES", "BYTES", f"ON {hosts[0].name}"):
        table.add_column(column, justify="right" if column in ("FILES", "BYTES") else "left")
    for item, manifest in zip(items, manifests):
        there = manifest.item.place or item["on_hosts"]
        cells = (item["name"], item["from"], item["files"], f"{manifest.bytes:,}", there)
        table.add_row(*(str(cell) for cell in cells))
    console().print(table, markup=False, soft_wrap=True)
    total = sum(manifest.bytes for manifest in manifests)
    say(f"{total:,} bytes for each of {len(hosts)} hosts; nothing was sent")


def _show_result(
    outcomes: Sequence[Outcome[Staged]], manifests: Sequence[Manifest], took: float, output: str
) -> None:
    done = [outcome.value for outcome in outcomes if outcome.value is not None]
    errors: List[OrchError] = [o.error for o in outcomes if o.error is not None]
    ours = sum(one.from_controller for one in done)
    theirs = sum(one.from_peers for one in done)
    if output == "json":
        print_json({"hosts": [vars(one) for one in done], "failed": [e.host for e in errors]})
    for one in done:
        for note in one.notes:
            say(f"{one.host}: {note}")
    total = sum(manifest.bytes for manifest in manifests)
    say(
        f"{len(done)} of {len(outcomes)} hosts have all {total:,} bytes, checked: {ours:,} were "
        f"sent from here, {theirs:,} from host to host ({seconds(took)})"
    )
    if errors:
        raise one_error(f"staging: {len(errors)} of {len(outcomes)} hosts failed", errors)
