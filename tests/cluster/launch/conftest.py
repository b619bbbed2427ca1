"""Fixtures of tests that run the whole command line against real hosts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence

import psutil
import pytest

from orchestrator.drill import cluster
from orchestrator.runs.layout import RunPaths, RunStore

STANDIN = Path(__file__).with_name("standin_rank.py")


@dataclass(frozen=True)
class Result:
    """What a finished command left: exit status and both streams."""

    status: int
    stdout: str
    stderr: str

    def json(self) -> Dict[str, Any]:
        answer = json.loads(self.stdout)
        assert answer["schema"] == 1
        return answer


class Cli:
    """``glm2-orch`` as a user runs it, in real processes, with a state folder of the test's own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = RunStore(home)
        self.environment = {**os.environ, "GLM2_ORCH_HOME": str(home), "NO_COLOR": "1"}

    def __call__(self, *arguments: object, timeout: float = 120) -> Result:
        done = subprocess.run(
            self.command(*arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*arguments),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(self, *arguments: object) -> List[str]:
        return [sys.executable, "-m", "orchestrator.cli.main", *map(str, arguments)]

    def run(self, name: str = "latest") -> RunPaths:
        return self.store.resolve(name)


@pytest.fixture
def cli(tmp_path):
    """The command line; at the end no process of any of its runs may be left."""
    made = Cli(tmp_path / "home")
    yield made
    # A background controller may be just about to exit: its last act was to write the ending.
    _, left = psutil.wait_procs(
        [process for name in made.store.names() for process in processes_of(name)], timeout=10
    )
    for process in left:
        process.kill()
    assert not left, f"left behind: {left}"


def processes_of(run_id: str) -> List[psutil.Process]:
    """Processes that carry the run's id in their environment, or are a command of ours on it.

    The same word among the arguments of a stranger means nothing.
    """
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            ours = "orchestrator.cli.main" in words and run_id in words
            if ours or process.environ().get("GLM2_RUN_ID") == run_id:
                found.append(process)
        except psutil.Error:
            continue
    return found


def standin(steps: int = 3, recipe: str = "standalone") -> Sequence[str]:
    """Options that make every rank run the stand-in; by itself, without MindSpore's scheduler."""
    return ("--worker-command", f"{sys.executable} {STANDIN} {steps}", "--recipe", recipe)


def without_scheduler(folder: Path) -> Path:
    """A program in ``folder`` that is this Python, but for MindSpore's scheduler: stand-ins have no
    use for one, which would only be waited for at the end."""
    program = folder / "python"
    program.write_text(
        f'#!/bin/sh\n[ "$1 $2 $3" = "-m glm2 scheduler" ] && exit 0\nexec {sys.executable} "$@"\n'
    )
    program.chmod(0o755)
    return program


@pytest.fixture
def free_port() -> int:
    """A TCP port on which nobody listens."""
    return cluster.free_port()
