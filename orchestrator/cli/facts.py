"""``glm2-orch facts``: what the hosts say of themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Mapping, Optional

import click

from orchestrator.cli.output import console, output_option, print_json, say, writing_to
from orchestrator.cli.request import inventory_options


@click.command()
@inventory_options
@click.option("--out", "out_file", metavar="FILE", help="Keep the facts for `plan --facts`.")
@output_option("table", "json")
def facts(inventory_file: str, limit: Optional[str], out_file: Optional[str], output: str) -> None:
    """Ask every host for its device IPs, versions, clock and free disk."""
    from orchestrator.cli.progress import steps_shown
    from orchestrator.cli.request import read_inventory
    from orchestrator.engine.gather import gather
    from orchestrator.engine.hosts import connected

    inventory = read_inventory(inventory_file, limit)
    with connected(inventory.hosts) as transports, steps_shown() as progress:
        raw = gather(inventory.hosts, transports, scheduler_port=8118, progress=progress)
    if out_file is not None:
        text = json.dumps({"schema": 1, "facts": raw}, indent=1, sort_keys=True)
        with writing_to(out_file):
            Path(out_file).write_text(text + "\n", encoding="utf-8")
        say(f"wrote the facts of {len(raw)} hosts to {out_file}")
    if output == "json":
        print_json({"facts": raw})
    else:
        _table(raw)


def _table(raw: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.table import Table

    from orchestrator.logs.text import printable

    table = Table(box=None, pad_edge=False)
    for column in ("HOST", "HOSTNAME", "PYTHON", "MINDSPORE", "CANN", "DEVICE IPS", "FREE DISK"):
        table.add_column(column)
    for host, fields in raw.items():
        workdir = fields.get("workdir") or {}
        free = workdir.get("free_bytes")
        cells = (
            host,
            fields.get("hostname"),
            fields.get("python"),
            fields.get("mindspore"),
            fields.get("cann"),
            ", ".join(map(str, (fields.get("device_ips") or {}).values())),
            f"{free / 2**30:.1f} GiB" if isinstance(free, int) else None,
        )
        table.add_row(*(printable(str(cell)) if cell else "-" for cell in cells))
    console().print(table)
