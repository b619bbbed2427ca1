"""What a report says of two runs side by side, as values for its template. Pure."""

from __future__ import annotations

import difflib
from typing import Any, Dict, List, Optional

from orchestrator.logs.text import printable
from orchestrator.planning.facts import VERSIONS
from orchestrator.report.charts import curve_charts
from orchestrator.report.gathering import Gathered, environment, planned_text, software
from orchestrator.report.story import TONES, figures, subtitle
from orchestrator.report.summary import summarise

_OWN = ("GLM2_RUN_ID", "GLM2_RUN_DIR", "GLM2_RANK_DIR", "GLM2_OUTPUT_DIR")
"""Variables that are different in every run."""
_MOST_LINES = 400


def comparison_values(a: Gathered, b: Gathered, now: float) -> Dict[str, Any]:
    """Everything that the page shows; ``now`` is in Unix seconds."""
    states = a.shot.state, b.shot.state
    rows: List[Dict[str, str]] = [
        _row("What", subtitle(a), subtitle(b)),
        {
            **_row("Status", states[0].status.value, states[1].status.value),
            "tone_a": TONES.get(states[0].status, ""),
            "tone_b": TONES.get(states[1].status, ""),
        },
    ]
    for one, other in zip(figures(a, summarise(a.shot, now)), figures(b, summarise(b.shot, now))):
        row = _row(one[0], ", ".join(filter(None, one[1:3])), ", ".join(filter(None, other[1:3])))
        rows.append({**row, "change": _change(one[3], other[3])})
    charts = curve_charts([(run.shot.state.run_id, run.histories, frozenset()) for run in (a, b)])
    return {
        "a": states[0].run_id,
        "b": states[1].run_id,
        "subtitle": "two runs side by side; B is measured against A",
        "rows": rows,
        "charts": charts,
        "differences": _differences(a, b),
        "job_diff": _job_diff(a, b),
        "data": {"charts": charts, "ranks": None, "lanes": None},
    }


def _row(label: str, a: str, b: str) -> Dict[str, str]:
    return {"label": label, "a": a, "b": b, "change": "", "tone_a": "", "tone_b": ""}


def _change(a: Optional[float], b: Optional[float]) -> str:
    if a is None or b is None:
        return ""
    if a == b:
        return "the same"
    return f"{b - a:+.4g}" + (f" ({(b - a) / abs(a):+.1%})" if a else "")


def _differences(a: Gathered, b: Gathered) -> List[Dict[str, str]]:
    one, other = _settings(a), _settings(b)
    names = [*one, *(name for name in other if name not in one)]
    return [
        {
            "name": printable(name),
            "a": printable(one.get(name, "–")),
            "b": printable(other.get(name, "–")),
        }
        for name in names
        if one.get(name) != other.get(name)
    ]


def _settings(run: Gathered) -> Dict[str, str]:
    plan = run.plan
    if plan is None:
        return {}
    common, differing = environment(plan)
    rank = next(
        (one for host in plan.hosts for one in host.processes if one.rank is not None), None
    )
    own = plan.hosts[0].run_dir if plan.hosts else ""
    words = [] if rank is None else [word.replace(own, "<run>") for word in rank.argv]
    return {
        "mode": plan.mode,
        "recipe": plan.recipe,
        "ranks": str(plan.world_size),
        "hosts": ", ".join(host.host for host in plan.hosts),
        **{name: _versions(run, name) for name in VERSIONS},
        "interpreter": ", ".join(sorted({host.python for host in plan.hosts})),
        "command": " ".join(words),
        **{
            name: text.replace(own, "<run>") if own else text
            for name, text in {**common, **differing}.items()
            if name not in _OWN
        },
    }


def _versions(run: Gathered, name: str) -> str:
    return ", ".join(sorted({versions.get(name, "–") for _, versions in software(run)}))


def _job_diff(a: Gathered, b: Gathered) -> List[Dict[str, str]]:
    one, other = (
        ((planned_text(run.plan, "job.yaml") if run.plan is not None else None) or "").splitlines()
        for run in (a, b)
    )
    kinds = {"-": "del", "+": "ins"}
    lines = list(difflib.unified_diff(one, other, "A", "B", lineterm="", n=2))[:_MOST_LINES]
    return [{"kind": kinds.get(line[:1], ""), "text": printable(line)} for line in lines]
