"""``logs -f --collapse`` of a run that goes on: lines come as they are printed."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from typing import IO, List

from orchestrator.runs import lease
from orchestrator.runs.journal import Journal
from tests.unit.report.made_run import made_run

_LIMIT_S = 60.0


def next_line(stream: IO[bytes]) -> str:
    """The next line of a pipe, waited for within bounds."""
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        deadline = time.monotonic() + _LIMIT_S
        while not line.endswith(b"\n"):
            assert selector.select(max(0.0, deadline - time.monotonic())), "nothing was printed"
            byte = os.read(stream.fileno(), 1)
            assert byte, "the command has ended"
            line += byte
    return line.decode().rstrip("\n")


def test_lines_come_while_the_run_goes_on(tmp_path):
    paths = made_run(tmp_path, hosts=1, per_host=3)
    paths.logs.mkdir()
    held = lease.acquire(paths.lock, "test")
    env = {**os.environ, "GLM2_ORCH_HOME": str(tmp_path), "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "orchestrator.cli.main", "logs", "-f", "--collapse"]

    def append(ranks: List[int], text: str) -> None:
        for rank in ranks:
            with paths.log(f"rank_{rank}").open("a") as stream:
                stream.write(text + "\n")

    with subprocess.Popen(command, stdout=subprocess.PIPE, env=env) as process:
        try:
            assert process.stdout is not None
            append([0, 1, 2], "10:00:00 compiling")
            assert next_line(process.stdout) == "[0-2] 10:00:00 compiling"
            append([0, 2], "10:00:09 ready")
            assert next_line(process.stdout) == "[0,2] 10:00:09 ready"
            append([1], "10:00:30 ready")
            assert next_line(process.stdout) == "[1] 10:00:30 ready"
            append([2], "torn")
            Journal(paths.journal).append("end", outcome="succeeded", exit_status=0)
            assert next_line(process.stdout) == "[2] torn"
            assert process.wait(_LIMIT_S) == 0
        finally:
            process.kill()
            held.release()
