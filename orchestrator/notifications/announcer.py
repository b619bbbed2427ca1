"""The seam between a run's journal and its receivers: each entry that is told starts a process
of its own that brings it, so that a slow or dead receiver delays nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from orchestrator.errors import Location, PlanError
from orchestrator.inventory import Notification, Secret
from orchestrator.notifications.message import what_it_is
from orchestrator.runs.journal import Journal
from orchestrator.runs.layout import RunPaths


class Announcer:
    """Called with every entry of a run's journal, after it was written."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self._children: List[subprocess.Popen[bytes]] = []

    def __call__(self, entry: Mapping[str, Any]) -> None:
        event = what_it_is(entry)
        if event is None:
            return
        # Those that have ended are let go.
        self._children = [child for child in self._children if child.poll() is None]
        try:
            receivers = load_receivers(notify_file(self._paths))
            if any(event in receiver.on for receiver in receivers):
                self._children.append(self._start(entry))
        except (OSError, PlanError) as error:  # whoever cannot be told, the job goes on
            Journal(self._paths.journal).append("notify-failed", of=event, problem=str(error))

    def _start(self, entry: Mapping[str, Any]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestrator.cli.main", "notify", "send", self._paths.run_id],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            env={**os.environ, "GLM2_ORCH_HOME": str(self._paths.dir.parent.parent)},
        )
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(json.dumps(entry, ensure_ascii=True, default=str).encode("ascii"))
        return process


def notify_file(paths: RunPaths) -> Path:
    """Who is told of a run: kept beside its plan, not in it."""
    return paths.dir / "notify.json"


def save_receivers(file: Path, receivers: Sequence[Notification]) -> None:
    """Keep the receivers of a run (0600); nothing is written where there are none."""
    if not receivers:
        return
    text = json.dumps({"schema": 1, "notify": [asdict(receiver) for receiver in receivers]})
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as stream:
        stream.write(text + "\n")


def load_receivers(file: Path) -> List[Notification]:
    """What ``save_receivers`` kept; none without a file. Raises PlanError when it is damaged."""
    try:
        return [_receiver(fields) for fields in json.loads(file.read_text("utf-8"))["notify"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(
            f"who is told of this run cannot be read: {error}",
            hint="remove the file: then nobody is told",
            location=Location(str(file)),
        ) from None


def _receiver(fields: Dict[str, Any]) -> Notification:
    secrets = {
        key: None if fields[key] is None else Secret(**fields[key]) for key in ("url", "secret")
    }
    lists = {key: tuple(fields[key]) for key in ("on", "command")}
    return Notification(**{**fields, **secrets, **lists})
