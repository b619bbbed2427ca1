"""Merging a sharded checkpoint: ours beside cp and MindSpore's transform_checkpoints, in one run.

    python -m benchmarks.merge_ckpt [--size 1.9 6 12.5] [--layout opt8] [--rounds 5]

The set is made here: GLM2's parameters and their Adam moments, cut over the ranks. All files are
warm. In each round every contestant runs once, in a process of its own (ours with the start of
Python in it, MindSpore without its imports). ``cp`` copies the shards, the same bytes that a
merge reads, and waits for no disk; a merge does, but for ``--no-sync``. Like with like are cp and
the merge with it, and cp with sync after it and the merge without. What the disk takes is shown by
the disk alone: as many bytes, from memory, written to one file as the merge does it, until they
are on the disk. Shown are medians, the ratio to cp, and the peak of anonymous memory.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.figures import figure
from orchestrator.checkpoints.layout import Layout
from orchestrator.checkpoints.mindspore_ckpt import ckpt_layout, crc_trailer
from orchestrator.checkpoints.strategy import Strategy, strategy_bytes
from orchestrator.checkpoints.tensor import NewTensor, tensor_bytes

FLOAT32_MOMENTS = 5
"""A float16 weight with two float32 moments takes five times its own bytes."""

GLM2_HIDDEN, GLM2_FFN, GLM2_VOCABULARY = 4096, 13696, 65024

OURS = "glm2-orch merge-ckpt"

Parameters = Dict[str, Tuple[str, Tuple[int, ...]]]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.merge_ckpt",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--size", type=float, nargs="+", default=[1.9], help="GB; 12.5 is the whole model, fp16"
    )
    parser.add_argument("--layout", choices=sorted(LAYOUTS), default="opt8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--crc", action="store_true", help="shards with a CRC trailer")
    parser.add_argument("--no-mindspore", action="store_true")
    parser.add_argument("--dir", type=Path, help="where to work; needs three times the size")
    options = parser.parse_args()
    for size in options.size:
        with tempfile.TemporaryDirectory(dir=options.dir, prefix="merge-ckpt-") as folder:
            root = Path(folder)
            make_set(root, size * 1e9, LAYOUTS[options.layout], crc=options.crc)
            samples = measure(root, options.rounds, with_mindspore=not options.no_mindspore)
        title = f"{size:g} GB, {options.layout}, {options.rounds} rounds"
        Console().print(table(title, samples))
    return 0


# The set


def _optimizer_shard(shape: Tuple[int, ...]) -> Layout:
    if len(shape) == 1:
        return Layout((8,), ((),))
    return Layout((8,), ((), ()), 1, 8)


def _model_parallel(shape: Tuple[int, ...]) -> Layout:
    return Layout((1, 4), _cut(shape))


def _both(shape: Tuple[int, ...]) -> Layout:
    if len(shape) == 1:
        return Layout((2, 2), ((),))
    return Layout((2, 2), _cut(shape), 2, 2)


def _cut(shape: Tuple[int, ...]) -> Tuple[Tuple[int, ...], ...]:
    """Wide matrices are cut along their input, the others along their output."""
    if len(shape) == 1:
        return ((),)
    return ((), (0,)) if shape[1] > shape[0] else ((0,), ())


LAYOUTS: Mapping[str, Callable[[Tuple[int, ...]], Layout]] = {
    "opt8": _optimizer_shard,
    "mp4": _model_parallel,
    "dp2mp2opt": _both,
}


def parameters(nbytes: float) -> Parameters:
    """GLM2's parameters at about this size: whole in float16 from 12 GB on, else fewer layers of
    a narrower model with float32 Adam moments."""
    if nbytes > 12e9:
        return _weights(28, GLM2_HIDDEN, GLM2_FFN, GLM2_VOCABULARY)
    narrow = (1024, 3424, 8192) if nbytes < 4e9 else (2048, 6848, 8192)
    layers = 1
    while _bytes(_weights(layers, *narrow)) * FLOAT32_MOMENTS < nbytes:
        layers += 1
    weights = _weights(layers, *narrow)
    model = dict(weights)
    for prefix in ("adam_m.", "adam_v."):
        model.update({prefix + name: ("Float32", shape) for name, (_, shape) in weights.items()})
    return model


def _bytes(model: Parameters) -> int:
    return sum(tensor_bytes(*kind) for kind in model.values())


def _weights(layers: int, hidden: int, ffn: int, vocabulary: int) -> Parameters:
    shapes: Dict[str, Tuple[int, ...]] = {"embedding": (vocabulary, hidden)}
    for layer in range(layers):
        shapes[f"layers.{layer}.qkv"] = (hidden + hidden // 8, hidden)
        shapes[f"layers.{layer}.dense"] = (hidden, hidden)
        shapes[f"layers.{layer}.up"] = (2 * ffn, hidden)
        shapes[f"layers.{layer}.down"] = (hidden, ffn)
        shapes[f"layers.{layer}.norm"] = (hidden,)
    shapes["output"] = (vocabulary, hidden)
    return {name: ("Float16", shape) for name, shape in shapes.items()}


def make_set(
    root: Path, nbytes: float, layout_of: Callable[[Tuple[int, ...]], Layout], *, crc: bool
) -> None:
    """Write ``checkpoint/rank_N`` and ``strategy`` below ``root``; replicas are equal."""
    model = parameters(nbytes)
    layouts = {name: layout_of(shape) for name, (_, shape) in model.items()}
    strategy = Strategy((layouts,), next(iter(layouts.values())).ranks)
    (root / "strategy").mkdir()
    (root / "strategy" / "ckpt_strategy_rank_0.ckpt").write_bytes(strategy_bytes(strategy, 0))
    noise = np.random.default_rng(1).bytes(32 << 20)
    for rank in range(strategy.stage_ranks):
        _write_shard(root, rank, model, layouts, memoryview(noise), crc=crc)


def _write_shard(
    root: Path,
    rank: int,
    model: Parameters,
    layouts: Mapping[str, Layout],
    noise: memoryview,
    *,
    crc: bool,
) -> None:
    new = []
    for name, (dtype, shape) in model.items():
        piece = layouts[name].piece_shape(shape)
        new.append(NewTensor(name, dtype, piece, tensor_bytes(dtype, piece)))
    layout = ckpt_layout(new)
    path = root / "checkpoint" / f"rank_{rank}" / f"glm2_rank_{rank}-1_4.ckpt"
    path.parent.mkdir(parents=True)
    checksum = 0
    with path.open("wb") as file:
        for (_, header), tensor in zip(layout.fixed, new):
            # Equal slices must have equal bytes, different ones different bytes.
            seed = hash((tensor.name, layouts[tensor.name].position(rank))) % (16 << 20) & ~7
            parts = [memoryview(header)]
            left = tensor.nbytes
            while left:
                parts.append(noise[seed : seed + left])
                left -= len(parts[-1])
                seed = 0
            for part in parts:
                file.write(part)
                checksum = _crc32(part, checksum) if crc else 0
        if crc:
            file.write(crc_trailer(checksum))


def _crc32(data: memoryview, value: int) -> int:
    import zlib

    return zlib.crc32(data, value)


# The contestants

DISK_ALONE = """
import sys
from pathlib import Path
from orchestrator.checkpoints.newfile import new_file, write
size = sum(file.stat().st_size for file in Path(sys.argv[1]).glob("*/*"))
block = memoryview(bytes(1 << 20))
Path(sys.argv[2]).mkdir()
with new_file(Path(sys.argv[2]) / "file", size) as descriptor:
    for at in range(0, size, len(block)):
        write(descriptor, block[: size - at], at)
