"""``glm2-orch``: the command group, and the one place where errors become exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from typing import Any, List, NoReturn, Optional

import click

from orchestrator.cli import (
    attach,
    ckpt,
    collect,
    completion,
    diagnose,
    drill,
    facts,
    hosts,
    init,
    launch,
    logs,
    manual,
    metrics,
    notify,
    plan,
    preflight,
    ranktable,
    report,
    runs,
    schedule,
    stage,
    status,
    stop,
)
from orchestrator.cli.output import json_text, say
from orchestrator.errors import HostErrors, OrchError, Terminated


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="glm2-orch", prog_name="glm2-orch")
def cli() -> None:
    """Train ChatGLM2 with MindSpore on many Ascend servers.

    An inventory of servers becomes rank tables, environments and running ranks; logs and
    sharded checkpoints come back and are merged.
    """


for command in (
    launch.launch,
    plan.plan,
    preflight.preflight,
    stage.stage,
    facts.facts,
    hosts.hosts,
    ranktable.ranktable,
    status.status,
    logs.logs,
    metrics.metrics,
    diagnose.diagnose,
    report.report,
    stop.stop,
    attach.attach,
    attach.control,
    collect.collect_ckpt,
    ckpt.merge_ckpt,
    ckpt.ckpt,
    runs.runs,
    schedule.schedule,
    notify.notify,
    completion.completion,
    manual.manual,
    init.init,
    drill.drill,
):
    cli.add_command(command)


def main(argv: Optional[List[str]] = None) -> NoReturn:
    """Run the command line and exit with a status of ``orchestrator/errors.py``."""
    asked = completion.complete(cli, os.environ)
    if asked is not None:
        sys.exit(asked)
    before = signal.signal(signal.SIGTERM, _terminated)
    meta: dict[str, Any] = {}
    try:
        with cli.make_context("glm2-orch", list(sys.argv[1:] if argv is None else argv)) as ctx:
            meta = ctx.meta
            cli.invoke(ctx)
        status = 0
    except click.exceptions.Exit as stop_:
        status = stop_.exit_code
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        say(shown.getvalue().rstrip("\n"))
        status = error.exit_code
    except OrchError as error:
        wants_json = meta.get("glm2.output", "table") != "table"
        _show(error, as_json=wants_json and "glm2.printed" not in meta)
        status = error.exit_status
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        status = 130
    except Terminated:
        click.echo("terminated", err=True)
        status = 143
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing is left to say.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except Exception:
        traceback.print_exc()
        click.echo(
            "internal error: this is a bug of glm2-orch; please report it with the lines above",
            err=True,
        )
        status = 1
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(status)


def _terminated(_signum: int, _frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _show(error: OrchError, *, as_json: bool) -> None:
    if as_json:
        click.echo(json_text({"schema": 1, "error": _record(error)}))
    if isinstance(error, HostErrors):
        for one in error.errors:
            say(f"  {one}")
            if one.hint and one.hint != error.hint:
                say(f"    next: {one.hint}")
    say(f"error: {error}")
    if error.hint:
        say(f"  next: {error.hint}")


def _record(error: OrchError) -> dict[str, Any]:
    record: dict[str, Any] = {
        "code": error.code,
        "exit_status": error.exit_status,
        "message": error.message,
        "hint": error.hint,
        "host": error.host or None,
        "location": str(error.location) if error.location else None,
    }
    if isinstance(error, HostErrors):
        record["errors"] = [_record(one) for one in error.errors]
    return record


if __name__ == "__main__":
    main()
