"""Real processes of the worker, and what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from orchestrator.drill.cluster import free_port

REPOSITORY = Path(__file__).parents[3]
TRAINING = (
    "--config", "tiny_cpu",
    "--run_mode", "finetune",
    "--output_dir", "output",
    "--set", "runner_config.epochs=2",
    "--set", "lr_schedule.warmup_steps=2",
    "--set", "lr_schedule.total_steps=12",
    "--set", "callbacks.1.save_checkpoint_steps=5",
)  # fmt: skip
_OTHERS = ("MS_", "RANK_", "GLM2_", "DEVICE_ID")

Process = subprocess.Popen


class Workers:
    """Starts ``python -m glm2`` in folders; the end of the context kills what is left."""

    def __init__(self, data: Path, cache: Path) -> None:
        self.data = data
        self.environ = {
            name: value for name, value in os.environ.items() if not name.startswith(_OTHERS)
        }
        self.environ |= {
            "PYTHONPATH": str(REPOSITORY),
            "GLM2_CACHE": str(cache),
            "OMP_NUM_THREADS": "1",
        }
        self._started: List[Process] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.wait(timeout=30)

    def start(self, folder: Path, *words: str, name: str = "rank_0", **variables: str) -> Process:
        """A process with ``folder`` as its place; its output goes to ``<name>.log`` there."""
        if "--config" in words:
            words = (*words, "--train_dataset_dir", str(self.data))
        with (folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "glm2", *words],
                cwd=folder,
                env={**self.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._started.append(process)
        return process

    def start_pair(self, folder: Path, *words: str) -> Tuple[Process, List[Process]]:
        """A scheduler and two ranks."""
        cluster = {
            "MS_WORKER_NUM": "2",
            "MS_SCHED_HOST": "127.0.0.1",
            "MS_SCHED_PORT": str(free_port()),
        }
        scheduler = self.start(folder, "scheduler", name="scheduler", **cluster)
        ranks = [
            self.start(
                folder, *words, name=f"rank_{rank}", **cluster,
                MS_ROLE="MS_WORKER", MS_NODE_ID=str(rank), RANK_ID=str(rank), RANK_SIZE="2",
            )
            for rank in range(2)
        ]  # fmt: skip
        return scheduler, ranks


def metrics(folder: Path, rank: int = 0) -> List[Dict[str, Any]]:
    """The lines of a rank's ``metrics.jsonl`` so far."""
    file = folder / "output" / "log" / f"rank_{rank}" / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def steps(folder: Path, rank: int = 0) -> List[Dict[str, Any]]:
    return [line for line in metrics(folder, rank) if "step" in line]


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 90.0) -> None:
    """Return as soon as ``condition`` holds; fail after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"still waiting for {what}"
        time.sleep(0.05)
