"""What is scheduled, and the record of it: one folder a schedule.

``$GLM2_ORCH_HOME/schedules/<name>/`` (0700)::

    schedule.json   what is run, when, where, and how the machine was told (0600)
    journal.jsonl   added, started, ended, skipped
    lock            held while a run of it goes on
    logs/<time>.log output of each run, the last 30
    daemon.log      what the starter itself said
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Dict, List, Tuple

from orchestrator.errors import HostNotReady, Location, SpecError, UsageError
from orchestrator.problems import nearest, shown
from orchestrator.runs.journal import Journal

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}", re.ASCII)


@dataclass(frozen=True)
class Schedule:
    """One command of glm2-orch that is run at set times."""

    name: str
    cron: str
    arguments: Tuple[str, ...]
    """Words after ``glm2-orch``, e.g. ``launch -i cluster.yaml finetune``."""
    folder: str
    """Where it runs: relative paths among the arguments start here."""
    python: str
    """Absolute path of the interpreter."""
    home: str
    """``$GLM2_ORCH_HOME``, absolute."""
    starter: str
    """``cron``, ``systemd-user`` or ``systemd-system``."""
    created: float
    """Seconds since 1970."""
    environment: Dict[str, str] = field(default_factory=dict)
    """Variables that it runs with, over those that its starter gives."""

    @property
    def command(self) -> Tuple[str, ...]:
        """What the machine is told to start."""
        home = f"GLM2_ORCH_HOME={self.home}"
        main = (self.python, "-m", "orchestrator.cli.main")
        return ("/usr/bin/env", home, *main, "schedule", "run", self.name)


@dataclass(frozen=True)
class SchedulePaths:
    """The files of one schedule."""

    dir: Path

    @property
    def file(self) -> Path:
        return self.dir / "schedule.json"

    @property
    def journal(self) -> Path:
        return self.dir / "journal.jsonl"

    @property
    def lock(self) -> Path:
        return self.dir / "lock"

    @property
    def logs(self) -> Path:
        return self.dir / "logs"

    @property
    def daemon_log(self) -> Path:
        return self.dir / "daemon.log"


class ScheduleStore:
    """All schedules below one home folder."""

    def __init__(self, home: Path) -> None:
        self.root = home / "schedules"

    def paths(self, name: str) -> SchedulePaths:
        return SchedulePaths(self.root / name)

    def names(self) -> List[str]:
        """Names of all schedules, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(entry.name for entry in self.root.iterdir() if _NAME.fullmatch(entry.name))

    def create(self, schedule: Schedule) -> SchedulePaths:
        """Keep a new schedule. Raises UsageError when its name is taken, HostNotReady when the
        state folder cannot be written."""
        paths = self.paths(schedule.name)
        try:
            for folder in (self.root.parent, self.root):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            paths.dir.mkdir(mode=0o700)
            paths.logs.mkdir(mode=0o700)
            text = json.dumps({"schema": 1, **asdict(schedule)}, indent=1, ensure_ascii=False)
            fd = os.open(paths.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8", errors="surrogateescape") as stream:
                stream.write(text + "\n")
        except FileExistsError:
            raise UsageError(
                f"there is a schedule {schedule.name} already",
                hint=f"remove it first: glm2-orch schedule remove {schedule.name}",
            ) from None
        except OSError as error:
            raise HostNotReady(
                f"cannot keep a schedule in {self.root}: {error.strerror}",
                hint="set GLM2_ORCH_HOME to a folder that you can write",
            ) from error
        Journal(paths.journal).append("added", cron=schedule.cron)
        return paths

    def get(self, name: str) -> Schedule:
        """The schedule ``name``. Raises UsageError when there is none, SpecError when its file is
        damaged."""
        known = self.names()
        if name not in known:
            hint = nearest(name, known) or 'add one: glm2-orch schedule add NAME --cron "0 2 * * *"'
            raise UsageError(f"there is no schedule {shown(name)}", hint=hint)
        file = self.paths(name).file
        try:
            fields = json.loads(file.read_text("utf-8", "surrogateescape"))
            if fields.pop("schema") != 1 or fields["name"] != name:
                raise ValueError("it is of another schema or name")
            fields["arguments"] = tuple(fields["arguments"])
            return Schedule(**fields)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SpecError(
                f"schedule {name} cannot be read ({error})",
                hint=f"remove and add it again: glm2-orch schedule remove {name}",
                location=Location(str(file)),
            ) from error

    def remove(self, name: str) -> None:
        """Remove the schedule's folder: its record and the logs of its runs."""
        shutil.rmtree(self.paths(name).dir)
        if not any(self.root.iterdir()):
            self.root.rmdir()


def check_name(name: str) -> None:
    """Raise UsageError unless ``name`` can name a folder, a unit and the runs of a schedule."""
    if _NAME.fullmatch(name) is None or name == "latest":
        raise UsageError(
            f"{shown(name)} cannot name a schedule",
            hint="use up to 40 letters, digits, `_` and `-`, starting with a letter or digit",
        )
