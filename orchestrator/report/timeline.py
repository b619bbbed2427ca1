"""What happened in a run, in the order of time, like things together. Pure.

Times of hosts are put on the controller's clock by the offset that their last sign of life shows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Tuple

from orchestrator.logs.text import printable
from orchestrator.report.summary import sentence
from orchestrator.runs.state import Event
from orchestrator.watching.reducer import describe_exit

_TOGETHER_S = 30.0
_MOST = 250
_MOST_TEXT = 300


@dataclass(frozen=True)
class Moment:
    """Something that happened. ``tone`` is plain, good, warn or bad; ``hosts`` those that it
    happened on, empty for the controller; ``until`` when the last of them had it."""

    wall: float
    text: str
    tone: str = "plain"
    hosts: Tuple[str, ...] = ()
    until: float = 0.0


def timeline(
    controller: Iterable[Event],
    nodes: Mapping[str, Iterable[Event]],
    ahead: Mapping[str, float],
) -> Tuple[List[Moment], int]:
    """The moments of a run and how many were left out in the middle. ``ahead``: seconds by which
    the clock of a host is ahead of the controller's."""
    merged = _Merging()
    for event in controller:
        _controller_event(event, merged)
    for host, events in nodes.items():
        for event in events:
            _node_event(host, event, ahead.get(host, 0.0), merged)
    moments = sorted(merged.moments(), key=lambda moment: (moment.wall, moment.tone != "bad"))
    if len(moments) <= _MOST:
        return moments, 0
    half = _MOST // 2
    return [*moments[:half], *moments[-half:]], len(moments) - 2 * half


@dataclass
class _Group:
    wall: float
    until: float
    tone: str
    text: Callable[[int], str]
    count: int = 0
    hosts: Dict[str, None] = field(default_factory=dict)


class _Merging:
    """Puts like things that happened at about the same time into one group."""

    def __init__(self) -> None:
        self._groups: Dict[object, List[_Group]] = {}

    def add(
        self, key: object, wall: float, tone: str, text: Callable[[int], str], host: str = ""
    ) -> None:
        groups = self._groups.setdefault(key, [])
        for group in groups[-3:]:
            if group.wall - _TOGETHER_S <= wall <= group.until + _TOGETHER_S:
                group.wall, group.until = min(group.wall, wall), max(group.until, wall)
                break
        else:
            group = _Group(wall, wall, tone, text)
            groups.append(group)
        group.count += 1
        if host:
            group.hosts[host] = None

    def moments(self) -> Iterable[Moment]:
        for groups in self._groups.values():
            for group in groups:
                text = printable(group.text(group.count))[:_MOST_TEXT]
                hosts = tuple(map(printable, group.hosts))
                yield Moment(group.wall, text, group.tone, hosts, group.until)


_SENTENCES = {
    "start-spread": ("plain", "the hosts started within {spread_s} s"),
    "take-over": ("warn", "{owner} took the run over"),
    "resume": ("plain", "goes on from run {run_id}"),
    "replanned": ("warn", "planned anew: {notes}"),
    "swept": ("warn", "ended {swept} processes that run {run_id} had left"),
    "notified": ("plain", "told {to} of: {of}"),
    "notify-failed": ("warn", "could not tell {to}: {error}"),
    "no-certificate": ("bad", "not proven clean: {error}"),
    "stacks-failed": ("warn", "could not take stacks: {error}"),
}
"""Events of the controller by their fields."""


class _Fields(Dict[str, str]):
    """The fields of an event as text; one that is not there is a question mark."""

    def __init__(self, event: Event) -> None:
        super().__init__()
        for name, value in event.items():
            texts = value if isinstance(value, list) else [value]
            self[name] = "; ".join(map(str, texts))

    def __missing__(self, name: str) -> str:
        return "?"


