"""``glm2-orch diagnose``: the first cause of a failure, with its evidence."""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Iterator, Optional, Tuple

import click

from orchestrator.cli.completion import RUN
from orchestrator.cli.output import output_option, print_json, say
from orchestrator.errors import PartialFailure

if TYPE_CHECKING:
    from orchestrator.diagnosis.cause import Diagnosis
    from orchestrator.diagnosis.signatures import SignatureTable
    from orchestrator.runs.layout import RunPaths


@click.command()
@click.argument("run", metavar="[RUN|DIR]", default="latest", type=RUN)
@click.option(
    "--signatures",
    multiple=True,
    metavar="FILE",
    help="A table of your own error lines, tried first. May be given more than once.",
)
@click.option("--whole", is_flag=True, help="Read long logs line by line to the last byte.")
@output_option("table", "json")
def diagnose(run: str, signatures: Tuple[str, ...], whole: bool, output: str) -> None:
    """Say what failed first, why, and what to do.

    RUN is a run of ours, ended or not (default: latest); DIR a folder of logs from anywhere, or
    one log file.

    \b
    Exit status: 0 a cause was found, or the run is well; 11 it failed and no cause was found;
    2 no such run or folder; 3 a table of signatures is wrong.
    """
    from orchestrator.diagnosis.cause import Diagnosis
    from orchestrator.diagnosis.report import block, record
    from orchestrator.engine.diagnose import tables

    table = tables([Path(file) for file in signatures])
    paths = _run(run)
    status = None if paths is None else _status(paths)
    with reading_shown() as progress:
        answer = Diagnosis()
        if status != "succeeded":
            answer = _answer(paths, Path(run), table, whole, progress)
    well = not answer.found and status in _WELL
    if output == "json":
        run_id = None if paths is None else paths.run_id
        print_json({"run_id": run_id, "status": status, **record(answer)})
    elif not well:
        for line in block(answer):
            click.echo(line)
    if well and paths is not None and status is not None:
        say(f"run {paths.run_id} {_WELL[status]}")
    elif not answer.found:
        raise PartialFailure(
            "no cause was found in the logs",
            hint="if a log shows it, teach it: glm2-orch diagnose --signatures FILE",
        )


@contextmanager
def reading_shown() -> Iterator[Callable[[str], None]]:
    """A progress callback that says nothing of what takes less than a second."""
    from orchestrator.cli.progress import steps_shown

    begun = time.monotonic()
    with steps_shown() as shown:

        def progress(text: str) -> None:
            if time.monotonic() - begun > 1.0:
                shown(text)

        yield progress


def _answer(
    paths: Optional[RunPaths],
    folder: Path,
    table: SignatureTable,
    whole: bool,
    progress: Callable[[str], None],
) -> Diagnosis:
    from orchestrator.diagnosis.cause import first_cause
    from orchestrator.diagnosis.folder import read_folder
    from orchestrator.engine.diagnose import diagnose_run

    if paths is not None:
        return diagnose_run(paths, table, whole=whole, progress=progress)
    return first_cause(read_folder(folder, table, whole=whole, progress=progress))


def _run(name: str) -> Optional[RunPaths]:
    """The run that is meant; None where a folder or file is."""
    from orchestrator.runs.layout import RunPaths, RunStore, home

    path = Path(name)
    if path.exists() or "/" in name:
        ours = RunPaths(path.absolute())
        return ours if ours.plan.exists() and ours.journal.exists() else None
    return RunStore(home()).resolve(name)


_WELL = {
    "succeeded": "succeeded: there is nothing to look for",
    "cancelled": "was stopped on request, and no error was logged before",
    "preparing": "is being prepared: nothing has failed so far",
    "running": "is running: nothing has failed so far",
    "stopping": "is being stopped: no error was logged so far",
}


def _status(paths: RunPaths) -> str:
    from orchestrator.runs.state import read_state

    return read_state(paths).status.value
