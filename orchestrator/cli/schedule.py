"""``glm2-orch schedule``: commands that run at set times, by systemd or cron."""

from __future__ import annotations

import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Tuple

import click

from orchestrator.cli.completion import SCHEDULE, whole_cli
from orchestrator.cli.output import console, output_option, print_json, say
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.schedules.record import Record, ScheduledRun
    from orchestrator.schedules.store import Schedule, ScheduleStore

_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ")
_STARTERS = ("auto", "cron", "systemd-user", "systemd-system")


@click.group()
def schedule() -> None:
    """Run a launch every night, or any command at set times."""


@schedule.command()
@click.argument("name")
@click.argument("arguments", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND…")
@click.option(
    "--cron",
    "expression",
    required=True,
    metavar="EXPRESSION",
    help='Minute, hour, day, month, weekday, e.g. "0 2 * * *"; or @daily and its like.',
)
@click.option(
    "--with",
    "with_",
    type=click.Choice(_STARTERS),
    default="auto",
    show_default=True,
    help="What starts it: auto is systemd where it runs, else cron.",
)
@output_option("table", "json")
def add(name: str, arguments: Tuple[str, ...], expression: str, with_: str, output: str) -> None:
    """Run a command of glm2-orch at set times.

    \b
      glm2-orch schedule add nightly --cron "0 2 * * *" -- launch -i cluster.yaml finetune

    It runs in this folder, with this Python and PATH, as this user; relative paths stay what they
    are here. Its runs are called NAME-DATE-TIME. While one goes on, the next time is skipped.
    Options of launch apply: with --wait it waits for devices that are in use.
    """
    from orchestrator.runs.layout import home
    from orchestrator.schedules import starters
    from orchestrator.schedules.expression import parse_cron
    from orchestrator.schedules.store import Schedule, ScheduleStore, check_name

    check_name(name)
    cron = parse_cron(expression)
    check_arguments(arguments)
    store = ScheduleStore(home())
    made = Schedule(
        name=name,
        cron=cron.text,
        arguments=arguments,
        folder=os.getcwd(),
        python=sys.executable,
        home=str(home()),
        starter=starters.choose() if with_ == "auto" else with_,
        created=round(time.time(), 3),
        environment={key: os.environ[key] for key in _KEPT_VARIABLES if key in os.environ},
    )
    paths = store.create(made)
    try:
        notes = starters.starter(made.starter).install(made, paths.daemon_log)
    except BaseException:
        store.remove(name)
        raise
    for note in notes:
        say(f"note: {note}")
    first = cron.after(time.time())
    if output == "json":
        print_json({"name": name, "cron": cron.text, "starter": made.starter, "next": first})
    say(f"schedule {name} is added ({made.starter}); it runs first at {_when(first)}")


@schedule.command("list")
@output_option("table", "json")
def list_schedules(output: str) -> None:
    """Show all schedules: when they run next, how the last run ended, what was missed."""
    from orchestrator.runs.layout import home
    from orchestrator.schedules.store import ScheduleStore

    store = ScheduleStore(home())
    rows = [_row(store, name) for name in store.names()]
    if output == "json":
        print_json({"schedules": rows})
        return
    if not rows:
        say('there is no schedule; add one: glm2-orch schedule add NAME --cron "0 2 * * *" -- …')
        return
    _table(rows)
    for row in rows:
        for warning in row["warnings"]:
            say(f"{row['name']}: {warning}")


@schedule.command()
@click.argument("name", type=SCHEDULE)
@output_option("table", "json")
def remove(name: str, output: str) -> None:
    """Remove a schedule: what starts it, its record and the logs of its runs.

    The runs themselves stay: `glm2-orch runs prune` removes old ones.
    """
    from orchestrator.errors import Busy
    from orchestrator.runs import lease
    from orchestrator.runs.layout import home
    from orchestrator.schedules import starters
    from orchestrator.schedules.store import ScheduleStore

    store = ScheduleStore(home())
    made = store.get(name)
    if lease.holder(store.paths(name).lock) is not None:
        raise Busy(
            f"schedule {name} is running now",
            hint="wait for its end, or end its run: glm2-orch stop, then remove again",
        )
    starters.starter(made.starter).remove(made)
    store.remove(name)
    if output == "json":
        print_json({"name": name, "removed": True})
    say(f"schedule {name} is removed")


@schedule.command("run")
@click.argument("name", type=SCHEDULE)
@output_option("table", "json")
def run_now(name: str, output: str) -> None:
    """Run a schedule's command now, as systemd or cron do at its times.

    Exit status: that of the command; 9 when a run of it still goes on.
    """
    from orchestrator.runs.layout import home
    from orchestrator.schedules.running import run_schedule
    from orchestrator.schedules.store import ScheduleStore

    store = ScheduleStore(home())
    status = run_schedule(store.get(name), store.paths(name), say)
    if output == "json":
        print_json({"name": name, "exit_status": status})
    say(f"schedule {name} ended with status {status}")
    if status:
        raise SystemExit(status)


def check_arguments(arguments: Tuple[str, ...]) -> None:
    """Raise UsageError unless ``arguments`` are a command line that a schedule can run."""
    cli = whole_cli()
    name = arguments[0]
    command = cli.commands.get(name)
    if command is None or name == "schedule":
        raise UsageError(
            f"a schedule cannot run {name!r}",
            hint="write a command of glm2-orch after --, e.g. launch -i cluster.yaml finetune",
        )
    parent = click.Context(cli, info_name="glm2-orch")
    try:
        with command.make_context(name, list(arguments[1:]), parent=parent) as context:
            given = dict(context.params)
    except click.exceptions.Exit:
        raise UsageError(
            f"{' '.join(arguments)} only prints help", hint="leave --help out"
        ) from None
    except click.UsageError as error:
        raise UsageError(
            f"the command of the schedule is wrong: {' '.join(error.format_message().split())}",
            hint=f"see: glm2-orch {name} --help",
        ) from None
    if given.get("run_id"):
        raise UsageError(
            "a run id can be used once, and a schedule runs more often",
            hint="leave --run-id out: runs are called after the schedule and the time",
        )
    if given.get("detach"):
        raise UsageError(
            "with --detach the schedule could not see the end of its run",
            hint="leave --detach out: the schedule runs in the background anyhow",
        )


def _row(store: ScheduleStore, name: str) -> Dict[str, Any]:
    from orchestrator.runs import lease
    from orchestrator.runs.journal import read_events
    from orchestrator.schedules import starters
    from orchestrator.schedules.expression import parse_cron
    from orchestrator.schedules.record import read_record

    made, paths = store.get(name), store.paths(name)
    running = lease.holder(paths.lock) is not None
    events = read_events(paths.journal)
    record = read_record(parse_cron(made.cron), events, time.time(), running=running)
    last = record.last
    row: Dict[str, Any] = {
        "name": name,
        "cron": made.cron,
        "starter": made.starter,
        "command": list(made.arguments),
        "folder": made.folder,
        "next": record.next,
        "running": running,
        "last": None if last is None else vars(last) | {"outcome": _outcome(made, last, running)},
        "skipped": list(record.skipped),
        "missed": list(record.missed),
    }
    there = starters.starter(made.starter).installed(made)
    row["warnings"] = _warnings(made, record, there)
    return row


def _outcome(made: Schedule, last: ScheduledRun, running: bool) -> str:
    """How the last run ended; where its starter was cut off, what the run's own record says."""
    if running:
        return "running"
    if last.exit_status is not None:
        return "succeeded" if last.exit_status == 0 else f"failed ({last.exit_status})"
    if last.run_id is not None:
        from orchestrator.runs.layout import RunPaths
        from orchestrator.runs.state import read_state

        paths = RunPaths(Path(made.home) / "runs" / last.run_id)
        if paths.journal.exists():
            return read_state(paths).status.value
    return "cut off"


def _warnings(made: Schedule, record: Record, there: bool) -> List[str]:
    warnings: List[str] = []
    if not there:
        what = "line in the crontab" if made.starter == "cron" else "units"
        warnings.append(f"its {what} is gone: nothing starts it; remove it and add it again")
    if record.missed:
        more = f" (and {len(record.missed) - 1} times before)" if len(record.missed) > 1 else ""
        warnings.append(
            f"was not started at {_when(record.missed[-1])}{more}: was this machine off, or its "
            f"{'cron' if made.starter == 'cron' else 'systemd'}?"
        )
    if record.last is not None and record.last.exit_status not in (None, 0):
        log = Path(made.home, "schedules", made.name, "logs", record.last.log or "")
        warnings.append(f"the last run failed; see {log}")
    return warnings


def _table(rows: List[Dict[str, Any]]) -> None:
    from rich.table import Table

    from orchestrator.logs.text import printable

    table = Table(box=None, pad_edge=False)
    for column in ("NAME", "CRON", "WITH", "NEXT", "LAST", "OUTCOME", "RUN", "SKIPPED", "MISSED"):
        table.add_column(column, justify="right" if column in ("SKIPPED", "MISSED") else "left")
    for row in rows:
        last: Mapping[str, Any] = row["last"] or {}
        cells = (
            row["name"],
            row["cron"],
            row["starter"],
            _when(row["next"]),
            _when(last.get("started")),
            last.get("outcome") or "-",
            last.get("run_id") or "-",
            str(len(row["skipped"])),
            str(len(row["missed"])),
        )
        table.add_row(*map(printable, cells))
    console().print(table)


def _when(wall: Optional[float]) -> str:
    return "-" if wall is None else datetime.fromtimestamp(wall).strftime("%Y-%m-%d %H:%M")
