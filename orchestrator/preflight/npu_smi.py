"""Outputs of ``npu-smi info``: devices, health, ECC. Misread is raised for any other text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple, Union

from orchestrator.preflight.outputs import Misread, lines, number, pairs

_RULE = re.compile(r"[+|][-+=|]*")
_NPU = re.compile(r"(\d{1,4})\s+(\S.*)")
_CHIP = re.compile(r"(\d{1,4})(?:\s+(\d{1,4}))?")
_USAGE = re.compile(r"(\d{1,9})\s*/\s*(\d{1,9})")
_IDLE = re.compile(r"No running processes found in NPU (\d{1,4})")
_DRIVER_DOWN = re.compile(r"dcmi \w+ initializ\w* failed.*")
_VERSION = re.compile(r"npu-smi\s+\S+\s+Version:\s*\S+")
_COUNTER = re.compile(r"(DDR|HBM) (Single|Double) Bit (.+)")
_NOT_THERE = ("NA", "N/A", "-", "")
_SKIPPED_KEYS = ("NPU ID", "Chip ID", "Chip Count")


@dataclass(frozen=True)
class Npu:
    """One chip of the table. ``device`` is its physical id: the Phy-ID where the table has that
    column, else the number of its card."""

    device: int
    npu: int
    chip: int
    name: str
    health: str
    hbm_used_mb: Optional[int]
    """None where the table has no column for it."""
    hbm_total_mb: Optional[int]
    busy_percent: Optional[int] = None
    """Use of the AI cores."""
    celsius: Optional[int] = None


@dataclass(frozen=True)
class NpuProcess:
    """A process that holds a device; ``pid`` is the one that this host or container knows."""

    device: int
    pid: int
    name: str
    memory_mb: int


@dataclass(frozen=True)
class NpuTable:
    npus: Tuple[Npu, ...]
    processes: Tuple[NpuProcess, ...]
    accounted: Tuple[int, ...]
    """Devices of which the table says which processes they have, or that they have none."""


@dataclass(frozen=True)
class DriverDown:
    """npu-smi cannot talk to the driver."""

    text: str


@dataclass(frozen=True)
class NpuHealth:
    status: str
    code: str = ""
    information: str = ""


@dataclass(frozen=True)
class EccCounts:
    """Counters of memory errors that are not zero. ``fatal``: errors of two bits, now."""

    fatal: Tuple[Tuple[str, int], ...]
    others: Tuple[Tuple[str, int], ...]


def table(text: str) -> Union[NpuTable, DriverDown]:
    """``npu-smi info``: the table of devices and that of their processes."""
    found = lines(text)
    if found and _DRIVER_DOWN.fullmatch(found[0]):
        return DriverDown(found[0])
    reader = _Table()
    for line in found:
        if _RULE.fullmatch(line) is None:
            reader.row(_cells(line))
    return reader.result()


def health(text: str) -> NpuHealth:
    """``npu-smi info -t health -i N``; of several chips the first that is not OK."""
    chips: List[Dict[str, str]] = []
    for key, value in pairs(text):
        if key == "Health Status":
            chips.append({key: value})
        elif key in ("Error Code", "Error Information") and chips:
            chips[-1][key] = value
        elif key not in _SKIPPED_KEYS:
            raise Misread(f"unknown key {key[:60]!r}")
    if not chips or not all(chip["Health Status"] for chip in chips):
        raise Misread("no `Health Status`")
    worst = next((chip for chip in chips if chip["Health Status"] != "OK"), chips[0])
    code, information = worst.get("Error Code", ""), worst.get("Error Information", "")
    return NpuHealth(worst["Health Status"], _given(code), _given(information))


def ecc(text: str) -> EccCounts:
    """``npu-smi info -t ecc -i N``; counters that a chip does not have are ``NA``."""
    fatal: Dict[str, int] = {}
    others: Dict[str, int] = {}
    counted = 0
    for key, value in pairs(text):
        if key in _SKIPPED_KEYS:
            continue
        match = _COUNTER.fullmatch(key)
        if match is None:
            raise Misread(f"unknown key {key[:60]!r}")
        if value in _NOT_THERE:
            continue
        counted += 1
        double_now = match.group(2) == "Double" and match.group(3) == "Error Count"
        into = fatal if double_now else others
        into[key] = into.get(key, 0) + number(value)
    if not counted:
        raise Misread("no counter")
    return EccCounts(_not_zero(fatal), _not_zero(others))


class _Table:
    """Reads the rows one after the other; a device has two, the first names its card."""

    def __init__(self) -> None:
        self.headings: List[str] = []
        self.in_processes = False
        self.begun: Optional[Tuple[int, str, str, str]] = None
        self.top_headings: List[str] = []
        self.npus: List[Npu] = []
        self.processes: List[Tuple[int, int, int, str, int]] = []
        self.idle: List[int] = []

    def row(self, cells: List[str]) -> None:
        if self._is_heading(cells):
            return
        if self.in_processes:
            self._process(cells)
        elif len(cells) != 3 or not self.headings:
            raise Misread(f"unknown row {' | '.join(cells)[:80]!r}")
        elif self.begun is None:
            match = _NPU.fullmatch(cells[0])
            if match is None or not cells[1]:
                raise Misread(f"no card and health in {' | '.join(cells)[:80]!r}")
            self.begun = (int(match.group(1)), match.group(2), cells[1], cells[2])
        else:
            self._chip(cells)

    def result(self) -> NpuTable:
        if not self.npus or self.begun is not None:
            raise Misread("no whole table of devices")
        if len({npu.device for npu in self.npus}) != len(self.npus):
            raise Misread("two rows for the same device")
        by_place = {(npu.npu, npu.chip): npu.device for npu in self.npus}
        processes = []
        for card, chip, pid, name, memory in self.processes:
            if (card, chip) not in by_place:
                raise Misread(f"a process on NPU {card} chip {chip}, which is not in the table")
            processes.append(NpuProcess(by_place[card, chip], pid, name, memory))
        spoken_of = {*self.idle, *(card for card, *_ in self.processes)}
        accounted = {npu.device for npu in self.npus if npu.npu in spoken_of}
        return NpuTable(tuple(self.npus), tuple(processes), tuple(sorted(accounted)))

    def _is_heading(self, cells: List[str]) -> bool:
        if len(cells) == 1 and _VERSION.fullmatch(cells[0]):
            return True
        if len(cells) >= 4 and cells[1] == "Process id":
            self.in_processes, self.headings = True, cells
            return True
        if len(cells) == 3 and cells[1] == "Health":
            self.top_headings = cells[2].split()
            return True
        if len(cells) == 3 and cells[1] == "Bus-Id" and cells[0].split()[:1] == ["Chip"]:
            self.headings = cells
            return True
        return False

    def _chip(self, cells: List[str]) -> None:
        match = _CHIP.fullmatch(cells[0])
        names = self.headings[2].split()
        usages = [name for name in names if "-Usage" in name]
        pairs_found = _USAGE.findall(cells[2])
        has_phy_id = self.headings[0].split()[1:] == ["Phy-ID"]
        if match is None or len(pairs_found) != len(usages) or has_phy_id != bool(match.group(2)):
            raise Misread(f"no chip and memory in {' | '.join(cells)[:80]!r}")
        used: Optional[int] = None
        total: Optional[int] = None
        for name, (in_use, size) in zip(usages, pairs_found):
            if name.startswith("HBM"):
                used, total = int(in_use), int(size)
        card, name, state, above = self.begun or (0, "", "", "")
        device = int(match.group(2)) if has_phy_id else card
        self.npus.append(
            Npu(
                device=device,
                npu=card,
                chip=int(match.group(1)),
                name=name,
                health=state,
                hbm_used_mb=used,
                hbm_total_mb=total,
                busy_percent=_column(names, cells[2], "AICore(%)"),
                celsius=_column(self.top_headings, above, "Temp(C)"),
            )
        )
        self.begun = None

    def _process(self, cells: List[str]) -> None:
        idle = _IDLE.fullmatch(cells[0]) if len(cells) == 1 else None
        if idle is not None:
            self.idle.append(int(idle.group(1)))
            return
        place = re.fullmatch(r"(\d{1,4})\s+(\d{1,4})", cells[0])
        if place is None or len(cells) != len(self.headings):
            raise Misread(f"no process in {' | '.join(cells)[:80]!r}")
        pid, memory = number(cells[1]), number(cells[3])
        # In a container the first column is the host's number for the process.
        if len(cells) > 4 and self.headings[4] == "Process id in container":
            pid = pid if cells[4] in _NOT_THERE else number(cells[4])
        self.processes.append((int(place.group(1)), int(place.group(2)), pid, cells[2], memory))


def _cells(line: str) -> List[str]:
    if not (line.startswith("|") and line.endswith("|") and len(line) > 1):
        raise Misread(f"the line {line[:60]!r} is no row of a table")
    return [cell.strip() for cell in line[1:-1].split("|")]


def _column(headings: List[str], values: str, name: str) -> Optional[int]:
    """The number below a heading that stands before those with slashes; None: there is none."""
    words = values.split()
    place = headings.index(name) if name in headings else len(words)
    return int(words[place]) if place < len(words) and words[place].isdecimal() else None


def _not_zero(counts: Dict[str, int]) -> Tuple[Tuple[str, int], ...]:
    return tuple((name, count) for name, count in counts.items() if count)


def _given(value: str) -> str:
    return "" if value in _NOT_THERE else value
