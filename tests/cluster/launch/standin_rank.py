"""A rank command for tests: MindSpore on the first ranks of the run, a stand-in on all others.

``python standin_rank.py STEPS``: the stand-in prints log lines, writes ``metrics.jsonl`` as
``docs/contracts.md`` says, and ends. Its behaviour is steered by variables, so that one launch can
have a rank of each kind:

``STANDIN_MINDSPORE=N``   ranks below N run ``python -m glm2`` as a dynamic cluster of N, with a
                          scheduler of their own on STANDIN_PORT (rank 0 starts it)
``STANDIN_FAIL=R:CODE``   rank R exits with CODE after its second step
``STANDIN_HANG=1``        after the last step, wait for a signal instead of ending
``STANDIN_STUCK=R:N``     all ranks stop at step N: rank R loads its data, the others wait for it
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    rank = int(os.environ["RANK_ID"])
    if rank < int(os.environ.get("STANDIN_MINDSPORE", "0")):
        return run_mindspore(rank)
    return stand_in(rank, int(sys.argv[1]))


def stand_in(rank: int, steps: int) -> int:
    stacks = os.open(Path(os.environ["GLM2_RANK_DIR"]) / "stacks.log", os.O_WRONLY | os.O_CREAT)
    faulthandler.register(signal.SIGUSR1, file=stacks)
    stuck, _, last = os.environ.get("STANDIN_STUCK", "-1:-1").partition(":")
    failing, _, code = os.environ.get("STANDIN_FAIL", "-1:0").partition(":")
    with open(Path(os.environ["GLM2_RANK_DIR"]) / "metrics.jsonl", "a") as metrics:
        for step in range(1, steps + 1):
            print(f"rank {rank} step {step} 损失", flush=True)
            line = {"schema": 1, "step": step, "steps": steps, "loss": 1.0 / step}
            metrics.write(json.dumps(line) + "\n")
            metrics.flush()
            if rank == int(failing) and step == 2:
                print(f"rank {rank} gives up", file=sys.stderr, flush=True)
                return int(code)
            if step == int(last):
                load_batch() if rank == int(stuck) else all_reduce()
            time.sleep(0.02)
    if os.environ.get("STANDIN_HANG"):
        time.sleep(600)
    return 0


def load_batch() -> None:
    time.sleep(600)


def all_reduce() -> None:
    time.sleep(600)


def run_mindspore(rank: int) -> int:
    world = os.environ["STANDIN_MINDSPORE"]
    cluster = {
        "MS_WORKER_NUM": world,
        "RANK_SIZE": world,
        "MS_SCHED_PORT": os.environ["STANDIN_PORT"],
    }
    environment = {**os.environ, **cluster}
    glm2 = [sys.executable, "-m", "glm2"]
    if rank == 0:
        subprocess.Popen([*glm2, "scheduler"], env={**environment, "MS_ROLE": "MS_SCHED"})
    arguments = ["--config", "tiny_cpu", "--run_mode", "finetune", "--use_parallel", "True"]
    settings = ["--set", "runner_config.epochs=1", "--set", "train_dataset.batch_size=32"]
    return subprocess.call([*glm2, *arguments, *settings], env=environment)


if __name__ == "__main__":
    sys.exit(main())
