"""How far the clocks of hosts are from ours, from their signs of life.

Kept in the beat of each host: ``{"wall": when it was heard, by our clock, "ahead": seconds}``.
"""

from __future__ import annotations

import json
import os
from collections import deque
from typing import Deque, Optional

from orchestrator.runs.journal import parse_line
from orchestrator.runs.layout import RunPaths

_SEEN = 16


class HostClock:
    """The clock of one host. What it sends takes a while, so of its last signs of life the one
    that seems to come from furthest ahead was the quickest, and is the nearest to the truth."""

    def __init__(self, paths: RunPaths, host: str) -> None:
        self._path = paths.host_beat(host)
        known = clock_ahead(paths, host)
        self._seen: Deque[float] = deque([] if known is None else [known], maxlen=_SEEN)

    @property
    def ahead(self) -> float:
        """Seconds by which it is ahead of ours; 0 where nothing is known."""
        return max(self._seen, default=0.0)

    def beat(self, wall: float, received: float) -> None:
        """A sign of life, sent at ``wall`` by the host's clock and ``received`` by ours (Unix
        seconds): remember it, in the run's folder too."""
        self._seen.append(wall - received)
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"wall": received, "ahead": self.ahead}))
        os.replace(temporary, self._path)


def clock_ahead(paths: RunPaths, host: str) -> Optional[float]:
    """Seconds by which a host's clock is ahead of ours; None where it was never heard."""
    try:
        return float((parse_line(paths.host_beat(host).read_bytes()) or {})["ahead"])
    except (OSError, KeyError, TypeError, ValueError):
        return None
