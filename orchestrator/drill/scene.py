"""A job on a cluster of this machine, as a drill sees and disturbs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zlib
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import orchestrator.drill
from orchestrator.checkpoints.checksum import check_file, sha256_of
from orchestrator.checkpoints.mindspore_ckpt import (
    CRC_TRAILER_BYTES,
    ckpt_layout,
    crc_trailer,
    index_ckpt,
)
from orchestrator.checkpoints.tensor import NewTensor
from orchestrator.drill.cluster import Loopback
from orchestrator.drill.processes import DrillTimeout, Process, every, find, wait_until
from orchestrator.errors import CheckpointError
from orchestrator.inventory import Host
from orchestrator.runs.journal import read_events
from orchestrator.runs.layout import RunPaths, RunStore

RUN_ID = "drill"
RANKS_PER_HOST = 2
GRACE_S = 2
_ROWS, _COLUMNS = 256, 64
_LONG_S = 60.0

Steps = Mapping[int, Mapping[int, str]]
"""SHA-256 of each rank's file, by step and rank."""


@dataclass(frozen=True)
class Done:
    """How a command of glm2-orch ended: exit status, the object that it printed, its talk."""

    status: int
    answer: Mapping[str, Any]
    talk: str


class Command:
    """A glm2-orch command in a process of its own."""

    def __init__(self, home: Path, arguments: Sequence[object], log: Path) -> None:
        self._log = log
        self._output = log.with_suffix(".out")
        environment = {**os.environ, "GLM2_ORCH_HOME": str(home), "NO_COLOR": "1"}
        with log.open("wb") as talk, self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.cli.main", *map(str, arguments)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=talk,
                start_new_session=True,
            )

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    def wait(self, seconds: float = _LONG_S) -> Done:
        """Its end. Raises DrillTimeout."""
        wait_until(lambda: self.over, f"the end of {' '.join(self._shown())}", seconds)
        output = self._output.read_text("utf-8", "replace")
        answer: Any = {}
        with suppress(ValueError):
            answer = json.loads(output)
        talk = self._log.read_text("utf-8", "replace")
        return Done(self.process.returncode, answer if isinstance(answer, dict) else {}, talk)

    def kill(self) -> None:
        """As a crash or reboot does."""
        if not self.over:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def _shown(self) -> List[str]:
        arguments = self.process.args
        assert isinstance(arguments, list)
        return ["glm2-orch", *map(str, arguments[3:5])]


