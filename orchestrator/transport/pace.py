"""A limit on bytes a second that all transfers of a command share."""

from __future__ import annotations

import threading
import time
from typing import Callable

_BURST_S = 0.25


class Pace:
    """Token bucket: at most ``bytes_per_s`` over all threads, with bursts of a quarter second.

    Safe to use from several threads; each waits its own turn.
    """

    def __init__(
        self,
        bytes_per_s: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = bytes_per_s
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = clock()
        """When all bytes so far have had their time."""

    def take(self, nbytes: int) -> None:
        """Wait until ``nbytes`` more may pass."""
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now - _BURST_S) + nbytes / self._rate
            wait = self._free_at - now
        if wait > 0:
            self._sleep(wait)
