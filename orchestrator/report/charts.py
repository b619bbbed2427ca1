"""What the charts of a report draw: data for ``templates/report.js``. Pure."""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple

from orchestrator.logs.text import printable
from orchestrator.report.curves import Curves, RankHistory, curves, rounded, typical
from orchestrator.report.timeline import Moment
from orchestrator.runs.state import RunState

_MOST_LANES = 24
_MOST_PHASES = 150
_MOST_MARKS = 60
_EACH, _COUNTED, _NONE = "each", "counted", "none"
"""How the lines of single ranks are given: with their values, as so many, or not at all (the
learning rate is the same for all)."""
_PHASES = ("startup", "compile", "train", "checkpoint", "eval")

CHARTS = (
    ("loss", "Loss", "", False, True),
    ("speed", "Throughput of a rank", "tokens/s/p", True, False),
    ("lr", "Learning rate", "", True, False),
)
"""Field, title, unit, from zero, with a button for a log scale."""


def curve_charts(
    runs: Sequence[Tuple[str, Sequence[RankHistory], FrozenSet[int]]],
) -> List[Dict[str, Any]]:
    """A chart for each field that any of the runs has. ``runs``: name, histories and slow ranks
    of one run, or of two to be compared."""
    charts: List[Dict[str, Any]] = []
    for name, title, unit, zero, log in CHARTS:
        series = []
        for (run, histories, slow), tone in zip(runs, "ab"):
            found = curves(histories, name)
            if found is not None:
                lines = _EACH if len(runs) == 1 else _COUNTED
                series.append(_series(run, tone, found, slow, _NONE if name == "lr" else lines))
        if series:
            marks = _marks(runs[0][1], name) if len(runs) == 1 else []
            charts.append({
                "id": name, "title": title + (f", {unit}" if unit else ""), "unit": unit,
                "zero": zero, "log": log, "series": series, "marks": marks,
                "legend": _legend(series, marks),
            })  # fmt: skip
    return charts


def rank_chart(
    histories: Sequence[RankHistory], hosts: Mapping[int, str], slow: FrozenSet[int]
) -> Optional[Dict[str, Any]]:
    """The usual step time of every rank; None with fewer than three."""
    known = [(one.rank, time) for one in histories if (time := typical(one, "time")) is not None]
    if len(known) < 3:
        return None
    return {
        "ranks": [rank for rank, _ in known],
        "values": rounded([time for _, time in known]),
        "hosts": [printable(hosts.get(rank, "")) for rank, _ in known],
        "slow": [int(rank in slow) for rank, _ in known],
        "middle": rounded([median(time for _, time in known)])[0],
    }


def lane_chart(
    state: RunState,
    histories: Sequence[RankHistory],
    ahead: Mapping[str, float],
    moments: Sequence[Moment],
    troubled: FrozenSet[str],
    now: float,
) -> Tuple[Optional[Dict[str, Any]], str, List[str]]:
    """A lane of phases for each host (its first rank that has any), a note that says of which,
    and the phases that appear."""
    by_rank = {history.rank: history for history in histories}
    first: Dict[str, RankHistory] = {}
    for rank in state.ranks:
        history = by_rank.get(rank.rank or 0)
        if history is not None and history.phases:
            first.setdefault(rank.host, history)
    begin = state.created
    if not first or begin is None:
        return None, "", []
    chosen = sorted(first, key=lambda host: (host not in troubled, first[host].rank))[:_MOST_LANES]
    chosen.sort(key=lambda host: first[host].rank)
    end = max((state.ended or now) - begin, 1.0)
    lanes = [
        {"host": printable(host), "phases": _lane(first[host], begin + ahead.get(host, 0.0), end)}
        for host in chosen
    ]
    marks = [
        {"at": round(moment.wall - begin, 1), "text": moment.text, "tone": moment.tone}
        for moment in moments
        if moment.tone in ("warn", "bad") and 0 <= moment.wall - begin <= end
    ][:_MOST_MARKS]
    shown = {phase[0] for lane in lanes for phase in lane["phases"]}
    note = "phases of each host, by its first rank"
    if len(first) > len(chosen):
        note += f"; {len(chosen)} of {len(first)} hosts, those that had trouble first"
    data = {"lanes": lanes, "end": round(end, 1), "marks": marks}
    return data, note, [phase for phase in (*_PHASES, "other") if phase in shown]


