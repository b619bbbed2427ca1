"""What an evaluation or a prediction found, gathered from the ranks' ``result`` lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, List, Mapping

import click

from orchestrator.cli.output import console

if TYPE_CHECKING:
    from orchestrator.runs.state import RunState

_SCORES = ("rouge-1", "rouge-2", "rouge-l", "bleu-4")


def print_results(state: RunState) -> None:
    """Scores as a table, predictions in the order of their inputs. Prints nothing without any."""
    results = [rank.result for rank in state.ranks if rank.result is not None]
    scored = [result for result in results if "rouge-1" in result]
    if scored:
        # The ranks reduce their sums: every one of them reports the scores of all rows.
        _print_scores(scored[0])
    for text in _in_order([result.get("predictions", []) for result in results]):
        click.echo(text)


def _print_scores(scores: Mapping[str, Any]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("ROUGE-1", "ROUGE-2", "ROUGE-L", "BLEU-4", "ROWS", "BLANK"):
        table.add_column(column, justify="right")
    counts = [str(scores.get(name, "-")) for name in ("rows", "blank")]
    table.add_row(*(f"{float(scores[name]):.2f}" for name in _SCORES), *counts)
    console().print(table)


def _in_order(shares: List[List[Any]]) -> List[str]:
    """Rank r of n answered inputs r, r + n, r + 2n …: deal the shares back in that order."""
    from orchestrator.logs.text import printable

    longest = max(map(len, shares), default=0)
    dealt = [share[turn] for turn in range(longest) for share in shares if turn < len(share)]
    return ["\n".join(printable(line) for line in str(text).split("\n")) for text in dealt]
