"""What the watcher of a run saw, recorded; and the replay, which comes to the same decisions.

``watch.jsonl``: one object a line. Each controller that follows the run begins with ``begin``:
hosts, places of the ranks, rules, and how much of each file of metrics was there. Then each event
that changed something, with ``now`` in the controller's monotonic seconds. Metrics are not
repeated: ``metrics`` says how many lines of which ranks were read.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

from orchestrator.logs.ranks import format_ranks, parse_ranks
from orchestrator.runs.journal import last_events, parse_line, read_events
from orchestrator.runs.layout import RunPaths
from orchestrator.watching import divergence, hang, reducer, straggler, training, watcher
from orchestrator.watching.stacks import Stack


class Recording:
    """Appends to ``watch.jsonl``. Used from one thread."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self.ranks = 0
        """How many ranks the run has."""

    def begin(
        self,
        hosts: Sequence[str],
        places: Sequence[training.Place],
        rules: watcher.Rules,
        now: float,
    ) -> Dict[int, int]:
        """A controller begins; returns the sizes of the files of metrics, by rank."""
        self.ranks = len(places)
        sizes = {place.rank: _size(self._paths.metrics(f"rank_{place.rank}")) for place in places}
        self._write(
            now,
            begin={
                "hosts": list(hosts),
                "places": [asdict(place) for place in places],
                "rules": asdict(rules),
                "sizes": list(sizes.items()),
            },
        )
        return sizes

    def add(self, event: watcher.Event, now: float) -> None:
        """An event that the watcher was given."""
        if isinstance(event, reducer.Heard):
            self._write(now, heard=list(event.hosts))
        elif isinstance(event, reducer.NodeEvent):
            self._write(now, node=event.host, event=dict(event.event), ahead=event.ahead)
        elif isinstance(event, reducer.SupervisorLost):
            self._write(now, lost=event.host)
        elif isinstance(event, reducer.Tick):
            self._write(now, tick=event.thorough)
        elif isinstance(event, watcher.Metrics):
            self._write(now, metrics=_counts(event))
        elif isinstance(event, watcher.StacksTaken):
            self._write(now, stacks=event.host, found=[asdict(one) for one in event.stacks])
        else:
            raise AssertionError(f"the watcher was never given {event!r} from outside")

    def _write(self, now: float, **fields: Any) -> None:
        line = json.dumps({"now": now, **fields}, separators=(",", ":")) + "\n"
        # A disk that is full must not cost the job its controller: then there is no replay.
        with contextlib.suppress(OSError), self._paths.watch.open("a", encoding="utf-8") as file:
            file.write(line)


def replay(paths: RunPaths) -> List[reducer.Decide]:
    """The decisions of all controllers of a run, made anew from what they saw."""
    decisions: List[reducer.Decide] = []
    state: Any = None
    lines: Dict[int, Iterator[Mapping[str, Any]]] = {}
    for record in read_events(paths.watch):
        now = record["now"]
        actions: Sequence[watcher.Action]
        if "begin" in record:
            state, lines, actions = _begin(paths, record["begin"], now)
        else:
            state, actions = watcher.reduce(state, _event(record, lines), now)
        decisions += [action for action in actions if isinstance(action, reducer.Decide)]
    return decisions


def _begin(
    paths: RunPaths, begin: Mapping[str, Any], now: float
) -> Tuple[watcher.Watcher, Dict[int, Iterator[Mapping[str, Any]]], List[watcher.Action]]:
    files = {rank: (paths.metrics(f"rank_{rank}"), size) for rank, size in begin["sizes"]}
    earlier = [
        (rank, line) for rank, (path, size) in files.items() for line in last_events(path, end=size)
    ]
    places = [training.Place(**place) for place in begin["places"]]
    state, actions = watcher.begin(begin["hosts"], places, _rules(begin["rules"]), now, earlier)
    lines = {rank: _lines(path, size) for rank, (path, size) in files.items()}
    return state, lines, actions


def _event(
    record: Mapping[str, Any], lines: Mapping[int, Iterator[Mapping[str, Any]]]
) -> watcher.Event:
    if "heard" in record:
        return reducer.Heard(tuple(record["heard"]))
    if "node" in record:
        return reducer.NodeEvent(record["node"], record["event"], record["ahead"])
    if "lost" in record:
        return reducer.SupervisorLost(record["lost"])
    if "metrics" in record:
        counts = {
            rank: int(count)
            for count, ranks in record["metrics"].items()
            for rank in parse_ranks(ranks)
        }
        found = [(rank, next(lines[rank])) for rank in sorted(counts) for _ in range(counts[rank])]
        return watcher.Metrics(tuple(found))
    if "stacks" in record:
        return watcher.StacksTaken(record["stacks"], tuple(Stack(**s) for s in record["found"]))
    return reducer.Tick(record["tick"])


def _counts(event: watcher.Metrics) -> Dict[str, str]:
    """Number of lines → ranks: ``{"1": "0-95"}``."""
    by_rank: Dict[int, int] = {}
    for rank, _ in event.lines:
        by_rank[rank] = by_rank.get(rank, 0) + 1
    by_count: Dict[int, List[int]] = {}
    for rank, count in by_rank.items():
        by_count.setdefault(count, []).append(rank)
    return {str(count): format_ranks(ranks) for count, ranks in by_count.items()}


def _lines(path: Path, offset: int) -> Iterator[Mapping[str, Any]]:
    """Lines from byte ``offset`` on, as the reader of the stream found them."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            entry = parse_line(line)
            if entry is not None:
                yield entry


def _rules(fields: Mapping[str, Any]) -> watcher.Rules:
    limits = fields["limits"]
    return watcher.Rules(
        **{
            **fields,
            "limits": training.TrainingLimits(
                hang=hang.HangLimits(**limits["hang"]),
                straggler=straggler.StragglerLimits(**limits["straggler"]),
                divergence=divergence.DivergenceLimits(**limits["divergence"]),
            ),
        }
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