def _controller_event(event: Event, into: _Merging) -> None:
    kind, wall = str(event.get("event")), _wall(event)
    host = str(event.get("host") or "")
    if wall is None or kind == "versions":  # a section of its own
        return
    if kind == "host":
        text = {"sent": "files sent", "armed": "supervisor armed", "started": "ranks started"}
        state = str(event.get("state"))
        said = text.get(state, state)
        into.add((kind, state), wall, "plain", _same(said), host)
    elif kind == "decision":
        stops = event.get("action") == "stop"
        said = ("stopping the run: " if stops else "") + sentence(event)
        into.add((kind, said), wall, "bad" if stops else "warn", _times(said))
    elif kind == "stopped":
        into.add(kind, wall, "plain", _same("ended by us"), host)
    elif kind in ("stop-failed", "undo-failed"):
        said = f"{kind.replace('-', ' ')}: {event.get('error')}"
        into.add((kind, said), wall, "bad", _same(said), host)
    elif kind == "launch":
        hosts = event.get("hosts") or ()
        said = f"launched: {event.get('mode')} on {event.get('cluster')}, "
        said += f"{event.get('world_size')} ranks on {len(hosts)} host{'s' * (len(hosts) != 1)}"
        into.add((kind, wall), wall, "plain", _same(said))
    elif kind == "running":
        into.add((kind, wall), wall, "good", _same("all ranks run"))
    elif kind == "end":
        outcome = str(event.get("outcome"))
        cause = (event.get("cause") or {}).get("sentence")
        tone = {"succeeded": "good", "failed": "bad"}.get(outcome, "warn")
        into.add((kind, wall), wall, tone, _same(f"{outcome}: {cause}" if cause else outcome))
    elif kind == "certificate":
        clean = bool(event.get("clean"))
        said = "nothing is left there" if clean else "something of the run is left there"
        into.add((kind, clean), wall, "good" if clean else "bad", _same(said), host)
    elif kind in _SENTENCES:
        tone, pattern = _SENTENCES[kind]
        said = pattern.format_map(_Fields(event))
        into.add((kind, said), wall, tone, _times(said), host)
    else:
        said = _other(event)
        into.add((kind, said), wall, "plain", _times(said), host)


def _node_event(host: str, event: Event, ahead: float, into: _Merging) -> None:
    kind, wall = str(event.get("event")), _wall(event)
    if wall is None:
        return
    wall -= ahead
    if kind == "process_started":
        into.add(kind, wall, "plain", lambda n: f"{n} process{'es' * (n > 1)} started", host)
    elif kind == "process_exited":
        code = event.get("code")
        if event.get("collateral"):
            into.add(
                (kind, "ours"), wall, "plain", lambda n: f"{n} processes ended, asked by us", host
            )
        elif code == 0:
            into.add((kind, 0), wall, "good", lambda n: f"{n} processes ended well", host)
        else:
            said = f"{event.get('name')} failed, {describe_exit(code)}"
            into.add((kind, host, said), wall, "bad", _same(said), host)
    elif kind == "stopping":
        said = f"stopping: {event.get('reason')}"
        into.add((kind, said), wall, "warn", _same(said), host)
    elif kind == "killed":
        signal = event.get("signal")
        into.add(
            (kind, signal), wall, "warn", lambda n: f"{signal} to {n} leftover process(es)", host
        )
    elif kind == "finished":
        outcome = str(event.get("outcome"))
        tone = {"succeeded": "good", "failed": "bad"}.get(outcome, "warn")
        into.add((kind, outcome), wall, tone, _same(f"host finished: {outcome}"), host)
    elif kind not in ("armed", "started"):
        said = _other(event)
        into.add((kind, said), wall, "plain", _times(said), host)


def _same(text: str) -> Callable[[int], str]:
    return lambda _count: text


def _times(text: str) -> Callable[[int], str]:
    return lambda count: text if count == 1 else f"{text} (x{count})"


def _other(event: Event) -> str:
    """An event that this version knows nothing of: its name and its plain values."""
    hidden = ("event", "wall", "mono", "seq", "host")
    values = [
        f"{name} {value}"
        for name, value in event.items()
        if name not in hidden and isinstance(value, (str, int, float))
    ]
    return ", ".join([str(event.get("event")), *values])


def _wall(event: Mapping[str, Any]) -> Optional[float]:
    wall = event.get("wall")
    return float(wall) if isinstance(wall, (int, float)) and not isinstance(wall, bool) else None
