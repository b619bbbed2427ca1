"""Time to bring one folder to N hosts: the tree of ``stage``, against N × scp and rsync from here.

    python -m benchmarks.stage --hosts 2 4 8 12 --mib 64

Hosts are sshd servers on loopback addresses of this machine, so that all copies share its cores and
disk: only the ratios of one run carry over, and the number of bytes that leave the controller,
which is what a real network bounds. Shown are medians.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Callable, Dict, List, Sequence, Tuple

from rich.console import Console
from rich.table import Table

from benchmarks.figures import absent, figure
from orchestrator.engine.hosts import connected
from orchestrator.engine.manifests import Manifest, read_source
from orchestrator.engine.staging import stage_files
from orchestrator.inventory import Host
from orchestrator.stage_options import parse_stage
from tests.cluster.sshd import Loopback

OURS = "stage"
_PEERS: Dict[str, List[str]] = {"scp": ["scp", "-O", "-q", "-r"], "rsync": ["rsync", "-a"]}

Samples = Dict[str, List[float]]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hosts", type=int, nargs="+", default=[2, 4, 8, 12])
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for tool in _PEERS:
        if shutil.which(tool) is None:
            absent(tool)
    with tempfile.TemporaryDirectory(prefix="glm2-orch-bench-") as folder:
        for count in options.hosts:
            samples, copies = measure(Path(folder), count, options)
            title = f"{options.mib} MiB to {count} hosts, {options.rounds} rounds"
            Console().print(table(title, samples, {OURS: copies}))
    return 0


def table(title: str, samples: Samples, copies: Dict[str, float]) -> Table:
    """``copies``: how many times the files left the controller, by contestant; the others send
    one to each host."""
    shown = Table(title=title)
    for heading in ("", "seconds", "min to max", "x stage", "copies from the controller"):
        shown.add_column(heading, justify="left" if not heading else "right")
    ours = median(samples[OURS])
    for name, taken in samples.items():
        seconds = median(taken)
        figure(title, name, f"{seconds:.2f} s", seconds / ours)
        shown.add_row(
            name,
            f"{seconds:.2f}",
            f"{min(taken):.2f} to {max(taken):.2f}",
            f"{seconds / ours:.2f}",
            f"{copies[name]:.2f}" if name in copies else "one a host",
        )
    return shown


def measure(folder: Path, count: int, options: argparse.Namespace) -> Tuple[Samples, float]:
    """Seconds of all ways, interleaved, and how many copies left us by ``stage``."""
    source = folder / f"data-{count}"
    source.mkdir()
    (source / "weights.bin").write_bytes(os.urandom(options.mib << 20))
    [item] = parse_stage([str(source)], "/").items
    times: Samples = {}
    sent = 0
    with Loopback(folder / f"loopback-{count}", count) as cluster:
        manifest = read_source(item, folder / "cache")
        ways: Dict[str, Callable[[], None]] = {
            name: partial(copy, cluster, source, command)
            for name, command in _PEERS.items()
            if shutil.which(name)
        }
        for _ in range(options.rounds):
            begun = time.perf_counter()
            sent = tree(cluster.hosts, manifest)
            times.setdefault(OURS, []).append(time.perf_counter() - begun)
            clean(cluster.hosts)
            for name, way in ways.items():
                begun = time.perf_counter()
                way()
                times.setdefault(name, []).append(time.perf_counter() - begun)
                clean(cluster.hosts)
    return times, sent / manifest.bytes


def tree(hosts: Sequence[Host], manifest: Manifest) -> int:
    """Bytes that left the controller."""
    with connected(hosts) as transports:
        outcomes = stage_files(hosts, transports, [manifest])
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return sum(outcome.value.from_controller for outcome in outcomes if outcome.value)


def copy(cluster: Loopback, source: Path, command: List[str]) -> None:
    """The same folder to all hosts at once by a program of the system."""
    running = []
    for host in cluster.hosts:
        Path(host.workdir).mkdir(parents=True, exist_ok=True)
        ssh = f"-oIdentityFile={host.ssh.key} -oUserKnownHostsFile={host.ssh.known_hosts}"
        words = [*ssh.split(), "-oCiphers=aes128-gcm@openssh.com", f"-oPort={host.ssh.port}"]
        how = words if command[0] == "scp" else ["-e", " ".join(["ssh", *words])]
        target = f"{host.ssh.user}@{host.address}:{host.workdir}/"
        running.append(subprocess.Popen([*command, *how, str(source), target]))
    statuses = [process.wait() for process in running]
    if any(statuses):
        sys.exit(f"{command[0]} failed")


def clean(hosts: Sequence[Host]) -> None:
    for host in hosts:
        shutil.rmtree(host.workdir, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
