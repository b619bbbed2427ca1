"""A host of a run, as the launcher leaves it: the shipped node folder, a spec, and the commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import psutil

import orchestrator.node

NODE = Path(orchestrator.node.__file__).parent
Json = Dict[str, Any]


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """The first true value of ``condition``; fails the test when there is none in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s in vain for: {what}")


def alive(pid: int) -> bool:
    """Whether the process runs; one that ended and that init has not waited for does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def sh(script: str) -> List[str]:
    """A process's argv: a line of shell, run in the run folder."""
    return ["bash", "-c", script]


@dataclass
class Host:
    """``run_dir`` is ``<workdir>/runs/<run id>``."""

    python: str
    workdir: Path
    run_id: str
    pids: List[int] = field(default_factory=list)
    """Of the supervisors that were armed here."""

    @property
    def run_dir(self) -> Path:
        return self.workdir / "runs" / self.run_id

    def ship(
        self,
        *ranks: List[str],
        services: Optional[Dict[str, List[str]]] = None,
        **settings: Any,
    ) -> None:
        """Write the run folder: services first, then ranks 0, 1, …"""
        node = self.run_dir / "node"
        node.mkdir(parents=True)
        for file in NODE.glob("*.py"):
            shutil.copy(file, node)
        processes: List[Json] = [
            {"name": name, "rank": None, "argv": argv} for name, argv in (services or {}).items()
        ]
        processes += [{"name": f"rank_{i}", "rank": i, "argv": a} for i, a in enumerate(ranks)]
        spec = {
            "schema": 1,
            "run_id": self.run_id,
            "host": "node0",
            "workdir": str(self.workdir),
            "grace_s": 5.0,
            "heartbeat_s": 0.1,
            "linger_s": 0.0,
            "leases": ["device_0"],
            "processes": processes,
        }
        spec.update(settings)
        (self.run_dir / "spec.json").write_text(json.dumps(spec))

    def lease(self, name: str) -> Path:
        return self.workdir / "leases" / f"{os.uname().nodename}.{name}.lock"

    def argv(self, command: str, *options: str) -> List[str]:
        program = str(self.run_dir / "node" / "supervisor.py")
        return [self.python, program, command, "--run-dir", str(self.run_dir), *options]

    def ask(self, command: str, *options: str) -> Tuple[int, Json]:
        """Exit status and answer. Returns only when nothing of the command holds its output."""
        done = subprocess.run(
            self.argv(command, *options), stdout=subprocess.PIPE, timeout=60, check=False
        )
        answer = json.loads(done.stdout)
        if answer.get("armed"):
            self.pids.append(answer["pid"])
        return done.returncode, answer

    def do(self, command: str, *options: str) -> Json:
        """The answer of a command that must succeed."""
        status, answer = self.ask(command, *options)
        assert status == 0, answer
        return answer

    def launch(self, *ranks: List[str], **settings: Any) -> None:
        self.ship(*ranks, **settings)
        self.do("arm")
        assert self.do("start")["started"] is True

    def events(self, kind: str = "") -> List[Json]:
        path = self.run_dir / "journal.jsonl"
        text = path.read_text() if path.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        events = [json.loads(line) for line in lines]
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        return [event for event in events if kind in ("", event["event"])]

    def exits(self) -> Dict[str, Tuple[int, bool]]:
        """Exit code and whether it was collateral, by name. Checks exit.json, too."""
        found = {}
        for event in self.events("process_exited"):
            path = self.run_dir / "ranks" / event["name"] / "exit.json"
            on_disk = json.loads(path.read_text())
            for key in ("name", "rank", "code", "signal", "collateral"):
                assert on_disk[key] == event[key]
            found[event["name"]] = (event["code"], event["collateral"])
        return found

    def wait_finished(self) -> Json:
        """The last event, once the supervisor has gone too."""
        wait_until(lambda: self.events("finished"), "finished")
        wait_until(lambda: not alive(self.pids[-1]), "end of the supervisor")
        (finished,) = self.events("finished")
        return finished

    def wait_file(self, name: str) -> str:
        """Text of a file of the run folder, once it has any."""
        path = self.run_dir / name
        return wait_until(lambda: path.exists() and path.read_text(), name)

    def stdout(self, name: str) -> bytes:
        return (self.run_dir / "ranks" / name / "stdout.log").read_bytes()

    def leftovers(self) -> List[str]:
        """Living processes of this run, found independently of the code under test."""
        found = [f"supervisor {pid}" for pid in self.pids if alive(pid)]
        for process in psutil.process_iter():
            try:
                environ = process.environ()
                if (
                    environ.get("GLM2_RUN_ID") == self.run_id
                    and environ.get("GLM2_RUN_DIR") == str(self.run_dir)
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(f"{process.pid} {process.cmdline()}")
            except psutil.Error:
                continue
        return found


class Frames:
    """A stream process and what it sent so far."""

    def __init__(self, host: Host, *options: str) -> None:
        self.process = subprocess.Popen(
            host.argv("stream", *options), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def read(self, count: Optional[int] = None) -> List[Json]:
        """``count`` frames, or all to the end."""
        assert self.process.stdout is not None
        frames: List[Json] = []
        for line in self.process.stdout:
            line.decode("ascii")
            frames.append(json.loads(line))
            if count is not None and len(frames) == count:
                return frames
        assert self.process.wait(timeout=30) == 0
        return frames

    def close(self) -> None:
        for end in (self.process.stdin, self.process.stdout):
            assert end is not None
            end.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=30)


def assemble(frames: List[Json], into: Optional[Dict[str, bytes]] = None) -> Dict[str, bytes]:
    """The files that data frames make, checking that no byte is missing or doubled."""
    files = {} if into is None else into
    for frame in frames:
        if frame["t"] == "data":
            data = frame["data"].encode("utf-8", "surrogateescape")
            before = files.setdefault(frame["file"], b"")
            assert frame["off"] == len(before)
            files[frame["file"]] = before + data
    return files


def marked(host: Host) -> Dict[str, str]:
    """Our environment with the marks of a rank, as after sourcing its env.sh."""
    return dict(os.environ, GLM2_RUN_ID=host.run_id, GLM2_RUN_DIR=str(host.run_dir))
