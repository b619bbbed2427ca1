"""A plan: everything that a launch will do, as data; and its file, ``plan.json``.

The plan that is printed, compared and kept is the plan that is executed: ``plan_from_json`` gives
back what ``Plan.to_json`` wrote, and refuses a file whose digest does not fit.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Tuple, Union

from orchestrator.errors import Location, PlanError
from orchestrator.watch_options import check

SCHEMA = 1


@dataclass(frozen=True)
class PlannedFile:
    """One text file in the run folder of a host: path relative to that folder, text, mode."""

    path: str
    text: str
    mode: int = 0o600


@dataclass(frozen=True)
class PlannedProcess:
    """One process of a host: a rank, or a service such as MindSpore's scheduler (``rank`` None)."""

    name: str
    rank: Optional[int]
    device_id: Optional[int]
    argv: Tuple[str, ...]
    """Command of the worker itself, which ``launch.sh`` ends in."""
    env: Tuple[Tuple[str, str], ...]
    """Names and values of all variables, sorted by name."""


@dataclass(frozen=True)
class HostPlan:
    """What one host receives and runs."""

    host: str
    server_id: str
    run_dir: str
    """Absolute folder of the run on the host: ``<workdir>/runs/<run id>``."""
    python: str
    processes: Tuple[PlannedProcess, ...]
    files: Tuple[PlannedFile, ...]


@dataclass(frozen=True)
class Plan:
    """The whole launch. Pure data: the same inputs give the same bytes."""

    run_id: str
    cluster: str
    mode: str
    recipe: str
    world_size: int
    hosts: Tuple[HostPlan, ...]
    """In the order of their ranks."""
    grace_s: float
    heartbeat_s: float
    ships_worker: bool
    """Whether the hosts need the ``glm2`` package in ``<run dir>/code``."""
    watch: Tuple[Tuple[str, Union[float, str]], ...] = ()
    """What the job says about being watched (``watch_options``), sorted by key."""
    rank_table: Optional[str] = None
    """Text of the merged rank table (recipe ascend_ranktable)."""
    notes: Tuple[str, ...] = ()
    """What a person should know before it starts: who stands in for whom, odd layouts."""

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the plan's content, in hexadecimal."""
        body = json.dumps(self._body, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(body.encode()).hexdigest()

    def to_json(self) -> str:
        """The bytes of ``plan.json``. Each text that several hosts receive is in it once."""
        content = {"schema": SCHEMA, "digest": self.digest, **self._body}
        return json.dumps(content, sort_keys=True, indent=1) + "\n"

    @functools.cached_property
    def _body(self) -> Dict[str, object]:
        texts: Dict[str, str] = {}

        def keep(text: str) -> str:
            name = hashlib.sha256(text.encode()).hexdigest()
            texts[name] = text
            return name

        return {
            "run_id": self.run_id,
            "cluster": self.cluster,
            "mode": self.mode,
            "recipe": self.recipe,
            "world_size": self.world_size,
            "grace_s": self.grace_s,
            "heartbeat_s": self.heartbeat_s,
            "watch": dict(self.watch),
            "ships_worker": self.ships_worker,
            "notes": list(self.notes),
            "rank_table": None if self.rank_table is None else keep(self.rank_table),
            "hosts": [
                {
                    "host": host.host,
                    "server_id": host.server_id,
                    "run_dir": host.run_dir,
                    "python": host.python,
                    "processes": [_process_body(process) for process in host.processes],
                    "files": [
                        {"path": f.path, "mode": f"{f.mode:04o}", "sha256": keep(f.text)}
                        for f in host.files
                    ],
                }
                for host in self.hosts
            ],
            "texts": texts,
        }


def plan_from_json(text: str, *, source: str = "plan.json") -> Plan:
    """The plan that ``Plan.to_json`` wrote. Raises PlanError when it is not one, was changed, or
    holds a path that leaves the run folder."""
    try:
        top = json.loads(text)
    except ValueError as error:
        raise _wrong(source, f"is not JSON ({error})") from error
    if not isinstance(top, dict) or top.get("schema") != SCHEMA:
        raise _wrong(source, f"is not a plan of schema {SCHEMA}")
    try:
        plan = _plan(top)
        digest = plan.digest
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _wrong(source, f"is not a whole plan ({error!r})") from error
    if digest != top.get("digest"):
        raise _wrong(source, "was changed after it was written: its digest does not fit")
    return plan


def _process_body(process: PlannedProcess) -> Dict[str, object]:
    return {
        "name": process.name,
        "rank": process.rank,
        "device_id": process.device_id,
        "argv": list(process.argv),
        "env": dict(process.env),
    }


def _plan(top: Mapping[str, Any]) -> Plan:
    texts = top["texts"]
    table = top["rank_table"]
    return Plan(
        run_id=_name(top["run_id"]),
        cluster=_text(top["cluster"]),
        mode=_text(top["mode"]),
        recipe=_text(top["recipe"]),
        world_size=_count(top["world_size"]),
        hosts=tuple(_host(host, texts) for host in top["hosts"]),
        grace_s=float(top["grace_s"]),
        heartbeat_s=float(top["heartbeat_s"]),
        watch=tuple(sorted((key, check(key, v)) for key, v in top["watch"].items())),
        ships_worker=bool(top["ships_worker"]),
        rank_table=None if table is None else _text(texts[table]),
        notes=tuple(_text(note) for note in top["notes"]),
    )


def _host(host: Mapping[str, Any], texts: Mapping[str, Any]) -> HostPlan:
    run_dir = _text(host["run_dir"])
    if not run_dir.startswith("/") or ".." in run_dir.split("/"):
        raise ValueError(f"run folder {run_dir} is not a plain absolute path")
    return HostPlan(
        host=_name(host["host"]),
        server_id=_text(host["server_id"]),
        run_dir=run_dir,
        python=_text(host["python"]),
        processes=tuple(_process(process) for process in host["processes"]),
        files=tuple(
            PlannedFile(_inside(f["path"]), _text(texts[f["sha256"]]), int(f["mode"], 8) & 0o777)
            for f in host["files"]
        ),
    )


def _process(process: Mapping[str, Any]) -> PlannedProcess:
    return PlannedProcess(
        name=_name(process["name"]),
        rank=None if process["rank"] is None else _count(process["rank"]),
        device_id=None if process["device_id"] is None else _count(process["device_id"]),
        argv=tuple(_text(word) for word in process["argv"]),
        env=tuple(sorted((_text(name), _text(v)) for name, v in process["env"].items())),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"{value!r} is not a number from 0 up")
    return value


def _name(value: object) -> str:
    """A name that becomes a file or folder."""
    name = _text(value)
    if not name or "/" in name or name.startswith(".") or not name.isprintable():
        raise ValueError(f"{name!r} cannot name a folder")
    return name


def _inside(value: object) -> str:
    path = _text(value)
    if (
        path.startswith("/")
        or not path.isprintable()
        or not set(path.split("/")).isdisjoint({"", ".", ".."})
    ):
        raise ValueError(f"path {path!r} leaves the run folder")
    return path


def _wrong(source: str, what: str) -> PlanError:
    return PlanError(f"{source} {what}", hint="make the plan anew", location=Location(source))
