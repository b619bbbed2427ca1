"""Everything that is wrong with a job's configuration, found before any host is touched.

The worker knows its keys; the control plane does not import it, so it is asked as a program:
``python -m glm2 check``. It needs neither MindSpore nor the data.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import List, Optional, Sequence

from orchestrator.engine.payload import worker_folder
from orchestrator.errors import JobError, Location
from orchestrator.inventory import Host
from orchestrator.job import Job
from orchestrator.planning.strategy import review_strategy
from orchestrator.problems import Problem
from orchestrator.worker_config import WorkerConfig
from orchestrator.yaml_positions import dump

_KEY = re.compile(r"[A-Za-z_][\w]*(?:\.[A-Za-z_][\w]*)*")


def check_job(job: Job, hosts: Sequence[Host]) -> None:
    """Raise JobError with everything that is known to be wrong with the job's configuration on
    ``hosts``, each with its place in the user's file: what the plan will refuse
    (``review_strategy``), and what the worker itself refuses."""
    if job.config is None:
        return
    problems = review_strategy(job, [len(host.devices) for host in hosts]).problems
    known = {problem.location for problem in problems.found if problem.location}
    for problem in _refusals(job, job.config):
        if problem.location not in known:
            problems.add(problem.message, problem.location, problem.hint)
    problems.raise_any(JobError, f"the configuration {job.config.name}")


def _refusals(job: Job, config: WorkerConfig) -> List[Problem]:
    """What ``glm2`` says against the configuration; nothing of a job with its own command."""
    if not job.runs_glm2 or job.mode == "export":
        return []
    with tempfile.TemporaryDirectory(prefix="glm2-orch-") as folder:
        file = Path(folder) / "job.yaml"
        file.write_text(dump(config.values), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "glm2", "check", "--config", file, "--run_mode", job.mode],
            env={**os.environ, "PYTHONPATH": str(worker_folder().parent)},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    return _problems(config, done.stderr) if done.returncode else []


def _problems(config: WorkerConfig, talk: str) -> List[Problem]:
    """The lines ``error: …`` of the worker, each with its hint ``  → …`` below it."""
    found: List[Problem] = []
    for line in talk.strip().splitlines():
        if line.startswith("error: "):
            message = re.sub(r"^error: (job\.yaml(:\d+)*: )?", "", line)
            place = _place(config, message) or Location(config.name)
            hint = "correct the configuration, or use --set"
            found.append(Problem(message, place, hint))
        elif found and line.startswith("  → "):
            found[-1] = replace(found[-1], hint=line.strip(" →"))
    if not found:
        said = talk.strip().splitlines() or ["no reason was given"]
        found.append(Problem(f"the worker refuses it: {said[-1]}", Location(config.name)))
    return found


def _place(config: WorkerConfig, message: str) -> Optional[Location]:
    """Place of the first key that the message names, else of the nearest section around one."""
    keys = [tuple(key.split(".")) for key in _KEY.findall(message)]
    around = (key[:end] for key in keys for end in range(len(key) - 1, 0, -1))
    return next(
        (config.locations[key] for key in (*keys, *around) if key in config.locations), None
    )
