"""``glm2-orch collect-ckpt``: one complete step from all hosts, verified, merged if asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Optional

import click

from orchestrator.cli.output import output_option, print_json, say


@click.command("collect-ckpt")
@click.argument("run", default="latest")
@click.option(
    "--step",
    default="latest",
    show_default=True,
    help="STEP, EPOCH_STEP or latest: the last complete.",
)
@click.option("--out", "out_dir", metavar="DIR", help="Default: checkpoints/ of the run's folder.")
@click.option("--merge", is_flag=True, help="Merge the shards into one file as well.")
@click.option("--no-optimizer", is_flag=True, help="Leave the optimizer's state out of the merge.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("ckpt", "safetensors")),
    default="ckpt",
    show_default=True,
)
@output_option("table", "json")
def collect_ckpt(
    run: str,
    step: str,
    out_dir: Optional[str],
    merge: bool,
    no_optimizer: bool,
    form: str,
    output: str,
) -> None:
    """Fetch the checkpoint of one complete step of RUN (default: latest) from all hosts.

    `latest` is the last step that every rank has. Files are verified by SHA-256 at arrival and a
    COMPLETE marker is written last. Repeating the command goes on where it was cut. With --merge
    the whole weights are in DIR/merged.FORMAT afterwards.
    """
    from orchestrator.checkpoints.merge import merge as merge_shards
    from orchestrator.cli.progress import bytes_shown
    from orchestrator.engine.collect import collect, sources_of
    from orchestrator.engine.control import reopened
    from orchestrator.runs.layout import RunStore, home

    paths = RunStore(home()).resolve(run)
    out = Path(out_dir).absolute() if out_dir else paths.checkpoints
    with reopened(paths) as opened, bytes_shown("collecting") as progress:
        sources = sources_of(opened.plan, opened.transports)
        report = collect(sources, step=step, out=out, progress=progress)
    record: Dict[str, Any] = {
        "run_id": paths.run_id,
        "step": report.step,
        "ranks": report.ranks,
        "folder": report.folder,
        "files": len(report.files),
        "fetched": report.fetched,
        "bytes": report.nbytes,
        "notes": report.notes,
    }
    for note in report.notes:
        say(f"note: {note}")
    say(
        f"step {report.step} of {paths.run_id}: {len(report.files)} files of "
        f"{len(report.ranks)} ranks, {report.nbytes / 2**20:.1f} MiB, verified in {report.folder}"
    )
    if merge:
        with bytes_shown("merging") as progress:
            merged = merge_shards(
                report.checkpoint,
                report.strategy,
                out / f"merged.{form}",
                step=report.step,
                fmt=form,
                include_optimizer=not no_optimizer,
                progress=progress,
            )
        for note in merged.notes:
            say(f"note: {note}")
        say(f"merged {merged.tensors} parameters, {merged.nbytes / 2**20:.1f} MiB")
        record.update(merged=merged.output, manifest=merged.manifest, tensors=merged.tensors)
    if output == "json":
        print_json(record)
    else:
        click.echo(record.get("merged", report.folder))
