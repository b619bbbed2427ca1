"""A run in a few figures, and its decisions as sentences. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any, Mapping, Optional, Tuple

from orchestrator.logs.text import printable
from orchestrator.report.hosts import medians, whole
from orchestrator.report.reading import Snapshot
from orchestrator.runs.state import RunState, RunStatus
from orchestrator.watching import training
from orchestrator.watching.progress import number
from orchestrator.watching.reducer import Decide


@dataclass(frozen=True)
class Summary:
    """Where the run is as a whole: it is as far as the last of its ranks.

    ``losses`` and ``speeds`` (tokens/s/p) are medians over the ranks, step by step. ``left_s`` is
    what the remaining steps take at the present pace; ``reported_s`` the age of the last news.
    """

    state: RunState
    age_s: Optional[float]
    step: Optional[int]
    steps: Optional[int]
    loss: Optional[float]
    losses: Tuple[float, ...]
    speed: Optional[float]
    speeds: Tuple[float, ...]
    speed_in_all: float
    left_s: Optional[float]
    reported_s: Optional[float]


def summarise(shot: Snapshot, now: float) -> Summary:
    """The figures of a run; ``now`` is in Unix seconds."""
    state, tracks = shot.state, list(shot.tracks.values())
    steps = [step for rank in state.ranks if (step := whole(rank.step)) is not None]
    step = min(steps, default=None)
    goals = [goal for rank in state.ranks if (goal := whole(rank.steps)) is not None]
    goal = max(goals, default=None)
    losses = [loss for rank in state.ranks if (loss := number(rank.loss)) is not None]
    speeds = [v for rank in state.ranks if (v := number(rank.tokens_per_s_per_p)) is not None]
    times = [v for rank in state.ranks if (v := number(rank.step_time_s)) is not None]
    left = None
    if step is not None and goal is not None and times and not state.status.is_terminal:
        left = max(0, goal - step) * median(times)
    news = [track.reported for track in tracks if track.reported is not None]
    created = state.created
    return Summary(
        state=state,
        age_s=None if created is None else max(0.0, (state.ended or now) - created),
        step=step,
        steps=goal,
        loss=median(losses) if losses else None,
        losses=medians([tuple(v for v in track.losses if v is not None) for track in tracks]),
        speed=median(speeds) if speeds else None,
        speeds=medians([track.speeds for track in tracks]),
        speed_in_all=sum(speeds),
        left_s=left if state.status is RunStatus.RUNNING else None,
        reported_s=max(0.0, now - max(news)) if news else None,
    )


def sentence(event: Mapping[str, Any]) -> str:
    """A decision of the journal for people; nothing in it can drive a terminal."""
    rule, evidence = str(event.get("rule")), event.get("evidence") or {}
    try:
        if rule in ("straggler", "loss-nan", "scale-collapse", "hang"):
            return printable(training.sentence(Decide(rule, evidence)))
    except KeyError:
        pass  # Written by another version: the rule alone has to do.
    who = evidence.get("host")
    return printable(f"{rule} {who}" if who else rule)
