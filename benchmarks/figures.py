"""What the benchmarks found, for the one table that ``python -m benchmarks`` writes.

A benchmark prints tables of its own; it says each figure here, too. Alone, nothing comes of it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, Optional

from rich.console import Console
from rich.table import Table

VARIABLE = "GLM2_BENCH_FIGURES"
"""Names the file that figures are added to."""


def figure(case: str, contestant: str, value: str, ratio: Optional[float] = None) -> None:
    """One contestant's result; ``ratio``: ours is so many times as fast as it."""
    file = os.environ.get(VARIABLE)
    if file:
        row = {"case": case, "contestant": contestant, "value": value, "ratio": ratio}
        with open(file, "a", encoding="utf-8") as rows:
            rows.write(json.dumps(row) + "\n")


def print_speeds(title: str, speeds: Dict[str, List[float]], *, digits: int) -> None:
    """A table of tokens/s by contestant, ``ours`` among them, and the figures of it. The ratio is
    the median of those within a round."""
    table = Table(title=title)
    for column in ("contestant", "tokens/s", "least", "most", "ours / it"):
        table.add_column(column, justify="left" if column == "contestant" else "right")
    for name, found in speeds.items():
        ratio = median(ours / theirs for ours, theirs in zip(speeds["ours"], found))
        middle, *rest = (f"{one:.{digits}f}" for one in (median(found), min(found), max(found)))
        figure(title, name, f"{middle} tokens/s", ratio)
        table.add_row(name, middle, *rest, f"{ratio:.2f}")
    Console().print(table)


def absent(tool: str) -> None:
    """Say that a peer cannot take part."""
    Console().print(f"{tool} is not installed and does not take part")
    figure("", tool, "not installed")


def read_figures(file: Path) -> List[Dict[str, Any]]:
    """The figures in the order in which they were found; none without the file."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def markdown(benchmark: str, rows: List[Dict[str, Any]]) -> str:
    """Lines of the table, each ending in a new line."""
    lines = []
    for row in rows:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        cells = (benchmark, row["case"], row["contestant"], row["value"], ratio)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(lines)