"""

DURABLE_CP = 'cp -r "$1/checkpoint" "$2" && sync "$2"/*/*'


def contestants(root: Path, out: Path, *, with_mindspore: bool) -> Dict[str, List[str]]:
    """Command lines. MindSpore's prints its own seconds."""
    ours = [
        *(sys.executable, "-m", "orchestrator.cli.main", "merge-ckpt"),
        *("--src_ckpt_dir", str(root / "checkpoint")),
        *("--src_ckpt_strategy", str(root / "strategy")),
        *("--dst_ckpt_dir", str(out)),
    ]
    found = {
        "cp": ["cp", "-r", str(root / "checkpoint"), str(out)],
        "cp, then sync": ["sh", "-c", DURABLE_CP, "sh", str(root), str(out)],
        OURS: ours,
        "glm2-orch merge-ckpt --no-sync": [*ours, "--no-sync"],
        "glm2-orch merge-ckpt --format safetensors": [*ours, "--format", "safetensors"],
        "the disk alone": [sys.executable, "-c", DISK_ALONE, str(root / "checkpoint"), str(out)],
    }
    if with_mindspore:
        strategy = root / "strategy" / "ckpt_strategy_rank_0.ckpt"
        program = (
            "import time, mindspore as ms\n"
            "begin = time.monotonic()\n"
            f"ms.transform_checkpoints({str(root / 'checkpoint')!r}, {str(out)!r}, 'm',"
            f" {str(strategy)!r})\n"
            "print('seconds', time.monotonic() - begin)\n"
        )
        found["MindSpore transform_checkpoints"] = [sys.executable, "-c", program]
    return found