def _series(run: str, tone: str, found: Curves, slow: FrozenSet[int], lines: str) -> Dict[str, Any]:
    band = found.band
    values = {} if lines == _NONE else found.lines
    return {
        "name": "A" if tone == "a" else "B",
        "run": run,
        "tone": tone,
        "steps": band.steps,
        "middle": rounded(band.middle),
        "low": rounded(band.low),
        "high": rounded(band.high),
        "lowRank": band.low_rank,
        "highRank": band.high_rank,
        "lineSteps": found.line_steps,
        "lines": [
            {
                "rank": rank,
                "slow": int(rank in slow),
                "values": rounded(line) if lines == _EACH else [],
            }
            for rank, line in values.items()
        ],
    }


def _marks(histories: Sequence[RankHistory], name: str) -> List[Dict[str, Any]]:
    marks: List[Dict[str, Any]] = []
    restarts = Counter(step for history in histories for step in history.restarts)
    marks += [
        {"step": step, "tone": "warn", "text": f"went on again from step {step}"}
        for step in sorted(restarts)
    ]
    if name == "loss":
        bad = sorted({step for history in histories for step in history.bad_steps})
        marks += [
            {"step": first, "tone": "bad", "text": f"no number from step {first} to {last}"}
            for first, last in _stretches(bad)
        ][:_MOST_MARKS]
        saves = Counter(step for history in histories for step in history.saves)
        marks += [
            {"step": step, "tone": "save", "text": f"{count} ranks saved a checkpoint"}
            for step, count in sorted(saves.items())
        ][-_MOST_MARKS:]
    return marks


def _stretches(steps: Sequence[int]) -> List[Tuple[int, int]]:
    """[3, 4, 5, 9] -> [(3, 5), (9, 9)]."""
    found: List[Tuple[int, int]] = []
    for step in steps:
        if found and step == found[-1][1] + 1:
            found[-1] = (found[-1][0], step)
        else:
            found.append((step, step))
    return found


def _legend(series: Sequence[Mapping[str, Any]], marks: Sequence[Mapping[str, Any]]) -> List[Any]:
    keys: List[Dict[str, str]] = []
    if len(series) > 1:
        for one in series:
            keys.append({"mark": one["tone"], "text": f"{one['name']} · {one['run']}"})
    many = any(len(one["lines"]) > 1 for one in series)
    if many and len(series) == 1:
        keys.append({"mark": series[0]["tone"], "text": "median of the ranks"})
        keys.append({"mark": "", "text": "each rank"})
    if many:
        keys += [
            {"mark": f"box band-{one['tone']}", "text": "lowest to highest rank"}
            for one in series[:1]
        ]
    if len(series) == 1 and any(line["slow"] for line in series[0]["lines"]):
        keys.append({"mark": "slow", "text": "slow rank"})
    names = {"warn": "went on again", "bad": "loss is no number", "save": "checkpoint saved"}
    for tone, text in names.items():
        if any(mark["tone"] == tone for mark in marks):
            keys.append({"mark": f"mark {tone}", "text": text})
    return keys


def _lane(history: RankHistory, begin: float, end: float) -> List[List[Any]]:
    """The longest phases of a lane, in their order, in seconds since the launch."""
    phases = sorted(history.phases, key=lambda one: one.start - one.end)[:_MOST_PHASES]
    return [
        [
            phase.name if phase.name in _PHASES else "other",
            round(min(max(0.0, phase.start - begin), end), 1),
            round(min(max(0.0, phase.end - begin), end), 1),
        ]
        for phase in sorted(phases, key=lambda one: one.start)
    ]
