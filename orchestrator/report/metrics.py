"""A run as Prometheus metrics, in the text exposition format 0.0.4. Pure.

``CATALOGUE`` is the whole set; ``docs/metrics.md`` and the Grafana dashboard are tested against
it. What is not known has no sample: unknown is not zero.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional, Tuple

from orchestrator.logs.text import printable
from orchestrator.report.reading import Snapshot
from orchestrator.report.summary import summarise
from orchestrator.runs.state import ProcessState, ProcessStatus, RunStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Metric:
    """One metric: ``kind`` is gauge or counter; every sample has all ``labels``."""

    name: str
    kind: str
    help: str
    labels: Tuple[str, ...]


_RUN = ("run",)
_HOST = ("run", "host")
_RANK = ("run", "host", "rank")

CATALOGUE: Tuple[Metric, ...] = (
    Metric("glm2_run_info", "gauge", "1; what the run is", ("run", "cluster", "mode", "recipe")),
    Metric("glm2_run_status", "gauge", "1 for the status it has, else 0", ("run", "status")),
    Metric("glm2_run_watched", "gauge", "1 while a controller watches the run", _RUN),
    Metric("glm2_run_created_timestamp_seconds", "gauge", "When it was launched", _RUN),
    Metric("glm2_run_ended_timestamp_seconds", "gauge", "When it ended", _RUN),
    Metric("glm2_run_exit_status", "gauge", "Exit status of its ending", _RUN),
    Metric("glm2_run_ranks", "gauge", "Ranks by their status", ("run", "status")),
    Metric("glm2_run_step", "gauge", "Step that all ranks have reached", _RUN),
    Metric("glm2_run_steps", "gauge", "Steps that it will take", _RUN),
    Metric("glm2_run_loss", "gauge", "Loss, median of the ranks", _RUN),
    Metric("glm2_run_tokens_per_second", "gauge", "Tokens a second of all ranks", _RUN),
    Metric("glm2_run_remaining_seconds", "gauge", "Time left at the present pace", _RUN),
    Metric("glm2_run_stragglers", "gauge", "Ranks whose steps are slow", _RUN),
    Metric("glm2_run_decisions_total", "counter", "Decisions of the watcher", ("run", "rule")),
    Metric("glm2_run_result", "gauge", "Result of an evaluation", ("run", "name")),
    Metric("glm2_host_heard_timestamp_seconds", "gauge", "When the host was last heard", _HOST),
    Metric("glm2_rank_up", "gauge", "1 while the rank runs", _RANK),
    Metric("glm2_rank_exit_code", "gauge", "Exit code, 128 + number for a signal", _RANK),
    Metric("glm2_rank_phase", "gauge", "1 for the phase that it is in", (*_RANK, "phase")),
    Metric("glm2_rank_step", "gauge", "Last step", _RANK),
    Metric("glm2_rank_epoch", "gauge", "Epoch", _RANK),
    Metric("glm2_rank_loss", "gauge", "Loss of the last step", _RANK),
    Metric("glm2_rank_learning_rate", "gauge", "Learning rate of the last step", _RANK),
    Metric("glm2_rank_loss_scale", "gauge", "Loss scale of the last step", _RANK),
    Metric("glm2_rank_overflow", "gauge", "1 when the last step overflowed", _RANK),
    Metric("glm2_rank_tokens_per_second", "gauge", "Tokens a second, last step", _RANK),
    Metric("glm2_rank_step_seconds", "gauge", "Duration of the last step", _RANK),
    Metric("glm2_rank_slow_ratio", "gauge", "Its steps over usual ones, where slow", _RANK),
    Metric("glm2_rank_reported_timestamp_seconds", "gauge", "Last line of metrics", _RANK),
)

_FIELDS = {
    "glm2_rank_step": "step",
    "glm2_rank_epoch": "epoch",
    "glm2_rank_loss": "loss",
    "glm2_rank_learning_rate": "lr",
    "glm2_rank_loss_scale": "loss_scale",
    "glm2_rank_overflow": "overflow",
    "glm2_rank_tokens_per_second": "tokens_per_s_per_p",
    "glm2_rank_step_seconds": "step_time_s",
    "glm2_rank_reported_timestamp_seconds": "wall",
}

Sample = Tuple[str, Tuple[str, ...], float]


def exposition(shot: Snapshot, now: float) -> str:
    """All samples of a run as Prometheus reads them. ``now`` is in Unix seconds."""
    by_name: Dict[str, List[Sample]] = {}
    for sample in samples(shot, now):
        by_name.setdefault(sample[0], []).append(sample)
    lines: List[str] = []
    for metric in CATALOGUE:
        if metric.name in by_name:
            lines.append(f"# HELP {metric.name} {metric.help}.")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            for _, values, value in by_name[metric.name]:
                pairs = ",".join(
                    f'{label}="{_escaped(text)}"' for label, text in zip(metric.labels, values)
                )
                lines.append(f"{metric.name}{{{pairs}}} {_number(value)}")
    return "\n".join(lines) + "\n"


def samples(shot: Snapshot, now: float) -> Iterator[Sample]:
    """(metric, values of its labels, value) for everything that is known."""
    yield from _run_samples(shot, now)
    run = shot.state.run_id
    for host in shot.state.hosts:
        if host.heard is not None:
            yield "glm2_host_heard_timestamp_seconds", (run, host.name), host.heard
    slow = {rank: one.ratio for one in shot.stragglers for rank in one.ranks}
    for rank in shot.state.ranks:
        yield from _rank_samples(shot, rank, slow)


def markdown() -> str:
    """The set as a table for the documentation."""
    rows = ["| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
    for metric in CATALOGUE:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(rows) + "\n"


def _run_samples(shot: Snapshot, now: float) -> Iterator[Sample]:
    state, summary = shot.state, summarise(shot, now)
    run = state.run_id
    yield "glm2_run_info", (run, state.cluster, state.mode, state.recipe), 1.0
    for status in RunStatus:
        yield "glm2_run_status", (run, status.value), float(status is state.status)
    ranks = Counter(rank.status for rank in state.ranks)
    for process_status in ProcessStatus:
        yield "glm2_run_ranks", (run, process_status.value), float(ranks[process_status])
    known: Tuple[Tuple[str, Optional[float]], ...] = (
        ("glm2_run_watched", float(state.controller is not None)),
        ("glm2_run_created_timestamp_seconds", state.created),
        ("glm2_run_ended_timestamp_seconds", state.ended),
        ("glm2_run_exit_status", state.exit_status),
        ("glm2_run_step", summary.step),
        ("glm2_run_steps", summary.steps),
        ("glm2_run_loss", summary.loss),
        ("glm2_run_tokens_per_second", None if summary.speed is None else summary.speed_in_all),
        ("glm2_run_remaining_seconds", summary.left_s),
        ("glm2_run_stragglers", float(sum(len(one.ranks) for one in shot.stragglers))),
    )
    for name, value in known:
        if value is not None:
            yield name, (run,), float(value)
    rules = Counter(
        str(event.get("rule")) for event in shot.events if event.get("event") == "decision"
    )
    for rule, count in sorted(rules.items()):
        yield "glm2_run_decisions_total", (run, rule), float(count)
    result = next((rank.result for rank in state.ranks if isinstance(rank.result, dict)), {})
    for key, value in result.items():
        figure = _figure(value)
        if figure is not None:
            yield "glm2_run_result", (run, str(key)), figure


def _rank_samples(shot: Snapshot, rank: ProcessState, slow: Dict[int, float]) -> Iterator[Sample]:
    number = rank.rank or 0
    labels = (shot.state.run_id, rank.host, str(number))
    yield "glm2_rank_up", labels, float(rank.status is ProcessStatus.RUNNING)
    if rank.exit_code is not None:
        yield "glm2_rank_exit_code", labels, float(rank.exit_code)
    if isinstance(rank.phase, str):
        yield "glm2_rank_phase", (*labels, rank.phase), 1.0
    track = shot.tracks.get(number)
    for name, field in _FIELDS.items():
        value = None if track is None else _figure(track.latest.get(field))
        if value is not None:
            yield name, labels, value
    if number in slow:
        yield "glm2_rank_slow_ratio", labels, slow[number]


def _figure(value: object) -> Optional[float]:
    """A number, true or false as a sample; NaN and infinity are samples too."""
    if not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:  # JSON has integers of any size
        return None


def _escaped(text: str) -> str:
    return printable(text).replace("\\", "\\\\").replace('"', '\\"')


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)
