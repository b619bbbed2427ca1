"""What ranks send each other in a step, against the least they must; and two ranks against one.

    python -m benchmarks.glm2_parallel [--steps 20] [--no-scaling]

Volume: one step of each layout runs in a single process in which every collective is replaced by
one that records what it would send (``glm2.collectives.counted``): Ascend's native ones, in a
ring. The least is that of Megatron's scheme: 2·(n-1)/n of the gradients' bytes among data-parallel
ranks (half of it each for reduce-scatter and all-gather where the optimizer's state is shared),
and 2·(n-1)/n of the activations' bytes for each of 4 sums a layer and one of the output layer among
model-parallel ranks, the last three of them of the learned tokens. Nothing is run on Ascend.

Scaling: the same rows on one rank that is bound to one core, and on two ranks that are bound to a
core each: MindSpore's kernels use all cores they may, whatever number of threads is asked for.
Here the collectives are CPU's AllReduce, which also stands in for the others.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Dict, List, NamedTuple, Optional, Tuple

from rich.console import Console
from rich.table import Table

from benchmarks.figures import figure

ROWS = 8
MODEL = {
    "num_layers": 4, "hidden_size": 256, "ffn_hidden_size": 704, "kv_channels": 32,
    "num_attention_heads": 8, "multi_query_group_num": 2, "padded_vocab_size": 1024,
    "seq_length": 97,
}  # fmt: skip
SETTINGS = tuple(f"model.model_config.{key}={value}" for key, value in MODEL.items())
PROMPT = 48
"""Tokens of a row that are not learned."""


class Shape(NamedTuple):
    """A layout of ranks."""

    data: int
    model: int
    shared: bool = False

    def __str__(self) -> str:
        return f"dp {self.data}, mp {self.model}" + (", state shared" if self.shared else "")


VOLUMES = (
    Shape(2, 1), Shape(8, 1), Shape(8, 1, True), Shape(1, 2), Shape(1, 8), Shape(2, 2),
    Shape(2, 2, True), Shape(8, 8, True),
)  # fmt: skip
SCALING = (Shape(1, 1), Shape(2, 1), Shape(2, 1, True), Shape(1, 2))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20, help="steps of a run that are measured")
    parser.add_argument("--no-scaling", action="store_true", help="count the volume only")
    options = parser.parse_args()
    table = Table(title=f"bytes a rank sends in a step, {ROWS} rows of 97 tokens, float32")
    for column in ("layout", "sent", "least", "sent / least"):
        table.add_column(column, justify="left" if column == "layout" else "right")
    for shape in VOLUMES:
        sent, least = volume(shape)
        figure("bytes a rank sends in a step", str(shape), f"{sent / least:.3f} × the least")
        table.add_row(str(shape), f"{sent:,.0f}", f"{least:,.0f}", f"{sent / least:.3f}")
    Console(width=100).print(table)
    if not options.no_scaling:
        scaling(options.steps)


def volume(shape: Shape, more: Tuple[str, ...] = ()) -> Tuple[float, float]:
    """Bytes that a rank sends in a step, as counted, and the least."""
    import mindspore as ms
    import numpy as np

    from glm2.collectives import counted
    from glm2.config import IGNORED_LABEL
    from glm2.division import division_of
    from glm2.model import Glm2
    from glm2.parallel import Layout
    from glm2.settings import find_config, load_settings
    from glm2.tensor_parallel import divided
    from glm2.train_step import StepNumbers, make_step
    from glm2.volume import exchanges

    mode = ms.get_context("mode")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    rows = max(ROWS // shape.data, 1)
    try:
        settings = load_settings(find_config("tiny_cpu"), [*SETTINGS, *more])
        layout = Layout(0, *shape)
        with counted() as calls:
            model = Glm2(settings.model)
            if shape.model > 1:
                model = divided(model, division_of(settings, layout), layout)
            step = make_step(model, settings, layout)
            ids = np.ones((rows, MODEL["seq_length"]), np.int32)
            labels = np.where(np.arange(ids.shape[1]) < PROMPT, IGNORED_LABEL, ids)
            step.run(ids, labels, StepNumbers(1e-4, 1, 1.0, False))
    finally:
        ms.set_context(mode=mode)
    least = sum(exchange.sent for exchange in exchanges(settings, layout, rows))
    return sum(call.sent for call in calls), least


def scaling(steps: int) -> None:
    """Run the same training on one rank and on two."""
    table = Table(title=f"the same {ROWS} rows a step, one core a rank (median of {steps} steps)")
    for column in ("layout", "ms a step", "of it collectives", "speed-up", "efficiency"):
        table.add_column(column, justify="left" if column == "layout" else "right")
    alone = 0.0
    for shape in SCALING:
        lines = train(shape, steps)
        seconds = median(line["step_time_s"] for line in lines)
        share = median(line["communication_share"] for line in lines)
        ranks = shape.data * shape.model
        alone = alone or seconds
        gain = alone / seconds
        figure("a step", str(shape), f"{1000 * seconds:.0f} ms, {gain:.2f} × one rank's speed")
        table.add_row(
            str(shape), f"{1000 * seconds:.0f}", f"{100 * share:.0f} %", f"{gain:.2f}",
            f"{100 * gain / ranks:.0f} %",
        )  # fmt: skip
    Console(width=100).print(table)


def train(shape: Shape, steps: int) -> List[Dict[str, float]]:
    """The measured steps of a real training, as rank 0 reports them."""
    ranks = shape.data * shape.model
    with tempfile.TemporaryDirectory() as folder:
        cluster = {
            "MS_WORKER_NUM": str(ranks), "MS_SCHED_HOST": "127.0.0.1",
            "MS_SCHED_PORT": str(_free_port()), "RANK_SIZE": str(ranks), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        words = [
            "--config", "tiny_cpu", "--run_mode", "train", "--output_dir", "output",
            *(word for setting in (
                *SETTINGS, "context.runtime_num_threads=1", "runner_config.epochs=1",
                f"parallel_config.data_parallel={shape.data}",
                f"parallel_config.model_parallel={shape.model}",
                f"parallel.enable_parallel_optimizer={shape.shared}",
                f"runner_config.batch_size={ROWS // shape.data}",
            ) for word in ("--set", setting)),
        ]  # fmt: skip
        cores = sorted(os.sched_getaffinity(0))
        processes = [
            _start(folder, words, {**cluster, "MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank),
                                   "RANK_ID": str(rank)} if ranks > 1 else {"OMP_NUM_THREADS": "1"},
                   core=cores[rank % len(cores)])
            for rank in range(ranks)
        ]  # fmt: skip
        if ranks > 1:
            processes.append(_start(folder, ["scheduler"], {**cluster, "MS_ROLE": "MS_SCHED"}))
        try:
            for process in processes:
                if process.wait(timeout=600):
                    sys.exit(f"a rank of {shape} failed with status {process.returncode}")
        finally:
            for process in processes:
                process.kill()
                process.wait()
        file = Path(folder) / "output/log/rank_0/metrics.jsonl"
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    found: List[Dict[str, float]] = [line for line in lines if "step_time_s" in line]
    return found[2 : 2 + steps]


def _start(
    folder: str, words: List[str], variables: Dict[str, str], core: Optional[int] = None
) -> subprocess.Popen[bytes]:
    others = ("MS_", "RANK_", "GLM2_", "DEVICE_ID")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(others)}
    environ |= {"PYTHONPATH": str(Path(__file__).parents[1]), "GLM2_CACHE": folder, **variables}
    process = subprocess.Popen(
        [sys.executable, "-m", "glm2", *words],
        cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    if core is not None:
        os.sched_setaffinity(process.pid, {core})
    return process


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
