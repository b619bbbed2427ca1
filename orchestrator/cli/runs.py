"""``glm2-orch runs``: the runs that this controller knows."""

from __future__ import annotations

from typing import List

import click

from orchestrator.cli.output import console, output_option, print_json


@click.command()
@click.option("-n", "--last", type=click.IntRange(min=1), default=20, show_default=True)
@output_option("table", "json")
def runs(last: int, output: str) -> None:
    """List the last runs, the newest last."""
    from datetime import datetime

    from rich.table import Table

    from orchestrator.cli.status import state_record
    from orchestrator.runs.layout import RunPaths, RunStore, home
    from orchestrator.runs.state import read_state

    store = RunStore(home())
    states = [read_state(RunPaths(store.root / name)) for name in store.names()[-last:]]
    if output == "json":
        print_json({"runs": [state_record(state) for state in states]})
        return
    table = Table(box=None, pad_edge=False)
    for column in ("RUN", "STATE", "MODE", "CLUSTER", "RANKS", "STARTED", "EXIT"):
        table.add_column(column)
    for state in states:
        started = datetime.fromtimestamp(state.created or 0).strftime("%Y-%m-%d %H:%M:%S")
        row: List[str] = [state.run_id, state.status.value, state.mode, state.cluster]
        row += [str(state.world_size), started if state.created else "-"]
        table.add_row(*row, "-" if state.exit_status is None else str(state.exit_status))
    console().print(table)
