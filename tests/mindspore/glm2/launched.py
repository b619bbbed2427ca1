"""Trainings in several layouts, launched as a user does: real ranks on this machine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np

from glm2.checkpoint import read_parameters
from glm2.weights import PROGRESS_NAMES
from orchestrator.drill.cluster import free_port
from tests.cluster.launch.conftest import Cli, Result

STEPS = 20
GLOBAL_BATCH = 8
ROWS = 40
"""Five steps an epoch."""
MODEL = "model.model_config."
SMALL = (
    MODEL + "hidden_size=64", MODEL + "ffn_hidden_size=128", MODEL + "kv_channels=16",
    MODEL + "seq_length=49", "train_dataset.max_source_length=24",
    "train_dataset.max_target_length=24", "runner_config.epochs=4",
    "lr_schedule.learning_rate=1.e-3", "lr_schedule.warmup_steps=2", "lr_schedule.total_steps=20",
    "callbacks.1.save_checkpoint_steps=3", "callbacks.1.keep_checkpoint_max=100",
    # Where a gradient is zero but for rounding, Adam divides noise by noise: the second half of
    # the keys' bias, which the softmax takes no notice of. A larger epsilon leaves it there.
    "optimizer.eps=1.e-4",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """A layout of ranks."""

    data: int = 1
    model: int = 1
    shared: bool = False
    """Whether the optimizer's state is."""
    more: Tuple[str, ...] = ()
    """Further settings."""

    @property
    def ranks(self) -> int:
        return self.data * self.model

    @property
    def settings(self) -> List[str]:
        words = [
            *SMALL,
            f"parallel_config.data_parallel={self.data}",
            f"parallel_config.model_parallel={self.model}",
            f"parallel.enable_parallel_optimizer={self.shared}",
            f"runner_config.batch_size={GLOBAL_BATCH // self.data}",
            *self.more,
        ]
        return [word for setting in words for word in ("--set", setting)]

    def __str__(self) -> str:
        return f"dp{self.data}mp{self.model}" + ("opt" if self.shared else "")


class Launches:
    """Launches on this machine, with state and run folders below ``folder``."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.cli = folder, Cli(folder / "home")
        for name in [name for name in self.cli.environment if name.startswith(("MS_", "GLM2_R"))]:
            del self.cli.environment[name]
        self.cli.environment["GLM2_CACHE"] = str(folder / "cache")
        lines = (data / "train.json").read_text(encoding="utf-8").splitlines()[:ROWS]
        self.rows = folder / "train.json"
        self.rows.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def inventory(self, ranks: int, hosts: int = 1) -> Path:
        """So many ranks on hosts that are all this machine, and a port that nobody else takes:
        launches beside the tests look for theirs from 8118 on."""
        devices = f"[0,{ranks // hosts})"
        names = ", ".join(f"host{i}: {{workdir: {self.folder}/work{i}}}" for i in range(hosts))
        file = self.folder / f"inventory-{ranks}-{hosts}.yaml"
        file.write_text(
            f"cluster: here\ndefaults: {{connection: local, device_target: CPU, "
            f'devices: "{devices}"}}\nhosts: {{{names}}}\njob: {{config: tiny_cpu, grace_s: 1, '
            f"scheduler_port: {free_port()}}}\n",
            encoding="utf-8",
        )
        return file

    def launch(self, run_id: str, shape: Shape, *more: str, hosts: int = 1) -> Result:
        """A training of that layout, to its end."""
        return self.cli(*self.words(run_id, shape, *more, hosts=hosts), timeout=280)

    def words(self, run_id: str, shape: Shape, *more: str, hosts: int = 1) -> List[object]:
        """The command line."""
        return [
            "launch", "-i", self.inventory(shape.ranks, hosts), "--run-id", run_id, *shape.settings,
            "--set", f"train_dataset.data_loader.dataset_dir={self.rows}", "--skip-preflight",
            *more, "finetune",
        ]  # fmt: skip

    def lines(self, run_id: str, rank: int = 0) -> List[Dict[str, object]]:
        """What a rank reported of each step."""
        file = self.cli.run(run_id).metrics(f"rank_{rank}")
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if "step" in line and "loss" in line]

    def losses(self, run_id: str, rank: int = 0) -> List[float]:
        """Of each step."""
        return [float(str(line["loss"])) for line in self.lines(run_id, rank)]

    def collected(self, run_id: str) -> Path:
        """Folder of all files of the last step, with ``merged.ckpt`` of them."""
        out = self.folder / "collected" / run_id
        if not out.exists():
            done = self.cli("collect-ckpt", run_id, "--all", "--merge", "--out", out)
            assert done.status == 0, done.stderr
        return out

    def weights(self, run_id: str) -> Dict[str, np.ndarray]:
        """Weights and moments of the last step, merged."""
        found = read_parameters(self.collected(run_id) / "merged.ckpt")
        return {k: v.asnumpy() for k, v in found.items() if k not in PROGRESS_NAMES}

    def said(self, run_id: str, ranks: int) -> str:
        """The ends of the logs of all ranks."""
        logs = [self.cli.run(run_id).log(f"rank_{rank}") for rank in range(ranks)]
        return "\n".join(log.read_text(encoding="utf-8")[-3000:] for log in logs if log.exists())
