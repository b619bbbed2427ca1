"""Reading the evidence out of log files, in one pass and bounded memory.

The first ``HEAD`` and last ``TAIL`` bytes of a log are read line by line. Of a longer one the
middle is skimmed: blocks that hold no error mark are passed over, so that 96 logs of 100 MB take
seconds. Of each kind of finding the first is kept and the rest counted, the same message over
and over without another look: neither memory nor time grow much with the log. Of a line longer
than ``_LONGEST`` only the beginning is looked at.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Dict, Iterator, List, Optional, Set, Tuple

from orchestrator.diagnosis.evidence import Device, Finding, LogEvidence, Named
from orchestrator.diagnosis.lines import Line, first_time, last_time, parse_line, time_in
from orchestrator.diagnosis.signatures import Signature, SignatureTable
from orchestrator.errors import Location
from orchestrator.logs.text import printable

HEAD = 1 << 20
TAIL = 8 << 20
_BLOCK = 1 << 20
_LONGEST = 4096
_MOST_FINDINGS = 256
_MOST_SHAPES = 4096
_ENOUGH, _ENOUGH_UNKNOWN = 50, 1000
"""Of lines that differ only in numbers so many are looked at; those of no signature longer."""
_MOST_TEXT = 400
_MARKS = (b"[ERROR]", b"[CRITICAL]", b"Traceback (most", b"EI00", b"EJ00", b"EL00", b"crimer rank")
_STEP_MARKS = (b"step:[", b"loss:", b"loss ")

_SELF = re.compile(
    r"localUserrank\[(\d{1,6})\]-localIpAddr\[([^/\]]+)/(\d{1,4})\]|"
    r"remoteUserrank\[(\d{1,6})\]-remoteIpAddr\[([^/\]]+)/(\d{1,4})\]"
)
_WORLD = re.compile(
    r"\brankSize\[(\d{1,6})\]|need connect rankNum is \[(\d{1,6})\]|RANK_SIZE=(\d{1,6})"
)
_OWN_DEVICE = re.compile(r"\blocal rank ?\[([^/\]]{1,64})/(\d{1,4})\]")
_OWN_RANK = re.compile(r"localUserrank\[(\d{1,6})\]|groupRank information .*rankId\[(\d{1,6})\]")


def read_log(
    path: Path, table: SignatureTable, *, name: str = "", whole: bool = False
) -> LogEvidence:
    """The evidence in one log file as it is now (it may still grow). ``name`` is how to show it.

    ``whole`` reads the middle of a long log line by line too. Raises OSError.
    """
    reader = _Reader(table, name or str(path))
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        head_end, tail_start = (size, 0) if whole or size <= HEAD + TAIL else (HEAD, size - TAIL)
        for offset, block in _blocks(stream, size):
            middle = offset >= head_end and offset + len(block) <= tail_start
            if middle and not any(mark in block for mark in _MARKS):
                reader.skim(block)
            else:
                reader.read(block)
    return reader.evidence(size)


def read_text(data: bytes, table: SignatureTable, *, name: str = "log") -> LogEvidence:
    """The evidence in a log that is in memory."""
    reader = _Reader(table, name)
    reader.read(data)
    return reader.evidence(len(data))


def _blocks(stream: BinaryIO, size: int) -> Iterator[Tuple[int, bytes]]:
    """Pieces of whole lines with their offsets; the last line may lack its end."""
    offset, rest = 0, b""
    while offset + len(rest) < size:
        data = stream.read(min(_BLOCK, size - offset - len(rest)))
        if not data:
            break
        data = rest + data
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) >= 4 * _BLOCK:
            end = len(data)  # No line is that long: a binary file, or a progress bar.
        if end:
            yield offset, data[:end]
            offset += end
        rest = data[end:]
    if rest:
        yield offset, rest


_Key = Tuple[str, Optional[int], Named]


@dataclass
class _Repeated:
    """Lines of one shape: how many, what the last that was looked at told, the last of all."""

    seen: int = 0
    key: Optional[_Key] = None
    last: bytes = b""


class _Reader:
    """Gathers the evidence of one log, block by block."""

    def __init__(self, table: SignatureTable, name: str) -> None:
        self._table = table
        self._name = name
        self._lines = 0
        self._skimmed = 0
        self._first: Optional[float] = None
        self._last: Optional[float] = None
        self._step: Optional[float] = None
        self._findings: Dict[_Key, Finding] = {}
        self._repeats: Dict[bytes, _Repeated] = {}
        self._pids: Set[int] = set()
        self._devices: Dict[Device, int] = {}
        self._world: Optional[int] = None
        self._rank: Optional[int] = None
        self._device: Optional[Device] = None

    def skim(self, block: bytes) -> None:
        self._lines += block.count(b"\n")
        self._skimmed += len(block)
        self._times(block)

    def read(self, block: bytes) -> None:
        shape_of = self._table.shape
        start = 0
        for number, raw in enumerate(block.split(b"\n"), self._lines + 1):
            end = start + len(raw)
            if len(raw) > _LONGEST or b"\r" in raw:
                raw = raw.rstrip(b"\r").rsplit(b"\r", 1)[-1][:_LONGEST]
            shape = shape_of(raw)
            if shape is not None and not self._repeated(shape, raw):
                self._line(raw, number, block, start, shape)
            start = end + 1
        self._lines += block.count(b"\n")
        self._times(block)

    def evidence(self, size: int) -> LogEvidence:
        for repeated in self._repeats.values():
            self._count(repeated)
        return LogEvidence(
            file=self._name,
            size=size,
            skimmed=self._skimmed,
            first_time=self._first,
            last_time=self._last,
            last_step=self._step,
            findings=tuple(self._findings.values()),
            pids=frozenset(self._pids),
            devices=self._devices,
            world_size=self._world,
            rank=self._rank,
            device=self._device,
        )

    def _times(self, block: bytes) -> None:
        if self._first is None:
            self._first = first_time(block[:65536])
            pid = parse_line(block[:_LONGEST].decode("utf-8", "replace")).pid
            if pid is not None:
                self._pids.add(pid)
        self._last = last_time(block[-16384:]) or self._last
        self._step = _last_step(block) or self._step

    def _repeated(self, shape: bytes, raw: bytes) -> bool:
        """Whether there were so many lines of this shape that this one is only counted."""
        repeated = self._repeats.get(shape)
        if repeated is None:
            if len(self._repeats) >= _MOST_SHAPES:
                return False
            repeated = self._repeats[shape] = _Repeated()
        repeated.seen += 1
        if repeated.seen <= (_ENOUGH if repeated.key else _ENOUGH_UNKNOWN):
            return False
        repeated.last = raw
        return True

    def _count(self, repeated: _Repeated) -> None:
        """Add the lines that were only counted to the finding of their shape."""
        known = self._findings.get(repeated.key) if repeated.key else None
        if known is not None and repeated.key is not None and repeated.last:
            time = parse_line(repeated.last.decode("utf-8", "replace")).time
            self._findings[repeated.key] = replace(
                known,
                count=known.count + repeated.seen - _ENOUGH,
                last_time=known.last_time if time is None else time,
            )

    def _line(self, raw: bytes, number: int, block: bytes, start: int, shape: bytes) -> None:
        line = parse_line(raw.decode("utf-8", "replace"))
        if line.pid is not None and len(self._pids) < 64:
            self._pids.add(line.pid)
        self._learn(line.text)
        found = self._table.find(line.text, quiet=line.quiet)
        if found is None:
            return
        signature, match = found
        named = _named(match)
        key = (signature.id, line.rank, named)
        if shape in self._repeats:
            self._repeats[shape].key = key
        time = line.time if line.time is not None else self._time_near(block, start)
        known = self._findings.get(key)
        if known is not None:
            self._findings[key] = replace(
                known,
                count=known.count + 1,
                last_time=known.last_time if time is None else time,
            )
        elif len(self._findings) < _MOST_FINDINGS:
            self._findings[key] = self._finding(signature, line, number, time, named)

    def _finding(
        self, signature: Signature, line: Line, number: int, time: Optional[float], named: Named
    ) -> Finding:
        return Finding(
            signature=signature,
            text=printable(line.text.strip())[:_MOST_TEXT],
            place=Location(self._name, number),
            time=time,
            dated=line.time is not None,
            last_time=time,
            named=named,
            rank=line.rank,
        )

    def _time_near(self, block: bytes, start: int) -> Optional[float]:
        """The time of the lines before ``start``, else of those after it."""
        before = last_time(block[max(0, start - 8192) : start])
        if before is None:
            before = self._last
        return before if before is not None else first_time(block[start : start + 8192])

    def _learn(self, text: str) -> None:
        for match in _SELF.finditer(text):
            rank, server, device = match.group(1, 2, 3) if match.group(1) else match.group(4, 5, 6)
            if len(self._devices) < 4096:
                self._devices.setdefault((server, int(device)), int(rank))
        world = _WORLD.search(text)
        if world is not None:
            self._world = int(world.group(world.lastindex or 1))
        device = _OWN_DEVICE.search(text)
        if device is not None and self._device is None:
            self._device = device.group(1), int(device.group(2))
        own = _OWN_RANK.search(text)
        if own is not None and self._rank is None:
            self._rank = int(own.group(own.lastindex or 1))


def _named(match: re.Match[str]) -> Named:
    groups = {key: value for key, value in match.groupdict().items() if value}
    ranks = frozenset(_numbers(groups.get("ranks", "") + " " + groups.get("rank", "")))
    devices: List[Device] = []
    if "server" in groups:
        devices.append((groups["server"], int((groups.get("device") or "-1")[:9])))
    return Named(ranks, frozenset(devices), frozenset(_numbers(groups.get("present", ""))))


def _numbers(text: str) -> Iterator[int]:
    """Numbers of a list such as ``1,3``, ``'3'`` or ``[0000000000000002],[…4]``; 4-6 is three."""
    for part in re.split(r"[,\]\s]+", text):
        found = re.findall(r"\d{1,18}", part)
        if len(found) == 2 and "-" in part and 0 <= int(found[1]) - int(found[0]) < 10_000:
            yield from range(int(found[0]), int(found[1]) + 1)
        elif found:
            yield from (int(number) for number in found if int(number) < 1_000_000)


def _last_step(block: bytes) -> Optional[float]:
    """Time of the last line in ``block`` that reports a training step, where it has one."""
    for mark in _STEP_MARKS:
        at = block.rfind(mark)
        if at < 0:
            continue
        start = block.rfind(b"\n", 0, at) + 1
        line = block[start : at + 1][:300].decode("utf-8", "replace")
        parsed = parse_line(line)
        if parsed.level not in ("ERROR", "CRITICAL") and b"nan" not in block[at : at + 80]:
            return time_in(line)
    return None
