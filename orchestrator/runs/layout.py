"""Every path of a run on the controller, in one place.

``$GLM2_ORCH_HOME`` (default: the platform's state folder) holds ``runs/<run id>/``::

    plan.json           what is executed
    hosts.json          how the hosts are reached (connection settings of the inventory)
    journal.jsonl       intent: what the controller decided and did
    controller.lock     held by the process that watches the run; its epoch
    watch.jsonl         what the watcher saw, in its order, to replay its decisions
    controller.log      output of a background controller
    rank_table.json
    logs/rank_N.log     byte-exact copies of the raw logs on the hosts
    metrics/rank_N.jsonl
    stacks/rank_N.txt   where a rank stood when nobody got on
    hosts/<host>/journal.jsonl   byte-exact copy of the host's journal
    hosts/<host>/beat.json       when the host was last heard
    checkpoints/        what collect-ckpt fetched

The copies are always exact prefixes of the files on the hosts, so their length is the offset
from which a cut stream is resumed: nothing else has to be remembered.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import List, Mapping

from orchestrator.errors import HostNotReady, UsageError


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """Folder of all state: ``$GLM2_ORCH_HOME``, else the platform's state folder."""
    explicit = environ.get("GLM2_ORCH_HOME")
    if explicit:
        return Path(explicit).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_state_dir("glm2-orch"))


def new_run_id(mode: str, now: datetime, token: str) -> str:
    """A run id that sorts by time, e.g. ``finetune-20240131-020000-a1b2``."""
    return f"{mode}-{now:%Y%m%d-%H%M%S}-{token}"


@dataclass(frozen=True)
class RunPaths:
    """The files of one run."""

    dir: Path

    @property
    def run_id(self) -> str:
        return self.dir.name

    @property
    def plan(self) -> Path:
        return self.dir / "plan.json"

    @property
    def hosts_file(self) -> Path:
        return self.dir / "hosts.json"

    @property
    def journal(self) -> Path:
        return self.dir / "journal.jsonl"

    @property
    def lock(self) -> Path:
        return self.dir / "controller.lock"

    @property
    def watch(self) -> Path:
        return self.dir / "watch.jsonl"

    @property
    def controller_log(self) -> Path:
        return self.dir / "controller.log"

    @property
    def rank_table(self) -> Path:
        return self.dir / "rank_table.json"

    @property
    def checkpoints(self) -> Path:
        return self.dir / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.dir / "logs"

    def log(self, process: str) -> Path:
        return self.logs / f"{process}.log"

    def metrics(self, process: str) -> Path:
        return self.dir / "metrics" / f"{process}.jsonl"

    def stacks(self, process: str) -> Path:
        return self.dir / "stacks" / f"{process}.txt"

    def host_journal(self, host: str) -> Path:
        return self.dir / "hosts" / host / "journal.jsonl"

    def host_beat(self, host: str) -> Path:
        return self.dir / "hosts" / host / "beat.json"


class RunStore:
    """All runs below one home folder."""

    def __init__(self, home: Path) -> None:
        self.root = home / "runs"

    def path(self, run_id: str) -> RunPaths:
        """The folder of the run with exactly this id, whether it exists or not."""
        return RunPaths(self.root / run_id)

    def check_free(self, run_id: str) -> None:
        """Raise UsageError when there is a run with this id."""
        if self.path(run_id).dir.exists():
            raise _taken(run_id)

    def create(self, run_id: str) -> RunPaths:
        """Make the folder of a new run (0700); ``run_id`` is a checked one (``job.check_run_id``).

        Raises UsageError when it is taken, HostNotReady when the folder cannot be written.
        """
        paths = self.path(run_id)
        try:
            for folder in (self.root.parent, self.root):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            paths.dir.mkdir(mode=0o700)
        except FileExistsError:
            raise _taken(run_id) from None
        except OSError as error:
            raise HostNotReady(
                f"cannot keep the record of a run in {self.root}: {error.strerror}",
                hint="set GLM2_ORCH_HOME to a folder that you can write",
            ) from error
        return paths

    def names(self) -> List[str]:
        """Run ids, oldest first (by the time of their creation)."""
        if not self.root.is_dir():
            return []
        runs = [entry for entry in self.root.iterdir() if (entry / "journal.jsonl").exists()]
        return [entry.name for entry in sorted(runs, key=_created)]

    def resolve(self, name: str) -> RunPaths:
        """The run called ``name``: ``latest``, a run id, or a prefix that only one run has.

        Raises UsageError when no run or more than one fits.
        """
        names = self.names()
        if not names:
            raise UsageError(
                f"there is no run in {self.root}", hint="start one with: glm2-orch launch"
            )
        if name == "latest":
            return RunPaths(self.root / names[-1])
        if name in names:
            return RunPaths(self.root / name)
        found = [candidate for candidate in names if candidate.startswith(name)]
        if len(found) == 1:
            return RunPaths(self.root / found[0])
        if found:
            raise UsageError(
                f"{name!r} fits {len(found)} runs: {', '.join(found[-5:])}",
                hint="give more of the run id",
            )
        raise UsageError(
            f"no run is called {name!r}", hint=f"the newest is {names[-1]}; `latest` names it too"
        )


def _taken(run_id: str) -> UsageError:
    return UsageError(
        f"run {run_id} exists already", hint="choose another --run-id, or leave it out"
    )


def _created(entry: Path) -> tuple[float, str]:
    journal = entry / "journal.jsonl"
    with journal.open("rb") as stream:
        first = stream.readline()
    import json

    try:
        return float(json.loads(first)["wall"]), entry.name
    except (ValueError, KeyError, TypeError):
        return journal.stat().st_mtime, entry.name
