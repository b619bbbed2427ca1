"""A diagnosis for people (one block of lines, the answer last) and for programs."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Optional

from orchestrator.diagnosis.cause import Diagnosis
from orchestrator.diagnosis.evidence import Process
from orchestrator.diagnosis.grouping import Group
from orchestrator.diagnosis.lines import show_time
from orchestrator.logs.ranks import format_ranks
from orchestrator.logs.text import printable

_TOLD = ("host-lost", "hang", "journal")
"""Rules whose reason is a whole sentence of its own."""
_MOST_TEXT, _MOST_EVIDENCE, _MOST_HEADLINE = 240, 160, 120


def headline(diagnosis: Diagnosis) -> str:
    """One sentence: ``rank 5 on node1: EL0004, memory of the device could not be allocated``."""
    if not diagnosis.found:
        return "no cause was found in the logs"
    if diagnosis.rule in _TOLD:
        return printable(diagnosis.reason)
    what = "failed first, its log does not say why"
    if diagnosis.signature is not None and diagnosis.signature.wraps and diagnosis.finding:
        what = _cut(diagnosis.finding.text, _MOST_HEADLINE)  # The line says more than the table.
    elif diagnosis.signature is not None:
        what = f"{diagnosis.signature.id}, {diagnosis.signature.meaning}"
    elif diagnosis.rule != "exit":
        what = "an error that does not say its cause"
    return printable(f"{who(diagnosis)}: {what}")


def who(diagnosis: Diagnosis) -> str:
    """``rank 5 on node1``, ``ranks 8-15 on node1``, ``device 3 of 10.0.0.4``."""
    if diagnosis.device is not None:
        server, device = diagnosis.device
        return f"device {device} of {server}" if device >= 0 else server
    if len(diagnosis.who) == 1:
        return diagnosis.who[0].label()
    ranks = [p.rank for p in diagnosis.who if p.rank is not None]
    hosts = list(dict.fromkeys(p.host for p in diagnosis.who if p.host))
    names = [p.name for p in diagnosis.who if p.rank is None]
    text = ", ".join([*([f"ranks {format_ranks(ranks)}"] if ranks else []), *names])
    if hosts and len(hosts) <= 3:
        text += " on " + ", ".join(hosts)
    elif hosts:
        text += f" on {len(hosts)} hosts"
    return text


def block(diagnosis: Diagnosis) -> List[str]:
    """The lines to print. Nothing in them can drive a terminal."""
    lines: List[str] = []
    evidence = [one for one in diagnosis.evidence if not _is_the_line(one, diagnosis)]
    if evidence:
        lines.append("also logged (times by our clock):")
        lines += [_evidence(one) for one in evidence]
    if diagnosis.collateral:
        lines.append(f"ended by us (not the cause): {_names(diagnosis.collateral)}")
    if diagnosis.silent:
        lines.append(f"silent: {format_ranks(diagnosis.silent)}")
    lines += [f"note: {note}" for note in diagnosis.notes]
    lines.append(f"first cause: {headline(diagnosis)}")
    lines += [f"  {name:<8}{text}" for name, text in _answer(diagnosis) if text]
    return [printable(line) for line in lines]


def record(diagnosis: Diagnosis) -> Dict[str, Any]:
    """The diagnosis as JSON output shows it."""
    signature, finding = diagnosis.signature, diagnosis.finding
    first = diagnosis.who[0] if diagnosis.who else None
    fields = {
        "found": diagnosis.found,
        "headline": headline(diagnosis),
        "rule": diagnosis.rule or None,
        "reason": diagnosis.reason or None,
        "code": signature.id if signature else None,
        "rank": first.rank if first else None,
        "ranks": [p.rank for p in diagnosis.who if p.rank is not None],
        "process": first.name if first else None,
        "host": (first.host or None) if first else None,
        "device": list(diagnosis.device) if diagnosis.device else None,
        "time": None if diagnosis.time is None else show_time(diagnosis.time),
        "clock_ahead_s": first.clock_ahead if first else None,
        "meaning": signature.meaning if signature else None,
        "usual_cause": signature.cause if signature else None,
        "remedy": signature.remedy if signature else None,
        "source": signature.source if signature else None,
        "line": finding.text if finding else None,
        "place": str(finding.place) if finding else None,
        "evidence": [_evidence_record(one) for one in diagnosis.evidence],
        "collateral": list(diagnosis.collateral),
        "silent_ranks": list(diagnosis.silent),
        "notes": list(diagnosis.notes),
    }
    return {name: _safe(value) for name, value in fields.items()}


def _safe(value: Any) -> Any:
    """Names of files, hosts and processes come from elsewhere too."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [_safe(item) for item in value]
    if isinstance(value, dict):
        return {name: _safe(item) for name, item in value.items()}
    return value


def _answer(diagnosis: Diagnosis) -> Iterable[tuple[str, str]]:
    if not diagnosis.found:
        return
    if diagnosis.rule not in ("hang", "journal") or diagnosis.time is not None:
        yield "when", _when(diagnosis)
    if diagnosis.rule not in _TOLD:
        yield "because", diagnosis.reason
    if diagnosis.finding is not None:
        yield "line", f"{diagnosis.finding.place}: {_cut(diagnosis.finding.text)}"
    if diagnosis.signature is not None:
        yield "usual", diagnosis.signature.cause
        yield "do", diagnosis.signature.remedy
    elif diagnosis.who:
        yield "do", f"read the end of the log of {diagnosis.who[0].name}"


def _when(diagnosis: Diagnosis) -> str:
    if diagnosis.time is None:
        return "the time is not known"
    text = show_time(diagnosis.time)
    first: Optional[Process] = diagnosis.who[0] if diagnosis.who else None
    if diagnosis.rule in ("vanished", "host-lost", "hang"):
        return f"{text} (its last line)"
    if first is not None and abs(first.clock_ahead) >= 0.1:
        way = "ahead of" if first.clock_ahead > 0 else "behind"
        where = first.host or "its host"
        text += f" (the clock of {where} is {abs(first.clock_ahead):.1f} s {way} ours)"
    if diagnosis.finding is not None and not diagnosis.finding.dated:
        text += " or about then (the line has no time of its own)"
    return text


def _is_the_line(one: Group, diagnosis: Diagnosis) -> bool:
    """It only says again what the answer's own line says."""
    return one.first == diagnosis.finding and len(one.processes) == 1


def _evidence(one: Group) -> str:
    time = "" if one.time is None else show_time(one.time)[11:] + " "
    times = f" (x{one.count})" if one.count > 1 else ""
    text = _cut(one.first.text, _MOST_EVIDENCE)
    return f"  [{one.label()}] {time}{one.first.place}: {text}{times}"


def _evidence_record(one: Group) -> Dict[str, Any]:
    return {
        "processes": one.label(),
        "code": one.first.signature.id,
        "role": one.first.signature.role,
        "time": None if one.time is None else show_time(one.time),
        "place": str(one.first.place),
        "line": one.first.text,
        "count": one.count,
    }


def _names(names: Iterable[str]) -> str:
    ranks = [int(name) for name in names if name.isdecimal()]
    others = [name for name in names if not name.isdecimal()]
    return ", ".join([*([f"ranks {format_ranks(ranks)}"] if ranks else []), *others])


def _cut(text: str, most: int = _MOST_TEXT) -> str:
    return text if len(text) <= most else text[:most] + "…"
