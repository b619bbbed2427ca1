"""``glm2-orch report``: a run, or two beside each other, as one HTML file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple

import click

from orchestrator.cli.completion import RUN
from orchestrator.cli.output import output_option, print_json, say, writing_to
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.report.gathering import Gathered, Progress
    from orchestrator.runs.layout import RunPaths


@click.command()
@click.argument("runs", metavar="[RUN]", nargs=-1, type=RUN)
@click.option("--compare", is_flag=True, help="Two runs beside each other: --compare A B.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where it goes.  [default: report.html in the folder of the run]",
)
@click.option("--open", "opened", is_flag=True, help="Open it in the browser of this machine.")
@output_option("table", "json")
def report(
    runs: Tuple[str, ...], compare: bool, out: Optional[Path], opened: bool, output: str
) -> None:
    """Write a report of RUN (default: latest): one HTML file that needs nothing else.

    It holds the figures, the curves of all ranks, the timeline, plan, environment, checkpoints
    and the first cause of a failure. Values of variables that sound like secrets are hidden.
    """
    from importlib.metadata import version

    from orchestrator.cli.diagnose import reading_shown
    from orchestrator.report.page import comparison_page, report_page
    from orchestrator.runs.layout import RunStore, home

    _check(runs, compare)
    store = RunStore(home())
    paths = [store.resolve(name) for name in runs or ("latest",)]
    made, now = version("glm2-orch"), time.time()
    with reading_shown() as progress:
        found = [_gathered(one, progress) for one in paths]
        if compare:
            text = comparison_page(found[0], found[1], now, made)
            target = out or paths[1].dir / f"compared-with-{paths[0].run_id}.html"
        else:
            text, target = report_page(found[0], now, made), out or paths[0].dir / "report.html"
    _write(target, text)
    if opened:
        _open(target)
    if output == "json":
        print_json({"runs": [one.run_id for one in paths], "file": str(target.absolute())})
    else:
        click.echo(str(target))


def _check(runs: Tuple[str, ...], compare: bool) -> None:
    if compare and len(runs) != 2:
        raise UsageError(
            f"--compare needs two runs, {len(runs)} given",
            hint="glm2-orch report --compare RUN_A RUN_B; `glm2-orch runs` lists them",
        )
    if not compare and len(runs) > 1:
        raise UsageError(
            f"a report is of one run, {len(runs)} given",
            hint="put two beside each other with --compare",
        )


def _gathered(paths: RunPaths, progress: Progress) -> Gathered:
    from orchestrator.report.gathering import gather
    from orchestrator.runs.state import read_state

    status = read_state(paths).status.value
    return gather(paths, _cause(paths, progress) if status == "failed" else None, progress)


def _cause(paths: RunPaths, progress: Progress) -> Dict[str, Any]:
    from orchestrator.diagnosis.report import record
    from orchestrator.engine.diagnose import diagnose_run, tables

    return record(diagnose_run(paths, tables(), progress=progress))


def _write(target: Path, text: str) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    with writing_to(str(target)):
        try:
            temporary.write_text(text, "utf-8", "replace")
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def _open(target: Path) -> None:
    import webbrowser

    if not webbrowser.open(target.absolute().as_uri()):
        say(f"no browser could be started; open {target} yourself")
