"""What a report says of one run, as values for ``templates/report.html.j2``. Pure."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from statistics import median
from typing import Any, Dict, FrozenSet, List, Optional, Tuple

from orchestrator.inventory.patterns import fold
from orchestrator.logs.ranks import format_ranks
from orchestrator.logs.text import printable
from orchestrator.planning.facts import VERSIONS
from orchestrator.report.charts import curve_charts, lane_chart, rank_chart
from orchestrator.report.curves import RankHistory, typical
from orchestrator.report.gathering import Gathered, environment, planned_text, software
from orchestrator.report.hosts import whole
from orchestrator.report.summary import Summary, summarise
from orchestrator.report.timeline import Moment, timeline
from orchestrator.report.words import duration, quantity, size
from orchestrator.runs.state import ProcessState, ProcessStatus, RunStatus
from orchestrator.watching.reducer import describe_exit

Values = Dict[str, Any]

TONES = {
    RunStatus.SUCCEEDED: "good",
    RunStatus.FAILED: "bad",
    RunStatus.CANCELLED: "warn",
    RunStatus.STOPPING: "warn",
}
_SIGNS = {"plain": "·", "good": "✓", "warn": "!", "bad": "✗"}
_MOST_TEXT = 40_000
_SOFTWARE = {"cann": "CANN", "mindspore": "MindSpore", "python": "Python"}


def report_values(run: Gathered, now: float) -> Values:
    """Everything that the page shows; ``now`` is in Unix seconds."""
    state, shot = run.shot.state, run.shot
    summary = summarise(shot, now)
    slow = frozenset(rank for one in shot.stragglers for rank in one.ranks)
    hosts = {rank.rank or 0: rank.host for rank in state.ranks}
    moments, left_out = timeline(shot.events, run.node_events, run.ahead)
    troubled = frozenset(
        rank.host
        for rank in state.ranks
        if rank.rank in slow or rank.status is ProcessStatus.FAILED
    )
    lanes, lanes_note, phases = lane_chart(state, run.histories, run.ahead, moments, troubled, now)
    charts = curve_charts([(state.run_id, run.histories, slow)])
    ranks = rank_chart(run.histories, hosts, slow)
    common, differing = environment(run.plan) if run.plan is not None else ({}, {})
    return {
        "run_id": state.run_id,
        "status": state.status.value,
        "tone": TONES.get(state.status, "plain"),
        "subtitle": subtitle(run),
        "cause": _cause(run),
        "tiles": _tiles(run, summary),
        "notes": _notes(run),
        "charts": charts,
        "has_ranks": ranks is not None,
        "lanes_note": lanes_note,
        "phases": phases,
        "moments": _moments(moments, left_out, state.created),
        "hosts": _hosts(run, slow),
        "software": _software(run),
        "plan": _plan(run),
        "job": _job(run),
        "environment": [(printable(name), printable(text)) for name, text in common.items()],
        "differing": [(printable(name), printable(text)) for name, text in differing.items()],
        "saves": _saves(run.histories),
        "collected": [
            {"step": one.step, "files": one.files, "size": size(one.nbytes)}
            for one in run.collected
        ],
        "data": {"charts": charts, "ranks": ranks, "lanes": lanes},
    }


def subtitle(run: Gathered) -> str:
    """``finetune on cluster12, 96 ranks on 12 hosts, launched …``."""
    state = run.shot.state
    ranks, hosts = len(state.ranks), len(state.hosts)
    text = f"{state.mode} on {state.cluster}, "
    text += f"{ranks} rank{'s' * (ranks != 1)} on {hosts} host{'s' * (hosts != 1)}"
    if state.created is not None:
        launched = datetime.fromtimestamp(state.created).astimezone()
        text += f", launched {launched:%Y-%m-%d %H:%M:%S %z}"
    return printable(text)


def figures(run: Gathered, summary: Summary) -> List[Tuple[str, str, str, Optional[float]]]:
    """The figures of a run: name, value and remark for people, and the bare number."""
    histories = run.histories
    step = "–" if summary.step is None else f"{summary.step:,}"
    goal = f"of {summary.steps:,}" if summary.steps else ""
    losses = [
        (value, at)
        for history in histories
        for value, at in zip(history.columns.get("loss", ()), history.steps)
        if value is not None
    ]
    lowest = min(losses, default=None)
    lowest_text = "" if lowest is None else f"lowest {lowest[0]:.4f} at step {lowest[1]:,}"
    loss_text = "–" if summary.loss is None else f"{summary.loss:.4f}"
    if any(one.bad_steps and one.bad_steps[-1] == one.steps[-1] for one in histories if one.steps):
        loss_text = "no number"
    speeds = [speed for one in histories if (speed := typical(one, "speed")) is not None]
    times = [time for one in histories if (time := typical(one, "time")) is not None]
    speed, time = _median(speeds), _median(times)
    tokens = "–" if speed is None else quantity(speed)
    in_all = "" if speed is None else f"{quantity(sum(speeds))} tokens/s in all"
    step_time = "–" if time is None else f"{time:.3g} s"
    slowest = f"slowest rank {max(times):.3g} s" if len(times) > 1 else ""
    taken = "–" if summary.age_s is None else duration(summary.age_s)
    left = "" if summary.left_s is None else f"{duration(summary.left_s)} left"
    succeeded = sum(rank.status is ProcessStatus.SUCCEEDED for rank in run.shot.state.ranks)
    ranks = len(run.shot.state.ranks)
    return [
        ("Steps", step, goal, summary.step),
        ("Loss", loss_text, lowest_text, summary.loss),
        ("Tokens/s/p", tokens, in_all, speed),
        ("Time of a step", step_time, slowest, time),
        ("Duration", taken, left, summary.age_s),
        ("Ranks", f"{succeeded} of {ranks}", "succeeded", succeeded),
    ]


def _tiles(run: Gathered, summary: Summary) -> List[Values]:
    tiles = [
        {"label": label, "value": value, "note": note}
        for label, value, note, _ in figures(run, summary)
    ]
    results = next((history.result for history in run.histories if history.result), {})
    for name, value in list((results or {}).items())[:6]:
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        tiles.append({"label": printable(str(name)), "value": printable(shown[:40]), "note": ""})
    return tiles


def _cause(run: Gathered) -> Optional[Values]:
    """What the logs tell; where they tell nothing, what the journal does."""
    cause = run.cause
    if cause is None or not cause.get("found"):
        told = (run.shot.state.cause or {}).get("sentence")
        if not told:
            return None
        return {"headline": printable(str(told)), "fields": [], "line": "", "evidence": []}
    fields = [
        ("when", cause.get("time")),
        ("because", cause.get("reason")),
        ("place", cause.get("place")),
        ("usual cause", cause.get("usual_cause")),
        ("what to do", cause.get("remedy")),
        ("source", cause.get("source")),
        *(("note", note) for note in cause.get("notes") or ()),
    ]
    evidence = [
        {
            "processes": printable(str(one.get("processes"))),
            "time": printable(str(one.get("time") or "")),
            "line": printable(str(one.get("line")))[:500],
            "count": one.get("count"),
        }
        for one in cause.get("evidence") or ()
    ]
    return {
        "headline": printable(str(cause.get("headline"))),
        "fields": [(name, printable(str(text))) for name, text in fields if text],
        "line": printable(str(cause.get("line") or ""))[:2000],
        "evidence": evidence,
    }


def _notes(run: Gathered) -> List[Values]:
    notes: List[Tuple[str, str]] = []
    state = run.shot.state
    for one in run.shot.stragglers:
        ranks = "" if one.kind == "rank" else f" (ranks {format_ranks(one.ranks)})"
        text = f"{one.kind} {one.name}{ranks} is slow: {one.ratio:.2f} times the usual step"
        notes.append(("warn", text))
    bad = sorted({step for history in run.histories for step in history.bad_steps})
    if bad:
        text = f"the loss was no number at {len(bad)} steps, first at step {bad[0]:,}"
        notes.append(("bad", text))
    overflows = {step for history in run.histories for step in history.overflows}
    if overflows:
        text = f"{len(overflows)} steps overflowed and were skipped (normal now and then)"
        notes.append(("plain", text))
    stride = max((history.stride for history in run.histories), default=1)
    if stride > 1:
        text = f"the metrics are long: of each rank about every {stride}th step was read"
        notes.append(("plain", text))
    if state.unwatched:
        notes.append(("warn", "nobody watches this run: what is shown may be old"))
    if state.left:
        hosts = ", ".join(str(one.get("host")) for one in state.left[:5])
        more = f" and {len(state.left) - 5} more" if len(state.left) > 5 else ""
        notes.append(("bad", f"not proved clean at the end: {hosts}{more}"))
    if run.plan_problem:
        notes.append(("warn", run.plan_problem))
    notes += [("plain", note) for note in (run.plan.notes if run.plan is not None else ())]
    return [{"tone": tone, "text": printable(text)} for tone, text in notes]


def _moments(moments: List[Moment], left_out: int, created: Optional[float]) -> List[Values]:
    rows: List[Values] = []
    for moment in moments:
        since = moment.wall - (created or moment.wall)
        rows.append({
            "gap": "", "at": _since(since), "tone": moment.tone, "sign": _SIGNS[moment.tone],
            "text": moment.text, "where": _where(moment),
        })  # fmt: skip
    if left_out:
        rows.insert(len(rows) // 2, {"gap": f"… {left_out} more …"})
    return rows


def _since(seconds: float) -> str:
    sign, seconds = ("-", -seconds) if seconds < 0 else ("+", seconds)
    whole = int(seconds)
    if whole < 60:
        return f"{sign}{seconds:.1f} s"
    if whole < 3600:
        return f"{sign}{whole // 60}:{whole % 60:02d}"
    return f"{sign}{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def _where(moment: Moment) -> str:
    hosts = moment.hosts
    text = ", ".join(hosts) if len(hosts) <= 3 else f"{len(hosts)} hosts"
    later = moment.until - moment.wall
    if len(hosts) > 1 and later >= 1.0:
        text += f", the last {duration(later)} later"
    return text


def _hosts(run: Gathered, slow: FrozenSet[int]) -> List[Values]:
    state = run.shot.state
    by_rank = {history.rank: history for history in run.histories}
    usual = _median(
        [speed for one in run.histories if (speed := typical(one, "speed")) is not None]
    )
    rows: List[Values] = []
    for host in state.hosts:
        ranks = [rank for rank in state.ranks if rank.host == host.name]
        own = [by_rank[rank.rank or 0] for rank in ranks]
        speed = _median([one for h in own if (one := typical(h, "speed")) is not None])
        losses = [h.columns["loss"][-1] for h in own if h.columns.get("loss")]
        loss = _median([value for value in losses if value is not None])
        steps = [step for rank in ranks if (step := whole(rank.step)) is not None]
        share = speed / usual if speed is not None and usual else None
        ended, tone = _ended(ranks)
        rows.append({
            "name": printable(host.name),
            "ranks": format_ranks(rank.rank or 0 for rank in ranks),
            "ended": ended,
            "tone": tone,
            "step": f"{min(steps):,}" if steps else "–",
            "loss": "–" if loss is None else f"{loss:.4f}",
            "speed": "–" if speed is None else quantity(speed),
            "share": None if share is None else round(share, 3),
            "percent": "" if share is None else f"{share:.0%}",
        })  # fmt: skip
    return rows


def _ended(ranks: List[ProcessState]) -> Tuple[str, str]:
    counts = Counter(rank.status for rank in ranks)
    text = ", ".join(f"{count} {status.value}" for status, count in counts.items())
    failed = next((rank for rank in ranks if rank.status is ProcessStatus.FAILED), None)
    if failed is not None:
        return f"{text} ({describe_exit(failed.exit_code)})", "bad"
    good = set(counts) <= {ProcessStatus.SUCCEEDED}
    return text, "good" if good else "plain"


def _software(run: Gathered) -> Values:
    """Which software is known at all, and a row of how many hosts, which, and what they have."""
    groups = software(run)
    names = [name for name in VERSIONS if any(name in versions for _, versions in groups)]
    rows = []
    for hosts, versions in groups:
        count = f"{len(hosts)} host{'s' * (len(hosts) != 1)}"
        texts = [printable(versions.get(name, "–")) for name in names]
        rows.append((count, printable(", ".join(fold(hosts))), texts))
    return {"names": [_SOFTWARE.get(name, name) for name in names], "rows": rows}


def _plan(run: Gathered) -> List[Tuple[str, str]]:
    plan = run.plan
    if plan is None:
        return []
    folders = sorted({host.run_dir for host in plan.hosts})
    pythons = sorted({host.python for host in plan.hosts})
    rank = next(
        (one for host in plan.hosts for one in host.processes if one.rank is not None), None
    )
    rows = [
        ("mode", plan.mode),
        ("cluster", plan.cluster),
        ("recipe", plan.recipe),
        ("ranks", f"{plan.world_size} on {len(plan.hosts)} host{'s' * (len(plan.hosts) != 1)}"),
        ("folder", ", ".join(folders[:3]) + (" …" if len(folders) > 3 else "")),
        ("python", ", ".join(pythons[:3]) + (" …" if len(pythons) > 3 else "")),
        ("command", " ".join(rank.argv) if rank is not None else "–"),
        ("digest", plan.digest),
    ]
    return [(name, printable(text)) for name, text in rows]


def _job(run: Gathered) -> str:
    text = planned_text(run.plan, "job.yaml") if run.plan is not None else None
    return "\n".join(map(printable, (text or "")[:_MOST_TEXT].splitlines()))


def _saves(histories: Tuple[RankHistory, ...]) -> str:
    steps = Counter(step for history in histories for step in history.saves)
    if not steps:
        return ""
    saving = sum(bool(history.saves) for history in histories)
    last = max(steps)
    if len(steps) == 1:
        return f"saved once by {saving} ranks, after step {last:,}"
    return f"saved {len(steps)} times by {saving} ranks, the last time after step {last:,}"


def _median(values: List[float]) -> Optional[float]:
    return median(values) if values else None
