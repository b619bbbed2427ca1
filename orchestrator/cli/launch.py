"""``glm2-orch launch``: plan, send, start, follow."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional

import click

from orchestrator.cli.completion import RUN
from orchestrator.cli.output import output_option, print_json, say
from orchestrator.cli.request import MODES, inventory_options, job_options
from orchestrator.errors import Terminated

if TYPE_CHECKING:
    from orchestrator.engine.recover import Record
    from orchestrator.planning.plan import Plan
    from orchestrator.runs.layout import RunPaths, RunStore


class _Launch(click.Command):
    def parse_args(self, ctx: click.Context, args: List[str]) -> List[str]:
        """``--resume`` right before MODE has no value of its own."""
        for at, word in enumerate(args[:-1]):
            if word == "--resume" and args[at + 1] in MODES:
                args = [*args[: at + 1], "latest", *args[at + 1 :]]
                break
        return super().parse_args(ctx, args)


@click.command(cls=_Launch, context_settings={"ignore_unknown_options": False})
@inventory_options
@job_options
@click.option(
    "--detach", is_flag=True, help="Return once the ranks run; a controller stays behind."
)
@click.option("--dry-run", is_flag=True, help="Print the plan and touch no host.")
@click.option("--skip-preflight", is_flag=True, help="Do not check hosts and devices first.")
@click.option(
    "--wait",
    is_flag=False,
    flag_value="",
    metavar="[DURATION]",
    help="Wait until no other run holds the devices, for ever or e.g. 30m; put it after MODE.",
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="latest",
    metavar="[RUN]",
    type=RUN,
    help="Go on from the last complete step of RUN (the last training), also in another layout or "
    "on other hosts.",
)
@click.option("--yes", is_flag=True, help="Do not ask before starting on several hosts.")
@click.option("--show-logs", is_flag=True, help="Print the log lines of all ranks as they come.")
@output_option("table", "json")
def launch(
    inventory_file: str,
    limit: Optional[str],
    detach: bool,
    dry_run: bool,
    skip_preflight: bool,
    wait: Optional[str],
    resume: Optional[str],
    yes: bool,
    show_logs: bool,
    output: str,
    **request: Any,
) -> None:
    """Run a job on the servers of an inventory and follow it to its end.

    MODE is train, finetune, eval, predict or export; arguments after -- go to the worker. The exit
    status is that of the job: 0 only when every rank succeeded. The first Ctrl-C leaves the job
    running and detaches; `glm2-orch stop` ends it. What `glm2-orch preflight` finds critical stops
    the launch before anything is sent. A spare takes the place of a host that cannot be started.
    """
    from orchestrator.engine.recover import Record
    from orchestrator.watching.retry import Policy

    options = {
        "inventory_file": inventory_file,
        "limit": limit,
        "skip_preflight": skip_preflight,
        "wait": wait,
        "resume": resume,
        "request": dict(request),
    }
    how = _How(detach, dry_run, yes, show_logs, output)
    _launch(Record("", 1, Policy(), options, os.getcwd()), how)


def launch_again(ended: RunPaths, record: Record, *, show_logs: bool, output: str) -> None:
    """The attempt ``record`` of a run, after that of ``ended`` failed. Where it cannot be started
    it is judged as any other that fails."""
    from orchestrator.cli.recovering import go_on
    from orchestrator.engine.recover import not_started
    from orchestrator.errors import JobCancelled, OrchError
    from orchestrator.runs import lease
    from orchestrator.runs.layout import RunStore, home

    begun: List[bool] = []
    try:
        how = _How(yes=True, show_logs=show_logs, output=output)
        _launch(record, how, ended, lambda: begun.append(True))
    except OrchError as error:
        if begun or isinstance(error, JobCancelled):
            raise
        paths = not_started(RunStore(home()), ended, record, error)
        held = lease.acquire(paths.lock, "launch")
        try:
            if not go_on(paths, show_logs=show_logs, output=output):
                raise
        finally:
            held.release()


@dataclass(frozen=True)
class _How:
    """What of the command line is not about the job."""

    detach: bool = False
    dry_run: bool = False
    yes: bool = False
    show_logs: bool = False
    output: str = "table"


def _launch(
    record: Record,
    how: _How,
    before: Optional[RunPaths] = None,
    begun: Callable[[], None] = lambda: None,
) -> None:
    """``begun`` is called when the ranks run."""
    from orchestrator.cli import request as requests
    from orchestrator.cli.ending import follow_to_end
    from orchestrator.cli.plan import print_plan
    from orchestrator.cli.recovering import limit_of
    from orchestrator.cli.starting import Wanted, started
    from orchestrator.engine.check import check_job
    from orchestrator.engine.control import is_running
    from orchestrator.engine.hosts import connected
    from orchestrator.engine.recover import keep
    from orchestrator.runs.layout import RunStore, home
    from orchestrator.watching.retry import Policy

    options, request = record.options, dict(record.options["request"])
    waiting = None if options["wait"] is None else parse_wait(options["wait"])
    store = RunStore(home())
    earlier = _resumed(store, record, request)
    inventory = requests.read_inventory(options["inventory_file"], limit_of(record))
    inventory = requests.with_devices(inventory, request["devices"])
    inventory, notes = requests.without_quarantined(inventory)
    run_id = request["run_id"] or ("dry-run" if how.dry_run else None)
    if record.number > 1:
        run_id = record.run_id
    job = requests.build_job(inventory, request["mode"], request, run_id=run_id)
    check_job(job, inventory.hosts)
    if how.dry_run:
        print_plan(requests.plan_offline(inventory, job, None, notes), how.output)
        return
    if record.number == 1:
        allowed: Dict[str, Any] = dict(job.recovery)
        record = replace(record, first=job.run_id, policy=Policy(**allowed))
    skip = options["skip_preflight"]
    wanted = Wanted(inventory, notes, job, preflight=not skip, wait=waiting, resume=earlier)
    store.check_free(job.run_id)
    paths = store.path(job.run_id)
    with connected((*inventory.hosts, *inventory.spares)) as transports:
        try:
            with started(
                wanted, transports, store, lambda plan: _confirm(plan, how.yes, before)
            ) as run:
                keep(paths, record)
                begun()
                if not how.detach:
                    grace_s = run.plan.grace_s
                    follow_to_end(run, grace_s=grace_s, show_logs=how.show_logs, output=how.output)
                    return
        except (KeyboardInterrupt, Terminated):
            # Ctrl-C, a log-out or a time limit end this command; the job goes on.
            if is_running(paths):
                _leave_behind(paths, "detached")
            raise
        pid = _leave_behind(paths, "running")
    if how.output == "json":
        print_json({"run_id": paths.run_id, "status": "running", "controller_pid": pid})
    else:
        click.echo(paths.run_id)


def _resumed(store: RunStore, record: Record, request: Dict[str, Any]) -> Optional[RunPaths]:
    """The run whose checkpoint this attempt goes on from. A worker of another kind than glm2 is
    told its id, and finds its output beside its own run folder."""
    from orchestrator.engine.resume import earlier_run
    from orchestrator.errors import UsageError

    if record.resumes is None:
        resume = record.options["resume"]
        return None if resume is None else _earlier(store, resume, request)
    try:
        earlier_run(store, record.resumes)
    except UsageError:
        request["environment"] = (*request["environment"], f"GLM2_RESUME_RUN={record.resumes}")
        return None
    request["load_checkpoint"] = None
    return _earlier(store, record.resumes, request)


def _earlier(store: RunStore, resume: str, request: Dict[str, Any]) -> RunPaths:
    """The run to go on from; tells the worker, in ``request``, where its checkpoint will be."""
    from orchestrator.engine.resume import TRAINING, WORKER_ARGS, earlier_run
    from orchestrator.errors import UsageError

    if request["mode"] not in TRAINING:
        raise UsageError(
            f"--resume goes on with a training, not with {request['mode']}",
            hint=f"for {request['mode']}, give the weights as --load-checkpoint",
        )
    if request["worker_command"] or request["load_checkpoint"]:
        raise UsageError(
            "--resume does not go together with --worker-command or --load-checkpoint",
            hint="the weights come from the earlier run",
        )
    request["worker_args"] = (*request["worker_args"], *WORKER_ARGS)
    return earlier_run(store, resume)


def parse_wait(text: str) -> float:
    """Seconds of ``--wait``; without a time, infinite. Raises UsageError."""
    from orchestrator.cli.hosts import parse_duration
    from orchestrator.errors import UsageError

    if not text:
        return math.inf
    try:
        return parse_duration(text)
    except UsageError as error:
        raise UsageError(
            f"--wait {text}: that is no time", hint="e.g. --wait 30m; without a time after MODE"
        ) from error


def _leave_behind(paths: RunPaths, how: str) -> int:
    from orchestrator.engine.control import watch_in_background

    pid = watch_in_background(paths)
    run_id = paths.run_id
    say(f"{how}: run {run_id} goes on, watched in the background")
    say(f"  follow it: glm2-orch attach {run_id}")
    say(f"  end it:    glm2-orch stop {run_id}")
    return pid


def _confirm(plan: Plan, yes: bool, before: Optional[RunPaths]) -> None:
    import sys

    from orchestrator.engine.recover import is_forbidden
    from orchestrator.errors import JobCancelled

    if before is not None and is_forbidden(before):
        raise JobCancelled(f"run {before.run_id} was stopped before it was started again")

    if yes or len(plan.hosts) < 2 or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return
    from orchestrator.cli.starting import ranks_on_hosts

    click.confirm(f"Start {ranks_on_hosts(plan)}?", default=True, abort=True, err=True)
