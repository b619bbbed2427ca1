"""Collecting a checkpoint from 12 hosts: ours beside rsync and tar over ssh, in one run.

    python -m benchmarks.collect [--hosts 12] [--files 8] [--mib 20] [--rounds 5] [--dir DIR]

The hosts are real sshd servers on 127.0.1.1 and up, each with ``--files`` checkpoint files of
``--mib`` MiB, all different, in the page cache. In each round every contestant fetches all of them
once, in a process of its own (ours with the start of Python in it) into an empty folder; the disk
is synced in between. Ours and ``rsync --fsync`` have them on the disk when they end, the others
need not. Shown are medians of MB/s and of the client's CPU seconds (itself and its ssh), and ratios
to ``rsync -a``. ``--stream`` merges while it collects, ``--merge`` afterwards.
"""

from __future__ import annotations

import argparse
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Callable, Dict, List, Mapping, NamedTuple, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.figures import absent, figure
from orchestrator.checkpoints.layout import Layout
from orchestrator.checkpoints.mindspore_ckpt import ckpt_layout
from orchestrator.checkpoints.strategy import Strategy, strategy_bytes
from orchestrator.checkpoints.tensor import NewTensor
from tests.cluster.recorded import RUN_ID, record_run, run_dir
from tests.cluster.sshd import Loopback

OURS = "collect-ckpt"
PEER = "rsync -a"
TENSORS = 20
"""Parameters in a file: each is one twentieth of it."""


class Sample(NamedTuple):
    seconds: float
    cpu_s: float


