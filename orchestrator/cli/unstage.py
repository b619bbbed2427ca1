"""``glm2-orch stage --prune``: old staged files are removed from the hosts."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, List, Sequence

from orchestrator.cli.output import console, print_json, say
from orchestrator.errors import HostNotReady, OrchError, one_error

if TYPE_CHECKING:
    from orchestrator.engine.retention import StagedTree
    from orchestrator.inventory import Host


def prune(
    hosts: Sequence[Host], keep: Sequence[str], age_s: float, output: str, *, dry_run: bool
) -> None:
    """Remove what no launch has used for ``age_s``, show all that is there, and raise what stood
    in the way."""
    from orchestrator.cli.progress import steps_shown
    from orchestrator.engine.hosts import connected
    from orchestrator.engine.retention import old_trees

    with connected(hosts) as transports, steps_shown() as progress:
        outcomes = old_trees(hosts, transports, keep, age_s, remove=not dry_run, progress=progress)
    trees = [tree for outcome in outcomes for tree in outcome.value or ()]
    errors: List[OrchError] = [o.error for o in outcomes if o.error is not None]
    errors += [
        HostNotReady(f"{tree.digest}: {tree.error}", hint="repeat the command", host=tree.host)
        for tree in trees
        if tree.error is not None
    ]
    old = [tree for tree in trees if tree.kept is None and tree.error is None]
    if output == "json":
        print_json(
            {
                "trees": [vars(tree) for tree in trees],
                "dry_run": dry_run,
                "failed": sorted({error.host for error in errors if error.host}),
            }
        )
    elif trees:
        show_trees(trees, dry_run=dry_run)
    what = f"{len(old)} of {len(trees)} trees on {len(outcomes)} hosts"
    done = "would be removed" if dry_run else "removed"
    say(f"{what} {done}: {sum(tree.bytes for tree in old):,} bytes")
    if errors:
        raise one_error("not all could be removed", errors)


def show_trees(trees: Sequence[StagedTree], *, dry_run: bool) -> None:
    """A table of what is, or was, on the hosts."""
    from rich.table import Table

    from orchestrator.logs.text import printable

    table = Table(box=None, pad_edge=False)
    for column in ("HOST", "TREE", "BYTES", "LAST USED", ""):
        table.add_column(column, justify="right" if column == "BYTES" else "left")
    for tree in trees:
        used = datetime.fromtimestamp(tree.used).strftime("%Y-%m-%d %H:%M")
        gone = "to be removed" if dry_run else "removed"
        fate = tree.error or (f"kept: {tree.kept}" if tree.kept else gone)
        row = (tree.host, tree.digest[:12], f"{tree.bytes:,}", used, fate)
        table.add_row(*map(printable, row))
    console().print(table, markup=False)
