"""``glm2-orch drill``: let faults happen to a tiny job on this machine, and see how it ends."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, List, Tuple

import click

from orchestrator.cli.output import console, output_option, print_json, say
from orchestrator.errors import JobFailed, UsageError

if TYPE_CHECKING:
    from orchestrator.drill.faults import Fault
    from orchestrator.drill.rehearsal import Row


@click.command()
@click.argument("faults", nargs=-1, metavar="[FAULT]...")
@click.option("--all", "everything", is_flag=True, help="Every fault at every moment.")
@click.option("--list", "listed", is_flag=True, help="Only say which faults there are.")
@click.option(
    "--during",
    "moments",
    multiple=True,
    type=click.Choice(("launch", "training", "checkpoint", "collect")),
    help="When it happens; default: training, with --all every moment.",
)
@click.option("--keep", metavar="DIR", help="Keep the files of every drill below DIR.")
@output_option("table", "json")
def drill(
    faults: Tuple[str, ...],
    everything: bool,
    listed: bool,
    moments: Tuple[str, ...],
    keep: str,
    output: str,
) -> None:
    """Let a FAULT happen to a tiny job and see whether it ends as it should.

    The job runs on two hosts that are real ssh servers on 127.0.1.N of this machine, started for
    the drill and ended with it. Nothing else is touched. Each line tells the exit status and
    first cause that were expected and seen. A drill is right only when also no process of the run
    was left and no complete checkpoint was lost.

    Exit status: 0 when all ended as expected, 6 otherwise.
    """
    from orchestrator.drill.faults import FAULTS, MOMENTS

    if listed:
        _list(FAULTS, output)
        return
    chosen = FAULTS if everything and not faults else _chosen(faults)
    at = moments or (MOMENTS if everything else ("training",))
    plays = [(fault, moment) for fault in chosen for moment in at if moment in fault.moments]
    if not plays:
        raise UsageError(
            f"{', '.join(faults)} cannot happen during {', '.join(at)}",
            hint="see: glm2-orch drill --list",
        )
    rows = _play(plays, keep, output)
    bad = [row for row in rows if row.verdict == "wrong"]
    skipped = sum(row.verdict == "skipped" for row in rows)
    if output == "json":
        print_json({"ok": not bad, "skipped": skipped, "drills": [asdict(row) for row in rows]})
    more = f"; {skipped} could not be tried" if skipped else ""
    say(f"{len(rows) - len(bad) - skipped} of {len(rows)} drills ended as expected{more}")
    if bad:
        names = ", ".join(f"{row.fault} during {row.moment}" for row in bad)
        raise JobFailed(
            f"{len(bad)} of {len(rows)} drills ended otherwise than expected: {names}",
            hint=f"look closer: glm2-orch drill {bad[0].fault} --during {bad[0].moment} --keep DIR",
        )


def _play(plays: List[Tuple[Fault, str]], keep: str, output: str) -> List[Row]:
    from orchestrator.drill.cluster import sshd
    from orchestrator.drill.rehearsal import rehearse

    sshd()
    rows: List[Row] = []
    if output == "table":
        click.echo(_LINE.format(*_HEADER))
    for fault, moment in plays:
        with tempfile.TemporaryDirectory(prefix="glm2-drill-") as scratch:
            folder = Path(scratch)
            if keep:
                folder = Path(keep).absolute() / f"{fault.name}-{moment}"
                if folder.exists():
                    raise UsageError(f"{folder} exists already", hint="give another --keep")
                folder.mkdir(parents=True)
            row = rehearse(fault, moment, folder)
        rows.append(row)
        if output == "table":
            _show(row)
    return rows


_HEADER = ("FAULT", "DURING", "EXPECTED", "SEEN", "VERDICT", "TOOK")
_LINE = "{:<19} {:<11} {:<30} {:<30} {:<8} {:>7}"


def _show(row: Row) -> None:
    took = f"{row.seconds:.1f} s"
    line = _LINE.format(row.fault, row.moment, row.expected, row.seen, row.verdict, took)
    click.echo(line)
    for note in row.notes:
        click.echo(f"    {note}")


def _list(faults: Tuple[Fault, ...], output: str) -> None:
    if output == "json":
        print_json(
            {
                "faults": [
                    {"name": one.name, "what": one.what, "moments": list(one.moments)}
                    for one in faults
                ]
            }
        )
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("FAULT", "WHAT HAPPENS", "DURING"):
        table.add_column(column)
    for one in faults:
        table.add_row(one.name, one.what, ", ".join(one.moments))
    console().print(table)


def _chosen(names: Tuple[str, ...]) -> Tuple[Fault, ...]:
    from orchestrator.drill.faults import BY_NAME
    from orchestrator.problems import nearest

    if not names:
        raise UsageError("name a FAULT", hint="or give --all; see: glm2-orch drill --list")
    for name in names:
        if name not in BY_NAME:
            raise UsageError(
                f"there is no fault {name!r}",
                hint=nearest(name, tuple(BY_NAME)) or "see: glm2-orch drill --list",
            )
    return tuple(BY_NAME[name] for name in names)
