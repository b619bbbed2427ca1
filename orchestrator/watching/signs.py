"""When each host gave its last sign of life. Pure.

Of a big job, signs come every half second, and nobody asks for one host's until something seems
wrong. So they are noted as they come, and entered host by host only now and then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterable, Mapping, Tuple

_NOTED = 8
"""Signs are entered when so many are noted: at two a second, well before somebody is missed."""


@dataclass(frozen=True)
class Signs:
    """The signs of all hosts, in monotonic seconds. Get the last ones from ``last``."""

    entered: Mapping[str, float]
    oldest: float
    """No host's last sign is older."""
    noted: Tuple[Tuple[float, Tuple[str, ...]], ...] = ()

    def add(self, hosts: Tuple[str, ...], now: float) -> Signs:
        """With a sign of ``hosts``; those that are not known are passed over."""
        noted = (*self.noted, (now, hosts))
        if len(noted) < _NOTED:
            return Signs(self.entered, self.oldest, noted)
        last = _entered(self.entered, noted)
        return Signs(last, min(last.values()))

    def last(self) -> Mapping[str, float]:
        """When each host was heard last."""
        return _entered(self.entered, self.noted) if self.noted else self.entered


def first_signs(hosts: Iterable[str], now: float) -> Signs:
    """All hosts are heard now."""
    return Signs(dict.fromkeys(hosts, now), now)


def _entered(
    entered: Mapping[str, float], noted: Tuple[Tuple[float, Tuple[str, ...]], ...]
) -> Mapping[str, float]:
    last: Dict[str, float] = dict(entered)
    for now, hosts in noted:
        last.update(dict.fromkeys(hosts, now))
    if len(last) > len(entered):
        return {host: last[host] for host in entered}
    return last