@dataclass
class Scene:
    """The cluster, the run and the commands of one drill; all its files are below ``folder``."""

    folder: Path
    cluster: Loopback
    hosts: Tuple[Host, ...]
    worker: str
    """Command of a rank."""
    watch: Mapping[str, object] = field(default_factory=dict)
    launched: Optional[Command] = None
    collecting: Optional[Command] = None
    notes: Dict[str, Any] = field(default_factory=dict)
    """What a fault remembers from one act to the next."""
    unmount: List[Path] = field(default_factory=list)
    options: Tuple[str, ...] = ()
    """More options of the launch."""
    spares: Tuple[Host, ...] = ()
    heartbeat_s: float = 0.2

    def __post_init__(self) -> None:
        for name in ("tricks", "at", "model", "commands"):
            (self.shared / name).mkdir(parents=True, exist_ok=True)
        for rank in range(len(self.hosts) * RANKS_PER_HOST):
            (self.shared / "model" / f"rank_{rank}").write_bytes(_checkpoint())
        self.hosts = tuple(replace(one, python=str(self._python(one))) for one in self.hosts)
        self.spares = tuple(replace(one, python=str(self._python(one))) for one in self.spares)

    @property
    def shared(self) -> Path:
        return self.folder / "drill"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def paths(self) -> RunPaths:
        return RunStore(self.home).path(RUN_ID)

    @property
    def ranks(self) -> range:
        return range(len(self.hosts) * RANKS_PER_HOST)

    # What is seen

    def host_of(self, rank: int) -> Host:
        return self.hosts[rank // RANKS_PER_HOST]

    def run_dir(self, host: Host) -> Path:
        return Path(host.workdir) / "runs" / RUN_ID

    def supervisor(self, host: Host) -> Process:
        return self._started(host, "armed", None)

    def rank(self, rank: int) -> Process:
        """The process of a rank."""
        return self._started(self.host_of(rank), "process_started", rank)

    def metrics(self, rank: int) -> List[Dict[str, Any]]:
        folder = self.run_dir(self.host_of(rank)) / "ranks" / f"rank_{rank}"
        return list(read_events(folder / "metrics.jsonl"))

    def step(self, rank: int) -> int:
        return max((int(line.get("step", 0)) for line in self.metrics(rank)), default=0)

    def phase(self, rank: int) -> Optional[str]:
        phases = [str(line["phase"]) for line in self.metrics(rank) if "phase" in line]
        return phases[-1] if phases else None

    def complete_steps(self) -> Steps:
        """The checkpoints on the hosts that every rank has, whole and undamaged."""
        steps: Dict[int, Dict[int, str]] = {}
        for rank in self.ranks:
            folder = self.run_dir(self.host_of(rank)) / "output" / "checkpoint" / f"rank_{rank}"
            for path in folder.glob("*.ckpt"):
                with suppress(CheckpointError):
                    check_file(index_ckpt(path), str(path))
                    step = int(path.stem.rpartition("_")[2])
                    steps.setdefault(step, {})[rank] = sha256_of(path)
        return {step: files for step, files in steps.items() if len(files) == len(self.ranks)}

    def left(self) -> List[str]:
        """Processes of the run that still live, and where they were found: by the run's id in
        their environment, or by its folders in their command."""
        folders = [str(self.run_dir(host)) for host in self.hosts]
        found = []
        for process in every():
            ours = process.environment("DRILL_DIR") == str(self.shared) or any(
                folder in process.command() for folder in folders
            )
            if ours or process.environment("GLM2_RUN_DIR") in folders:
                found.append(f"{process.name} ({process.pid})")
        return found

    def decisions(self) -> List[Dict[str, Any]]:
        return [one for one in read_events(self.paths.journal) if one["event"] == "decision"]

    # What is done

    def command(self, *arguments: object) -> Command:
        number = len(list((self.shared / "commands").glob("*.log")))
        log = self.shared / "commands" / f"{number}-{arguments[0]}.log"
        return Command(self.home, arguments, log)

    def launch(self, run_id: str = RUN_ID, shared: Optional[Path] = None) -> Command:
        groups = {"workers": self.hosts, **({"spares": self.spares} if self.spares else {})}
        inventory = self.cluster.inventory(
            hosts=(*self.hosts, *self.spares),
            job={
                "grace_s": GRACE_S,
                "heartbeat_s": self.heartbeat_s,
                "watch": dict(self.watch),
            },
            groups={
                name: {"hosts": [host.name for host in hosts]} for name, hosts in groups.items()
            },
        )
        return self.command(
            *("launch", "-i", inventory, "--run-id", run_id, "--worker-command", self.worker),
            *("--env", f"DRILL_DIR={shared or self.shared}", "-o", "json"),
            *(*self.options, "finetune"),
        )

    def collect(self) -> Command:
        return self.command(
            "collect-ckpt", RUN_ID, "--out", self.folder / "collected", "-o", "json"
        )

    def trick(self, name: str, rank: int, text: str = "") -> None:
        """Have a rank do something by itself, see ``standin``."""
        part = self.shared / f"trick.{rank}"
        part.write_text(text)
        part.rename(self.shared / "tricks" / f"{name}.{rank}")

    def let(self, name: str) -> None:
        """A file that the ranks look for, see ``standin``."""
        (self.shared / name).touch()

    def release(self, name: str) -> None:
        (self.shared / name).unlink(missing_ok=True)

    def reach(self, moment: str) -> None:
        """Wait until the job is at a moment. Raises DrillTimeout, also when it ended before."""
        conditions = {
            "launch": lambda: all(self.phase(rank) == "startup" for rank in self.ranks),
            "training": lambda: all(self.step(rank) >= 5 for rank in self.ranks),
            "checkpoint": lambda: (
                all(self.phase(rank) == "checkpoint" for rank in self.ranks)
                and bool(self.complete_steps())
            ),
            "collect": lambda: all(self.step(rank) >= 5 for rank in self.ranks),
        }
        self.until(conditions[moment], f"the moment: {moment}")
        if moment != "launch":
            self.until(lambda: self.complete_steps(), "a complete checkpoint")
        self.until(lambda: '"running"' in self.paths.journal.read_text("utf-8"), "the start")
        if moment == "collect":
            server = self.cluster.server(self.hosts[-1])
            before = len(server.connections())
            self.collecting = self.collect()
            command = self.collecting
            self.until(lambda: command.over or len(server.connections()) > before, "the collecting")

    def until(self, condition: Any, what: str, seconds: float = _LONG_S) -> None:
        """As ``wait_until``, but no longer than the launch lives."""

        def holds() -> bool:
            if self.launched is not None and self.launched.over and not condition():
                talk = self.launched.wait().talk.strip().splitlines()[-1:]
                raise DrillTimeout(f"the run ended before {what}: {' '.join(talk)}")
            return bool(condition())

        wait_until(holds, what, seconds)

    def close(self) -> None:
        """End the commands that still run. The cluster ends what runs on its hosts."""
        for command in (self.launched, self.collecting):
            if command is not None:
                command.kill()

    def use_python(self, rank: int, path: str) -> Path:
        """Give the host of a rank a Python with a PYTHONPATH of its own; before the launch."""
        host = self.host_of(rank)
        tool = self._python(host, path)
        self.hosts = tuple(
            replace(one, python=str(tool)) if one is host else one for one in self.hosts
        )
        return tool

    def _python(self, host: Host, path: str = "") -> Path:
        """The Python of a host: this one, and where a scheduler is called for, its stand-in."""
        tool = self.shared / "pythons" / host.name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(
            f'#!/bin/sh\n[ "$1 $2 $3" = "-m glm2 scheduler" ] && exec {standin()} scheduler\n'
            # Without -S, with which it would not look there.
            + (f'export PYTHONPATH={path}\n[ "$1" = -S ] && shift\n' if path else "")
            + f'exec {sys.executable} "$@"\n'
        )
        tool.chmod(0o755)
        return tool

    def _started(self, host: Host, kind: str, rank: Optional[int]) -> Process:
        for event in read_events(self.run_dir(host) / "journal.jsonl"):
            if event["event"] == kind and (rank is None or event.get("rank") == rank):
                process = find(int(event["pid"]))
                if process is not None:
                    return process
        raise DrillTimeout(f"there is no process of {kind} on {host.name}")


def _checkpoint() -> bytes:
    """A rank's checkpoint as MindSpore writes it, with a checksum; all ranks hold the same."""
    tensor = NewTensor("weight", "Float32", (_ROWS, _COLUMNS), 4 * _ROWS * _COLUMNS)
    layout = ckpt_layout([tensor], crc=True)
    content = bytearray(layout.size)
    for offset, header in layout.fixed:
        content[offset : offset + len(header)] = header
    data = bytes(number % 64 for number in range(256)) * (tensor.nbytes // 256)
    at = 0
    for segment in layout.segments["weight"]:
        content[segment.offset : segment.offset + segment.length] = data[at : at + segment.length]
        at += segment.length
    body = bytes(content[: layout.size - CRC_TRAILER_BYTES])
    return body + crc_trailer(zlib.crc32(body))


def standin() -> str:
    """The command of a rank that runs the stand-in."""
    return f"{sys.executable} {Path(orchestrator.drill.__path__[0]) / 'standin.py'}"
