"""What is told: an entry of a run's journal as a message. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional

from orchestrator.logs.text import printable

Event = Mapping[str, Any]
_LONGEST = 1500


@dataclass(frozen=True)
class Message:
    """One thing that is told of a run."""

    event: str
    """``start``, ``failure``, ``recovery`` or ``end``."""
    run_id: str
    cluster: str
    mode: str
    wall: float
    """When it happened, in seconds since 1970."""
    sentence: str
    outcome: Optional[str] = None
    exit_status: Optional[int] = None
    cause: Optional[str] = None

    @property
    def text(self) -> str:
        """The message for people, in a few short lines without control characters."""
        lines = [self.sentence]
        if self.cause:
            lines.append(f"cause: {self.cause}")
        if self.event == "failure":
            lines.append(f"next: glm2-orch diagnose {self.run_id}")
        return "\n".join(printable(line) for line in lines)[:_LONGEST]

    def record(self) -> Dict[str, Any]:
        """The message for programs."""
        return {"schema": 1, **vars(self), "text": self.text}


def what_it_is(entry: Event) -> Optional[str]:
    """The event of ``notify:`` that an entry of a run's journal is; None: nothing to tell."""
    kind = entry.get("event")
    if kind == "running":
        return "start"
    if kind == "end":
        return "failure" if entry.get("outcome") == "failed" else "end"
    if kind == "recovery" and entry.get("next"):
        return "recovery"
    if kind == "take-over" and not str(entry.get("owner", "")).startswith(HANDED_OVER):
        return "recovery"
    return None


HANDED_OVER = "background controller"
"""Begin of the owner where a command handed its run over on purpose: nothing had broken."""


def message_of(run_id: str, entry: Event, launch: Event) -> Optional[Message]:
    """The message that ``entry`` calls for; ``launch`` is the first entry of the same journal."""
    event = what_it_is(entry)
    if event is None:
        return None
    cluster, mode = str(launch.get("cluster", "?")), str(launch.get("mode", "?"))
    what = f"{mode} {run_id} on {cluster}"
    cause = (entry.get("cause") or {}).get("sentence")
    outcome, status = entry.get("outcome"), entry.get("exit_status")
    if event == "start":
        ranks, hosts = launch.get("world_size", "?"), len(launch.get("hosts", ()))
        sentence = f"{what} has started: {ranks} ranks on {hosts} hosts"
    elif event == "recovery":
        taken = f"its controller was gone, and {entry.get('owner')} watches it now"
        sentence = f"{what} goes on: {entry.get('sentence') or taken}"
        if entry.get("next"):
            sentence += f", as {entry['next']}"
    else:
        took = _duration(float(entry["wall"]) - float(launch.get("wall", entry["wall"])))
        ended = {"failed": "failed", "cancelled": "was stopped"}.get(str(outcome), str(outcome))
        sentence = f"{what} {ended} after {took}" + (f" (exit status {status})" if status else "")
    return Message(
        event, run_id, cluster, mode, float(entry["wall"]), sentence, outcome, status, cause
    )


def trial(cluster: str, wall: float) -> Message:
    """A message that only shows that messages arrive."""
    sentence = f"glm2-orch can reach you about {cluster}; nothing has happened"
    return Message("test", "test", cluster, "test", wall, sentence)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} m" if hours else f"{minutes} m {rest:02d} s"
