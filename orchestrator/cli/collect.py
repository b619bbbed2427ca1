"""``glm2-orch collect-ckpt``: one complete step from all hosts, verified, merged if asked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Optional

import click

from orchestrator.cli.completion import RUN
from orchestrator.cli.output import output_option, print_json, say
from orchestrator.cli.sizes import parse_size
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.checkpoints.merge import MergeReport
    from orchestrator.engine.collect import CollectReport


@click.command("collect-ckpt")
@click.argument("run", default="latest", type=RUN)
@click.option(
    "--step",
    default="latest",
    show_default=True,
    help="STEP, EPOCH_STEP or latest: the last complete.",
)
@click.option("--out", "out_dir", metavar="DIR", help="Default: checkpoints/ of the run's folder.")
@click.option("--all", "everything", is_flag=True, help="Every rank's file, copies too.")
@click.option(
    "--trust-replicas", is_flag=True, help="Do not compare the copies that stay on the hosts."
)
@click.option(
    "--bwlimit", metavar="RATE", help="Bytes a second, over all hosts: 200M, 1G, 512MiB …"
)
@click.option(
    "--keep", type=click.IntRange(min=1), metavar="N", help="Then keep the last N steps in DIR."
)
@click.option("--merge", is_flag=True, help="Merge the shards into DIR/merged.FORMAT as well.")
@click.option(
    "--stream", is_flag=True, help="With --merge: on the way, without a copy of the shards."
)
@click.option("--no-optimizer", is_flag=True, help="Leave the optimizer's state out of the merge.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("ckpt", "safetensors")),
    default="ckpt",
    show_default=True,
)
@click.option(
    "--transfer",
    type=click.Choice(("auto", "ssh", "paramiko")),
    default="auto",
    show_default=True,
    help="What carries the files: the system's ssh, Python, or the first that works.",
)
@output_option("table", "json")
def collect_ckpt(
    run: str,
    step: str,
    out_dir: Optional[str],
    everything: bool,
    trust_replicas: bool,
    bwlimit: Optional[str],
    keep: Optional[int],
    merge: bool,
    stream: bool,
    no_optimizer: bool,
    form: str,
    transfer: str,
    output: str,
) -> None:
    """Fetch the checkpoint of one complete step of RUN (default: latest) from all hosts.

    `latest` is the last step that is complete. Of files that hold the same slices one travels,
    the nearest; the hosts compare the others with it by SHA-256. Files are verified at arrival
    and a COMPLETE marker is written last. Repeating the command goes on where it was cut.
    Nothing is removed on the hosts.

    With --merge the whole weights are in DIR/merged.FORMAT afterwards. With --merge --stream the
    shards flow into that file and are not kept.
    """
    from orchestrator.cli.progress import bytes_shown
    from orchestrator.engine.collect import collect, sources_of
    from orchestrator.engine.control import reopened
    from orchestrator.engine.hosts import load_hosts
    from orchestrator.engine.stream_merge import merge_from_hosts
    from orchestrator.runs.layout import RunStore, home
    from orchestrator.transport.pace import Pace

    _check_together(merge, stream, everything, keep, no_optimizer)
    pace = Pace(parse_size(bwlimit)) if bwlimit else None
    paths = RunStore(home()).resolve(run)
    out = Path(out_dir).absolute() if out_dir else paths.checkpoints
    merged_file = out / f"merged.{form}"
    record: Dict[str, Any] = {"run_id": paths.run_id}
    merged: Optional[MergeReport] = None
    with (
        reopened(paths) as opened,
        sources_of(
            opened.plan, opened.transports, load_hosts(paths.hosts_file), transfer
        ) as sources,
        bytes_shown("merging" if stream else "collecting") as progress,
    ):
        if stream:
            merged = merge_from_hosts(
                sources,
                merged_file,
                step=step,
                include_optimizer=not no_optimizer,
                trust_replicas=trust_replicas,
                pace=pace,
                progress=progress,
            )
            record.update(step=merged.step, ranks=merged.ranks)
        else:
            report = collect(
                sources,
                step=step,
                out=out,
                everything=everything,
                trust_replicas=trust_replicas,
                keep=keep,
                with_merge=merge and not no_optimizer,
                pace=pace,
                progress=progress,
            )
            record.update(_collected(report))
    if not stream:
        _say_collected(paths.run_id, report)
    if merge and not stream:
        merged = _merge(report, merged_file, no_optimizer)
    if merged is not None:
        for note in merged.notes:
            say(f"note: {note}")
        say(
            f"merged {merged.tensors} parameters of step {merged.step}, "
            f"{merged.nbytes / 2**20:.1f} MiB"
        )
        record.update(
            merged=merged.output,
            manifest=merged.manifest,
            tensors=merged.tensors,
            merge_notes=merged.notes,
        )
    if output == "json":
        print_json(record)
    else:
        click.echo(merged.output if merged is not None else report.folder)


def _check_together(
    merge: bool, stream: bool, everything: bool, keep: Optional[int], no_optimizer: bool
) -> None:
    if stream and not merge:
        raise UsageError("--stream is a way to merge", hint="give --merge too")
    if stream and (everything or keep is not None):
        raise UsageError(
            "--stream keeps no shards, so --all and --keep mean nothing with it",
            hint="leave them out, or leave --stream out",
        )
    if no_optimizer and not merge:
        raise UsageError("--no-optimizer is about the merged file", hint="give --merge too")


def _merge(report: CollectReport, merged_file: Path, no_optimizer: bool) -> MergeReport:
    from orchestrator.checkpoints.merge import merge
    from orchestrator.cli.progress import bytes_shown

    with bytes_shown("merging") as progress:
        return merge(
            report.checkpoint,
            report.strategy,
            merged_file,
            step=report.step,
            include_optimizer=not no_optimizer,
            progress=progress,
        )


def _collected(report: CollectReport) -> Dict[str, Any]:
    return {
        "step": report.step,
        "ranks": report.ranks,
        "folder": report.folder,
        "files": len(report.files),
        "fetched": report.fetched,
        "bytes": report.nbytes,
        "removed": report.removed,
        "notes": report.notes,
    }


def _say_collected(run_id: str, report: CollectReport) -> None:
    for note in report.notes:
        say(f"note: {note}")
    ranks = f"{len(report.ranks)} rank{'s' * (len(report.ranks) > 1)}"
    say(
        f"step {report.step} of {run_id}: {len(report.files)} files of {ranks}, "
        f"{report.nbytes / 2**20:.1f} MiB, verified in {report.folder}"
    )
    if report.removed:
        say(f"removed as older: {', '.join(report.removed)}")
