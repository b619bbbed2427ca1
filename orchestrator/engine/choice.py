"""What of a run's checkpoints travels: one step, one replica of each shard, the nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Collection, Dict, List, Mapping, Optional, Sequence, Tuple

from orchestrator.checkpoints.catalogue import (
    CheckpointFile,
    Selection,
    check_world,
    select,
    some_ranks,
)
from orchestrator.checkpoints.replicas import replica_groups
from orchestrator.checkpoints.strategy import Strategy, read_strategies
from orchestrator.engine.catalogue import Listing, Source, list_checkpoints
from orchestrator.errors import CheckpointError, OrchError, TransportError, one_error
from orchestrator.transport.pool import fan_out


@dataclass(frozen=True)
class Choice:
    """A step of a run, and which of its files are needed.

    ``copies`` are the other files of the step, by the rank of the needed file that they should
    equal.
    """

    step: str
    files: Tuple[CheckpointFile, ...]
    copies: Mapping[int, Tuple[CheckpointFile, ...]]
    changed: Mapping[int, int]
    """Time of change of each file of the step in ns, by rank."""
    strategies: Mapping[str, bytes]
    notes: Tuple[str, ...]


def choose(
    sources: Sequence[Source],
    *,
    step: str,
    everything: bool = False,
    preferred: Collection[int] = (),
) -> Choice:
    """List all hosts and choose: the last complete step (``latest``) or the one asked for, and of
    files that hold the same slices one.

    That is the one of a rank in ``preferred`` (it is here already), else on a shared file system,
    else on this machine, else on the host that has least to send so far. ``everything`` takes all.

    Raises CheckpointError when no such step is complete; the errors of hosts otherwise.
    """
    listings, failures = _list_all(sources)
    strategies = _strategies(listings)
    try:
        strategy = read_strategies(strategies, "the hosts' strategy files") if strategies else None
        selection = _select(sources, listings, strategy, step)
    except CheckpointError as error:
        # What an unreachable host holds is unknown: its error is the cause, not the gap.
        if failures:
            raise one_error("cannot list the checkpoints of all hosts", failures) from error
        raise
    groups = replica_groups(selection.files, strategy)
    if everything:
        groups = [(file,) for group in groups for file in group]
    chosen, copies = _nearest(groups, {source.name: source for source in sources}, preferred)
    notes = [str(error) for error in failures] + list(selection.notes)
    left = [copy.rank for group in copies.values() for copy in group]
    if left:
        notes.append(f"{some_ranks(left)}: copies of what others hold, not needed")
    return Choice(
        str(selection.step),
        chosen,
        copies,
        {
            rank: listings[file.host].changed[rank, file.path]
            for rank, file in selection.files.items()
        },
        strategies,
        tuple(notes),
    )


def _nearest(
    groups: Sequence[Tuple[CheckpointFile, ...]],
    sources: Mapping[str, Source],
    preferred: Collection[int],
) -> Tuple[Tuple[CheckpointFile, ...], Dict[int, Tuple[CheckpointFile, ...]]]:
    load = dict.fromkeys(sources, 0)
    chosen: List[CheckpointFile] = []
    copies: Dict[int, Tuple[CheckpointFile, ...]] = {}

    def order(file: CheckpointFile) -> Tuple[bool, int, int, int]:
        distance = sources[file.host].distance
        return file.rank not in preferred, distance, load[file.host], file.rank

    # Files that only one host has are no choice: their load counts first.
    for group in sorted(groups, key=len):
        best = min(group, key=order)
        load[best.host] += best.size
        chosen.append(best)
        if len(group) > 1:
            copies[best.rank] = tuple(file for file in group if file is not best)
    return tuple(sorted(chosen, key=lambda file: file.rank)), copies


def _list_all(sources: Sequence[Source]) -> Tuple[Dict[str, Listing], List[OrchError]]:
    outcomes = fan_out(sources, list_checkpoints)
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if len(errors) == len(outcomes) or any(not isinstance(e, TransportError) for e in errors):
        raise one_error("cannot list the checkpoints of all hosts", errors)
    return {o.host: o.value for o in outcomes if o.value is not None}, errors


def _strategies(listings: Mapping[str, Listing]) -> Dict[str, bytes]:
    """All strategy files by name; the same name on two hosts must be the same file."""
    found: Dict[str, bytes] = {}
    origin: Dict[str, str] = {}
    for host, listing in listings.items():
        for name, content in listing.strategies.items():
            if found.setdefault(name, content) != content:
                raise CheckpointError(
                    f"strategy file {name} of {host} differs from that of {origin[name]}",
                    hint="the hosts hold files of different runs",
                )
            origin.setdefault(name, host)
    return found


def _select(
    sources: Sequence[Source],
    listings: Mapping[str, Listing],
    strategy: Optional[Strategy],
    step: str,
) -> Selection:
    files = [file for listing in listings.values() for file in listing.files]
    ranks: Sequence[int] = sorted(rank for source in sources for rank in source.ranks)
    if strategy is not None:
        if strategy.world_size > len(ranks):
            raise CheckpointError(
                f"the strategy files describe {strategy.world_size} ranks, the run has "
                f"{len(ranks)}",
                hint="the hosts hold strategy files of another run",
            )
        ranks = check_world([file.rank for file in files] or [0], strategy, "the run")
    # A file whose name tells no step cannot be known to belong to the others'.
    numbered = [file for file in files if file.step]
    selection = select(numbered, ranks=ranks, strategy=strategy, step=step)
    if strategy is None and selection.missing:
        # Only a strategy proves that the others hold what these ranks would.
        raise CheckpointError(
            f"step {selection.step}: expected a file of each of {len(ranks)} ranks, found "
            f"none of rank {selection.missing[0]} and no strategy file",
            hint="wait for the next save, or choose another step with --step",
        )
    return selection
