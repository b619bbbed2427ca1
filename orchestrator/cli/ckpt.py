"""``glm2-orch merge-ckpt``: shards become one file."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import click

from orchestrator.cli.output import output_option, print_json, say


@click.command("merge-ckpt")
@click.option(
    "--src_ckpt_dir",
    "--src-ckpt-dir",
    "source",
    metavar="DIR",
    required=True,
    help="Folder with the ranks' folders rank_0, rank_1, …",
)
@click.option(
    "--src_ckpt_strategy",
    "--src-ckpt-strategy",
    "strategy",
    metavar="PATH",
    help="Strategy file, or the folder of them. Without it every rank holds everything.",
)
@click.option(
    "--dst_ckpt_dir",
    "--dst-ckpt-dir",
    "target",
    metavar="DIR",
    required=True,
    help="Where the merged file goes: DIR/rank_0/{prefix}0.ckpt, or a file name.",
)
@click.option("--prefix", default="checkpoint_", show_default=True, help="Name of the new file.")
@click.option("--step", default="latest", show_default=True, help="STEP, EPOCH_STEP or latest.")
@click.option(
    "--format",
    "fmt",
    type=click.Choice(("ckpt", "safetensors")),
    default="ckpt",
    show_default=True,
)
@click.option("--no-optimizer", is_flag=True, help="Leave the optimizer's state out.")
@click.option(
    "--redundancy-removed",
    is_flag=True,
    help="Accept a set in which each slice was saved by one rank only.",
)
@output_option("table", "json")
def merge_ckpt(
    source: str,
    strategy: Optional[str],
    target: str,
    prefix: str,
    step: str,
    fmt: str,
    no_optimizer: bool,
    redundancy_removed: bool,
    output: str,
) -> None:
    """Merge the shards of a distributed checkpoint into one file.

    The options of MindFormers' transform_ckpt.py mean the same here.
    """
    from orchestrator.checkpoints.merge import merge
    from orchestrator.cli.progress import bytes_shown

    with bytes_shown("merging") as progress:
        report = merge(
            Path(source),
            Path(strategy) if strategy else None,
            Path(target),
            step=step,
            fmt=fmt,
            prefix=prefix,
            include_optimizer=not no_optimizer,
            redundancy_removed=redundancy_removed,
            progress=progress,
        )
    for note in report.notes:
        say(f"note: {note}")
    if output == "json":
        print_json(
            {
                "output": report.output,
                "manifest": report.manifest,
                "step": report.step,
                "ranks": report.ranks,
                "tensors": report.tensors,
                "bytes": report.nbytes,
                "notes": report.notes,
            }
        )
        return
    of_step = f" of step {report.step}" if report.step else ""
    click.echo(f"merged {report.tensors} parameters{of_step} into {report.output}")


@click.group("ckpt")
def ckpt() -> None:
    """Look into checkpoints."""
