"""The pace of a run that is followed: metrics go in, standstills and slow ranks come out."""

from __future__ import annotations

import re
from typing import Any, Callable, List, Mapping, Optional, Sequence, Tuple

from orchestrator.runs.journal import last_events
from orchestrator.runs.layout import RunPaths
from orchestrator.watching import reducer, training


class Pace:
    """Holds the state of ``watching.training`` for one run. Used from one thread."""

    def __init__(
        self,
        paths: RunPaths,
        processes: Mapping[str, Sequence[str]],
        limits: training.TrainingLimits,
        clock: Callable[[], float],
    ) -> None:
        """``processes`` are the names of those of each host, in the order of their devices."""
        self._clock = clock
        places = [
            training.Place(rank, host, slot)
            for host, names in processes.items()
            for slot, rank in enumerate(rank for rank in map(rank_of, names) if rank is not None)
        ]
        self._state = training.begin_training(places, clock(), limits)
        for place in places:
            # What an earlier controller received will not be sent again.
            lines = last_events(paths.metrics(f"rank_{place.rank}"))
            self.metrics([(place.rank, line) for line in lines])

    def metrics(self, lines: Sequence[Tuple[int, Mapping[str, Any]]]) -> List[reducer.Decide]:
        """Ranks reported; what is to be told of it."""
        self._state, decisions = training.on_metrics(self._state, lines, self._clock())
        return decisions

    def event(self, event: reducer.WatchEvent) -> None:
        """Something happened: ranks that ended do not count any more."""
        if isinstance(event, reducer.NodeEvent) and event.event.get("event") == "process_exited":
            rank = event.event.get("rank")
            if isinstance(rank, int):
                self._state = training.on_exit(self._state, rank)

    def tick(self) -> Tuple[Optional[reducer.Standstill], List[reducer.Decide]]:
        """A standstill that has just become one, and what else is to be told."""
        self._state, decisions = training.on_tick(self._state, self._clock())
        hangs = [one for one in decisions if one.rule == "hang"]
        others = [one for one in decisions if one.rule != "hang"]
        return (self._standstill(hangs[0]) if hangs else None), others

    def _standstill(self, hang: reducer.Decide) -> reducer.Standstill:
        rank = next(iter(hang.evidence["ranks"]), None)
        host = "" if rank is None else self._state.ranks[rank].host
        return reducer.Standstill(training.sentence(hang), hang.evidence, host, rank)


def rank_of(process: str) -> Optional[int]:
    """The rank of a process by its name; None for a service."""
    match = re.fullmatch(r"rank_(\d{1,9})", process)
    return int(match.group(1)) if match else None
