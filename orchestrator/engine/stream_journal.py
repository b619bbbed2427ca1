"""Which units of a streamed merge have arrived, kept so that a later attempt begins behind them."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Dict, Mapping, Optional, TextIO, Tuple

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Arrived:
    """A unit that has arrived whole: its digest, the CRC32 of what the file's own checksum
    covers, and the digests of what other ranks hold too, by number of the landing."""

    rank: int
    number: int
    sha256: str
    crc: int
    copies: Mapping[int, str]


class Journal:
    """The file ``path``: a line that says for which plan, then a line a unit.

    It is believed only while the machine has not been restarted since: until then, what was
    written to the merged file is in the system's memory if not on the disk.
    """

    def __init__(
        self, path: Path, plan: str, *, fresh: bool, boot_id: Optional[str] = None
    ) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._head = {"schema": 1, "plan": plan, "boot": _boot_id() if boot_id is None else boot_id}
        self.arrived: Dict[Tuple[int, int], Arrived] = {} if fresh else self._read()
        self._file = self._begun()

    def note(self, unit: Arrived) -> None:
        """Remember a unit whose bytes have all been written."""
        with self._lock:
            self.arrived[unit.rank, unit.number] = unit
            self._file.write(json.dumps(asdict(unit)) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """The merged file is complete."""
        self.close()
        self._path.unlink(missing_ok=True)

    def _read(self) -> Dict[Tuple[int, int], Arrived]:
        try:
            head, *lines = self._path.read_text("utf-8").splitlines()
            if json.loads(head) != self._head or not self._head["boot"]:
                return {}
        except (OSError, ValueError):
            return {}
        found: Dict[Tuple[int, int], Arrived] = {}
        for line in lines:
            try:
                fields = json.loads(line)
                fields["copies"] = {int(key): str(sha) for key, sha in fields["copies"].items()}
                unit = Arrived(**fields)
            except (ValueError, KeyError, TypeError, AttributeError):
                break  # the line at which the earlier attempt died
            found[unit.rank, unit.number] = unit
        return found

    def _begun(self) -> TextIO:
        """Written anew: an earlier attempt may have left a torn line."""
        file = self._path.open("w", encoding="utf-8")
        for record in (self._head, *map(asdict, self.arrived.values())):
            file.write(json.dumps(record) + "\n")
        file.flush()
        return file


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return ""  # not known: nothing is believed