Sample = Tuple[float, int]
"""Seconds, and peak bytes of anonymous memory."""


def measure(root: Path, rounds: int, *, with_mindspore: bool) -> Dict[str, List[Sample]]:
    out = root / "out"
    samples: Dict[str, List[Sample]] = {}
    for file in (root / "checkpoint").glob("*/*"):
        file.read_bytes()
    os.sync()
    for number in range(rounds):
        for name, argv in contestants(root, out, with_mindspore=with_mindspore).items():
            if "MindSpore" in name and number >= 2:
                continue  # it is slow, and steady
            samples.setdefault(name, []).append(_run(argv))
            shutil.rmtree(out)
            os.sync()
    return samples


def _run(argv: Sequence[str]) -> Sample:
    begin = time.monotonic()
    with tempfile.TemporaryFile() as log:
        # Modules compiled once, as in an installation.
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        process = subprocess.Popen(argv, stdout=log, stderr=log, env=env)
        peak = _Peak(process.pid)
        status = process.wait()
        seconds = time.monotonic() - begin
        log.seek(0)
        text = log.read().decode(errors="replace")
    if status != 0:
        raise SystemExit(f"{argv[0]} failed:\n{text}")
    told = [line.split()[1] for line in text.splitlines() if line.startswith("seconds ")]
    return (float(told[0]) if told else seconds), peak.value()


class _Peak:
    """Watches the anonymous memory of a process."""

    def __init__(self, pid: int) -> None:
        self._peak = 0
        self._status = Path(f"/proc/{pid}/status")
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def value(self) -> int:
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while (now := self._look()) is not None:
            self._peak = max(self._peak, now)
            time.sleep(0.01)

    def _look(self) -> Optional[int]:
        try:
            lines = self._status.read_text().splitlines()
        except OSError:
            return None
        found = [line for line in lines if line.startswith("RssAnon:")]
        return int(found[0].split()[1]) << 10 if found else None


def table(title: str, samples: Mapping[str, Sequence[Sample]]) -> Table:
    shown = Table(title=title)
    for heading in ("", "median s", "min to max", "x cp", "peak anonymous MiB"):
        shown.add_column(heading, justify="left" if not heading else "right")
    base = median(seconds for seconds, _ in samples["cp"])
    ours = median(seconds for seconds, _ in samples[OURS])
    for name, runs in samples.items():
        times = sorted(seconds for seconds, _ in runs)
        middle = median(times)
        figure(title, name, f"{middle:.2f} s", middle / ours)
        peak = max(memory for _, memory in runs) / 2**20
        spread = f"{times[0]:.2f} to {times[-1]:.2f}"
        shown.add_row(name, f"{middle:.2f}", spread, f"{middle / base:.2f}", f"{peak:.0f}")
    return shown


if __name__ == "__main__":
    sys.exit(main())