Contestant = Callable[[Path], Sequence[Sequence[str]]]
"""Given an empty folder, the commands that fill it, to be run at once."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.collect",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hosts", type=int, default=12)
    parser.add_argument("--files", type=int, default=8, help="a host")
    parser.add_argument("--mib", type=int, default=20, help="a file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="where to work; needs three times the size")
    parser.add_argument("--only", help="contestants whose names hold this, and rsync -a")
    options = parser.parse_args()
    console = Console()
    nbytes = options.hosts * options.files * (options.mib << 20)
    with tempfile.TemporaryDirectory(dir=options.dir, prefix="collect-") as folder:
        root = Path(folder)
        with Loopback(root / "hosts", options.hosts) as cluster:
            make_checkpoint(cluster, options.files, options.mib << 20)
            record_run(root / "home", cluster.hosts, options.files)
            field = contestants(cluster, root / "home")
            if shutil.which("rsync") is None:
                absent("rsync")
            if options.only:
                field = {n: c for n, c in field.items() if options.only in n or n == PEER}
            samples = measure(field, root / "out", options.rounds)
    title = f"{options.hosts} hosts, {options.hosts * options.files} files of {options.mib} MiB"
    console.print(table(f"{title}, {options.rounds} rounds", nbytes, samples))
    return 0


def make_checkpoint(cluster: Loopback, files: int, size: int) -> None:
    """One step of an optimizer-sharded set, cut over all hosts: every file is needed."""
    ranks = len(cluster.hosts) * files
    rows = max(1, size // TENSORS // 4096)
    layout = Layout((ranks,), ((), ()), 1, ranks)
    names = [f"layers.{number}.weight" for number in range(TENSORS)]
    strategy = strategy_bytes(Strategy((dict.fromkeys(names, layout),), ranks), 0)
    new = [NewTensor(name, "Float16", (rows, 2048), rows * 4096) for name in names]
    laid = ckpt_layout(new)
    noise = np.random.default_rng(1)
    for rank in range(ranks):
        output = run_dir(cluster.hosts[rank // files]) / "output"
        path = output / "checkpoint" / f"rank_{rank}" / f"glm2_rank_{rank}-1_4.ckpt"
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            for (_, header), tensor in zip(laid.fixed, new):
                file.write(header)
                file.write(noise.bytes(tensor.nbytes))
        (output / "strategy").mkdir(exist_ok=True)
        (output / "strategy" / "ckpt_strategy_rank_0.ckpt").write_bytes(strategy)
    os.sync()


def contestants(cluster: Loopback, home: Path) -> Dict[str, Contestant]:
    """Name → the commands."""
    ssh = [
        "ssh",
        *("-F", "none", "-p", str(cluster.port)),
        f"-oUserKnownHostsFile={cluster.known_hosts}",
        f"-oIdentityFile={cluster.key}",
        "-oIdentitiesOnly=yes",
        "-oBatchMode=yes",
        "-oKexAlgorithms=curve25519-sha256",
    ]
    shell = shlex.join(ssh)
    sources = {host.address: f"{run_dir(host)}/output/" for host in cluster.hosts}

    def ours(*more: str) -> Contestant:
        def command(out: Path) -> Sequence[Sequence[str]]:
            # Modules compiled once, as in an installation.
            env = ["env", "-u", "PYTHONDONTWRITEBYTECODE", f"GLM2_ORCH_HOME={home}"]
            program = [sys.executable, "-m", "orchestrator.cli.main", "collect-ckpt", RUN_ID]
            return [[*env, *program, "--out", str(out), *more]]

        return command

    def rsync(*more: str) -> Contestant:
        return lambda out: [
            ["rsync", "-a", *more, "-e", shell, f"{address}:{path}", f"{out}/{address}/"]
            for address, path in sources.items()
        ]

    def tar(out: Path) -> Sequence[Sequence[str]]:
        fast = shlex.join([*ssh, "-c", "aes128-gcm@openssh.com"])
        return [
            ["sh", "-c", f"{fast} {address} 'tar -C {path} -cf - .' | tar -C {out} -xf -"]
            for address, path in sources.items()
        ]

    found: Dict[str, Contestant] = {
        OURS: ours(),
        "collect-ckpt --transfer paramiko": ours("--transfer", "paramiko"),
        "collect-ckpt --merge --stream": ours("--merge", "--stream"),
        "collect-ckpt --merge": ours("--merge"),
        "ssh tar | tar, not verified": tar,
    }
    if shutil.which("rsync"):
        found = {PEER: rsync(), "rsync -a --fsync": rsync("--fsync"), **found}
        found[f"{PEER}, aes128-gcm"] = lambda out: [
            ["rsync", "-a", "-e", f"{shell} -c aes128-gcm@openssh.com", f"{a}:{p}", f"{out}/{a}/"]
            for a, p in sources.items()
        ]
    return found


def measure(field: Mapping[str, Contestant], out: Path, rounds: int) -> Dict[str, List[Sample]]:
    samples: Dict[str, List[Sample]] = {}
    for _ in range(rounds):
        for name, commands in field.items():
            out.mkdir()
            os.sync()
            samples.setdefault(name, []).append(_run(commands(out)))
            shutil.rmtree(out)
    return samples


def _run(commands: Sequence[Sequence[str]]) -> Sample:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    with tempfile.TemporaryFile() as log:
        running = [subprocess.Popen(command, stdout=log, stderr=log) for command in commands]
        failed = [process.args for process in running if process.wait() != 0]
        seconds = time.monotonic() - begin
        log.seek(0)
        if failed:
            raise SystemExit(f"{failed[0]} failed:\n{log.read().decode(errors='replace')}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Sample(seconds, cpu)


def table(title: str, nbytes: int, samples: Mapping[str, Sequence[Sample]]) -> Table:
    shown = Table(title=title)
    for heading in ("", "MB/s", "seconds", "min to max", "client CPU s", "MB/s x", "CPU x"):
        shown.add_column(heading, justify="left" if not heading else "right")
    peer = samples.get(PEER, next(iter(samples.values())))
    base = median(sample.seconds for sample in peer)
    base_cpu = median(sample.cpu_s for sample in peer)
    ours = median(sample.seconds for sample in samples.get(OURS, peer))
    for name, runs in samples.items():
        times = sorted(sample.seconds for sample in runs)
        seconds, cpu = median(times), median(sample.cpu_s for sample in runs)
        figure(title, name, f"{nbytes / 1e6 / seconds:.0f} MB/s", seconds / ours)
        shown.add_row(
            name,
            f"{nbytes / 1e6 / seconds:.0f}",
            f"{seconds:.2f}",
            f"{times[0]:.2f} to {times[-1]:.2f}",
            f"{cpu:.2f}",
            f"{base / seconds:.2f}",
            f"{cpu / base_cpu:.2f}",
        )
    return shown


if __name__ == "__main__":
    sys.exit(main())
