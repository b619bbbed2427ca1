"""Lets the worker judge its configuration before any host is touched.

The worker knows its keys; the control plane does not import it, so it is asked as a program:
``python -m glm2 check``. It needs neither MindSpore nor the data.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Optional

from orchestrator.engine.payload import worker_folder
from orchestrator.errors import JobError, Location
from orchestrator.job import Job
from orchestrator.worker_config import WorkerConfig
from orchestrator.yaml_positions import dump

_KEY = re.compile(r"[A-Za-z_][\w]*(?:\.[A-Za-z_][\w]*)*")


def check_config(job: Job) -> None:
    """Raise JobError, with the place in the user's file, when the worker refuses the job's
    configuration. A job with its own command has nothing to be checked."""
    if job.worker_command or job.config is None or job.mode == "export":
        return
    with tempfile.TemporaryDirectory(prefix="glm2-orch-") as folder:
        file = Path(folder) / "job.yaml"
        file.write_text(dump(job.config.values), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "glm2", "check", "--config", file, "--run_mode", job.mode],
            env={**os.environ, "PYTHONPATH": str(worker_folder().parent)},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise _error(job.config, done.stderr)


def _error(config: WorkerConfig, talk: str) -> JobError:
    lines = talk.strip().splitlines() or ["no reason was given"]
    said = [line for line in lines if line.startswith("error: ")] or lines[-1:]
    message = re.sub(r"^error: (job\.yaml(:\d+)*: )?", "", said[0])
    hints = [line.strip(" →") for line in lines if line.startswith("  → ")]
    return JobError(
        message,
        hint="; ".join(hints) or "correct the configuration, or use --set",
        location=_place(config, message) or Location(config.name),
    )


def _place(config: WorkerConfig, message: str) -> Optional[Location]:
    """Place of the first key that the message names."""
    for key in _KEY.findall(message):
        place = config.locations.get(tuple(key.split(".")))
        if place is not None:
            return place
    return None
