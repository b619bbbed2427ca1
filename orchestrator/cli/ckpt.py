"""``glm2-orch merge-ckpt``, ``ckpt inspect`` and ``ckpt diff``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, TypeVar

import click

from orchestrator.cli.output import console, output_option, print_json, say
from orchestrator.cli.sizes import parse_size
from orchestrator.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from orchestrator.checkpoints.diff import Difference
    from orchestrator.checkpoints.inspection import Inspection
    from orchestrator.checkpoints.target import Target

F = TypeVar("F", bound=Callable[..., Any])


def _option(name: str, **settings: Any) -> Callable[[F], F]:
    """An option under the spelling of transform_ckpt.py and under that of other commands."""
    return click.option(f"--{name}", f"--{name.replace('_', '-')}", name, **settings)


@click.command("merge-ckpt")
@_option(
    "src_ckpt_dir",
    metavar="DIR",
    required=True,
    help="Folder with the ranks' folders rank_0, rank_1, …; or one checkpoint file.",
)
@_option(
    "src_ckpt_strategy",
    metavar="PATH",
    help="Strategy file, or the folder of them. Without it every rank holds everything.",
)
@_option(
    "dst_ckpt_dir",
    metavar="DIR",
    required=True,
    help="Where to write: DIR/rank_0/{prefix}0.ckpt. Or the new file's name.",
)
@_option(
    "dst_ckpt_strategy",
    metavar="PATH",
    help="Cut for this strategy instead of merging: DIR/rank_N/{prefix}N.ckpt.",
)
@click.option("--layout", metavar="dpN,mpN[,opt]", help="The same, with the layout in words.")
@click.option("--prefix", default="checkpoint_", show_default=True, help="Name of the new files.")
@click.option("--step", default="latest", show_default=True, help="STEP, EPOCH_STEP or latest.")
@click.option(
    "--format",
    "fmt",
    type=click.Choice(("ckpt", "safetensors")),
    default="ckpt",
    show_default=True,
)
@click.option("--no-optimizer", is_flag=True, help="Leave the optimizer's state out.")
@click.option("--max-shard-size", metavar="SIZE", help="Cut a merged file, e.g. at 5GB or 512MiB.")
@click.option("--crc", is_flag=True, help="Write MindSpore's CRC32 into the new files.")
@click.option("--verify", is_flag=True, help="Read the new files back from disk and compare.")
@click.option(
    "--no-sync",
    is_flag=True,
    help="Do not wait until the new files are on the disk, as cp does not: faster, but a host that"
    " loses its power soon after may keep torn ones.",
)
@_option("lora_alpha", type=float, help="Merge LoRA adapters into their weights, scaled by it.")
@_option("lora_base", metavar="FILE", help="Base weights, where the shards hold adapters only.")
@click.option(
    "--redundancy-removed",
    is_flag=True,
    help="Accept a set in which each slice was saved by one rank only.",
)
@click.option(
    "--trust-replicas",
    is_flag=True,
    help="Take the first copy of a slice without comparing it with the others.",
)
@click.option(
    "--equal-slices",
    is_flag=True,
    help="Accept a parameter all of whose slices are equal.",
)
@output_option("table", "json")
def merge_ckpt(
    src_ckpt_dir: str,
    src_ckpt_strategy: Optional[str],
    dst_ckpt_dir: str,
    dst_ckpt_strategy: Optional[str],
    layout: Optional[str],
    prefix: str,
    step: str,
    fmt: str,
    no_optimizer: bool,
    max_shard_size: Optional[str],
    crc: bool,
    verify: bool,
    no_sync: bool,
    lora_alpha: Optional[float],
    lora_base: Optional[str],
    redundancy_removed: bool,
    trust_replicas: bool,
    equal_slices: bool,
    output: str,
) -> None:
    """Merge the shards of a distributed checkpoint into one file, or cut them for another layout.

    The options of MindFormers' transform_ckpt.py mean the same here. A set that is incomplete,
    damaged, of mixed steps or of another strategy is refused (exit status 10).
    """
    from orchestrator.checkpoints.merge import merge
    from orchestrator.cli.progress import bytes_shown

    if lora_base and lora_alpha is None:
        raise UsageError("--lora_base needs --lora_alpha", hint="MindFormers' default is 32")
    if verify and no_sync:
        raise UsageError(
            "--verify reads from the disk what --no-sync does not wait for", hint="leave one out"
        )
    with bytes_shown("merging") as progress:
        report = merge(
            Path(src_ckpt_dir),
            _path(src_ckpt_strategy),
            Path(dst_ckpt_dir),
            step=step,
            fmt=fmt,
            prefix=prefix,
            include_optimizer=not no_optimizer,
            redundancy_removed=redundancy_removed,
            trust_replicas=trust_replicas,
            equal_slices=equal_slices,
            target=_target(dst_ckpt_strategy, layout),
            lora_alpha=lora_alpha,
            lora_base=_path(lora_base),
            max_shard_bytes=parse_size(max_shard_size) if max_shard_size else None,
            crc=crc,
            verify=verify,
            durable=not no_sync,
            progress=progress,
        )
    for note in report.notes:
        say(f"note: {note}")
    if output == "json":
        print_json(
            {
                "output": report.output,
                "files": report.files,
                "manifest": report.manifest,
                "step": report.step,
                "ranks": report.ranks,
                "tensors": report.tensors,
                "bytes": report.nbytes,
                "verified": verify,
                "notes": report.notes,
            }
        )
        return
    of_step = f" of step {report.step}" if report.step else ""
    size = f"{report.nbytes / 2**20:.1f} MiB"
    click.echo(f"{report.tensors} parameters{of_step}, {size}, in {report.output}")


@click.group("ckpt")
def ckpt() -> None:
    """Look into checkpoints."""


@ckpt.command("inspect")
@click.argument("path", metavar="FILE|DIR")
@_option("src_ckpt_strategy", metavar="PATH", help="Strategy of a folder of shards.")
@click.option("--step", default="latest", show_default=True, help="STEP, EPOCH_STEP or latest.")
@output_option("table", "json")
def inspect_command(path: str, src_ckpt_strategy: Optional[str], step: str, output: str) -> None:
    """List the tensors, layouts and steps of a checkpoint, and whether it is complete.

    DIR holds rank_0, rank_1, …, or checkpoint/ and strategy/. No content is read. Exit status 10
    when no step can be put together.
    """
    from orchestrator.checkpoints.inspection import inspect

    found = inspect(Path(path), _path(src_ckpt_strategy), step=step)
    if output == "json":
        print_json(_inspection(found))
        if found.problem is not None:
            click.get_current_context().exit(found.problem.exit_status)
        return
    _print_inspection(found)
    if found.problem is not None:
        raise found.problem


@ckpt.command("diff")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--strategy-a", metavar="PATH", help="Strategy of A, if it is a folder of shards.")
@click.option("--strategy-b", metavar="PATH", help="Strategy of B, if it is a folder of shards.")
@click.option("--no-optimizer", is_flag=True, help="Compare without the optimizer's state.")
@output_option("table", "json")
def diff_command(
    a: str,
    b: str,
    strategy_a: Optional[str],
    strategy_b: Optional[str],
    no_optimizer: bool,
    output: str,
) -> None:
    """Compare two checkpoints by parameter, however each is cut. Exit status 10 if they differ."""
    from orchestrator.checkpoints.checkpoint import Reading, open_checkpoint
    from orchestrator.checkpoints.diff import diff
    from orchestrator.checkpoints.inspection import locate
    from orchestrator.cli.progress import bytes_shown

    reading = Reading(include_optimizer=not no_optimizer)
    opened = []
    for path, given in ((a, strategy_a), (b, strategy_b)):
        shards, strategy = locate(Path(path))
        opened.append(open_checkpoint(shards, _path(given) or strategy, reading))
    with bytes_shown("comparing") as progress:
        found = diff(opened[0], opened[1], progress=progress)
    if output == "json":
        print_json(_difference(found))
    else:
        _print_difference(found)
    if not found.same:
        click.get_current_context().exit(CheckpointError.exit_status)


def _path(text: Optional[str]) -> Optional[Path]:
    """``None`` in so many letters is what transform_ckpt.py takes for no strategy."""
    return Path(text) if text and text != "None" else None


def _target(strategy: Optional[str], layout: Optional[str]) -> Optional[Target]:
    from orchestrator.checkpoints.target import parse_words

    if strategy and layout:
        raise UsageError("--dst_ckpt_strategy and --layout say the same thing", hint="give one")
    if layout:
        return parse_words(layout)
    return _path(strategy)


def _inspection(found: Inspection) -> Dict[str, Any]:
    return {
        "path": found.path,
        "format": found.format,
        "step": found.step,
        "crc": found.crc,
        "metadata": found.metadata,
        "steps": [vars(step) for step in found.steps],
        "tensors": [vars(tensor) for tensor in found.tensors],
        "notes": found.notes,
        "problem": str(found.problem) if found.problem else None,
    }


def _print_inspection(found: Inspection) -> None:
    from rich.table import Table

    screen = console()
    if found.steps:
        steps = Table("step", "ranks", "missing", "MiB", "complete", box=None)
        for step in found.steps:
            missing = ", ".join(map(str, step.missing[:8])) + (
                " …" if len(step.missing) > 8 else ""
            )
            size = f"{step.nbytes / 2**20:.1f}"
            done = "yes" if step.complete else "no"
            steps.add_row(step.step, str(len(step.ranks)), missing or "-", size, done)
        screen.print(steps)
    tensors = Table("parameter", "type", "shape", "MiB", "slices", "copies", "cut", box=None)
    for tensor in found.tensors:
        tensors.add_row(
            tensor.name,
            tensor.dtype,
            " x ".join(map(str, tensor.shape)) or "scalar",
            f"{tensor.nbytes / 2**20:.2f}",
            str(tensor.slices),
            str(tensor.copies),
            tensor.cut or "-",
        )
    if found.tensors:
        screen.print(tensors)
    for note in found.notes:
        say(f"note: {note}")
    total = sum(tensor.nbytes for tensor in found.tensors) / 2**20
    of_step = f" of step {found.step}" if found.step else ""
    click.echo(f"{found.path}: {len(found.tensors)} parameters{of_step}, {total:.1f} MiB")


def _difference(found: Difference) -> Dict[str, Any]:
    return {
        "same": found.same,
        "equal": found.equal,
        "only_a": found.only_a,
        "only_b": found.only_b,
        "other_kind": found.other_kind,
        "changed": [vars(change) for change in found.changed],
    }


def _print_difference(found: Difference) -> None:
    for name in found.only_a:
        click.echo(f"only in A: {name}")
    for name in found.only_b:
        click.echo(f"only in B: {name}")
    for name, (one, other) in found.other_kind.items():
        click.echo(f"{name}: {one} in A, {other} in B")
    for change in found.changed:
        largest = "" if change.largest is None else f", by at most {change.largest:.3g}"
        click.echo(f"{change.name}: {change.elements} of {change.total} elements differ{largest}")
    click.echo(f"{found.equal} parameters are equal")
