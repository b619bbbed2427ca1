"""``status``: the state of a run on this host, from its journal, its heartbeat and /proc."""

from __future__ import annotations

from . import fence, journal, processes
from .failure import NodeError
from .folder import Json, RunFolder, read_json
from .spec import Spec, load

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Optional


def take(folder: RunFolder) -> Json:
    """The snapshot as the command ``status`` prints it. Asks nobody, so it works when the
    supervisor hangs or is gone."""
    try:
        spec: Optional[Spec] = load(folder.spec)
    except NodeError:
        spec = None
    alive = supervisor_identity(folder) is not None
    # Read after the look at the supervisor: if it ended in between, its last event is here.
    events = [event for _, event in journal.read(folder.journal)]
    found = reduce(spec, events, read_json(folder.heartbeat), alive, processes.is_alive)
    return dict(found, controller=fence.controller(folder))


def supervisor_identity(folder: RunFolder) -> Optional[processes.Process]:
    """The living supervisor of this folder, or None."""
    armed = [e for _, e in journal.read(folder.journal) if e["event"] == "armed"]
    # The lock names it earlier than the journal does, and still when the disk is full.
    identity = armed[-1] if armed else read_json(folder.lock)
    if not identity or identity.get("boot_id") != processes.boot_id():
        return None
    process = processes.read(int(identity["pid"]))
    if process is None or process.start_ticks != identity["start_ticks"] or not process.alive:
        return None
    return process


def reduce(
    spec: Optional[Spec],
    events: Iterable[Json],
    heartbeat: Optional[Json],
    supervisor_alive: bool,
    is_alive: Callable[[int, int], bool],
) -> Json:
    """Pure: events so far -> snapshot."""
    found: Json = {
        "schema": 1,
        "state": "absent",
        "supervisor_alive": supervisor_alive,
        "run_id": spec.run_id if spec else None,
        "outcome": None,
        "first_failure": None,
        "stopping": None,
        "heartbeat": heartbeat,
    }
    known = {p.name: _process(p.name, p.rank) for p in (spec.processes if spec is not None else ())}
    for event in events:
        kind = event["event"]
        if kind == "armed":
            found["state"] = "armed"
        elif kind == "started":
            found["state"] = "running"
        elif kind == "stopping":
            found["stopping"] = found["stopping"] or event["reason"]
        elif kind == "finished":
            found.update(
                state="finished",
                outcome=event["outcome"],
                first_failure=event["first_failure"],
            )
        elif kind in ("process_started", "process_exited"):
            entry = known.setdefault(event["name"], _process(event["name"], event["rank"]))
            entry.update({key: event[key] for key in entry if key in event})
            entry["state"] = "running" if kind == "process_started" else "exited"
    if heartbeat and heartbeat.get("outcome") and found["state"] in ("armed", "running"):
        # The disk was too full for the last event, but a heartbeat needs no new room.
        found.update(state="finished", outcome=heartbeat["outcome"])
    if found["state"] in ("armed", "running") and not supervisor_alive:
        found["state"] = "lost"
    for entry in known.values():
        if entry["state"] == "running" and not is_alive(entry["pid"], entry["start_ticks"]):
            entry["state"] = "gone"
    found["processes"] = list(known.values())
    return found


def _process(name: str, rank: Any) -> Json:
    return {
        "name": name,
        "rank": rank,
        "state": "waiting",
        "pid": None,
        "start_ticks": None,
        "code": None,
        "signal": None,
        "collateral": None,
    }
