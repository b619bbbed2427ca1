"""One short command on N hosts over SSH: our pool beside the tools people use, in one run.

    python -m benchmarks.fan_out [--hosts 12,64,200] [--rounds 5]

The hosts are real sshd servers on 127.0.1.1 and up. In each round every contestant runs once, so
that they share the machine's moods; shown are medians of wall time and of the client's CPU time,
and the ratio to our pool in a fresh process. pdsh and clush take part where they are installed,
32 at a time and with the same key exchange as ours; the plain loop over ssh only with up to 12
hosts.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Callable, Dict, List, Sequence, Tuple

from rich.console import Console
from rich.table import Table

from orchestrator.inventory import Host, load_inventory
from orchestrator.transport.base import Transport
from orchestrator.transport.pool import connect, fan_out
from tests.cluster.sshd import Loopback

AT_ONCE = 32
LOOP_AT_MOST = 12
OURS = "our pool, fresh process"

Contestant = Callable[[], None]
Sample = Tuple[float, float]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fan_out", description=__doc__)
    parser.add_argument("--hosts", default="12,64,200")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", type=Path, metavar="INVENTORY", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once:
        inventory = load_inventory(options.once, default_python=sys.executable, home=Path.home())
        _run_ours(inventory.hosts)
        return 0
    console = Console()
    for tool in ("ssh", "pdsh", "clush"):
        if shutil.which(tool) is None:
            console.print(f"{tool} is not installed and does not take part")
    for count in map(int, options.hosts.split(",")):
        with tempfile.TemporaryDirectory() as folder, Loopback(Path(folder), count) as cluster:
            samples = measure(contestants(cluster), options.rounds)
        console.print(table(count, options.rounds, samples))
    return 0


def contestants(cluster: Loopback) -> Dict[str, Contestant]:
    """Name → something that runs ``true`` once on every host."""
    addresses = [host.address for host in cluster.hosts]
    options = [
        f"-oUserKnownHostsFile={cluster.known_hosts}",
        f"-oIdentityFile={cluster.key}",
        f"-oPort={cluster.port}",
        "-oIdentitiesOnly=yes",
        "-oKexAlgorithms=curve25519-sha256",
    ]
    warm = [connect(host) for host in cluster.hosts]
    ours = [sys.executable, "-m", "benchmarks.fan_out", "--once", str(cluster.inventory_yaml())]
    runs: Dict[str, Contestant] = {
        OURS: lambda: _run(ours),
        "our pool, within a process": lambda: _run_ours(cluster.hosts),
        "our pool, connections kept": lambda: _ask(warm),
    }
    if shutil.which("ssh") and len(addresses) <= LOOP_AT_MOST:
        runs["ssh in a loop"] = lambda: _loop([["ssh", *options, a, "true"] for a in addresses])
    if shutil.which("pdsh"):
        command = ["pdsh", "-S", "-R", "ssh", "-f", str(AT_ONCE), "-w", ",".join(addresses), "true"]
        runs["pdsh"] = lambda: _run(command, PDSH_SSH_ARGS_APPEND=" ".join(options))
    if shutil.which("clush"):
        flat = " ".join(options)
        nodes = ",".join(addresses)
        clush = ["clush", "-q", "-S", "-f", str(AT_ONCE), "-o", flat, "-w", nodes, "true"]
        runs["clush"] = lambda: _run(clush)
    return runs


def measure(runs: Dict[str, Contestant], rounds: int) -> Dict[str, List[Sample]]:
    """(wall seconds, client CPU seconds) of each contestant in each round."""
    samples: Dict[str, List[Sample]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            cpu, started = _cpu_seconds(), time.perf_counter()
            run()
            wall = time.perf_counter() - started
            samples[name].append((wall, _cpu_seconds() - cpu))
    return samples


def table(count: int, rounds: int, samples: Dict[str, List[Sample]]) -> Table:
    result = Table("", "wall s", "CPU s", "wall ratio", title=f"{count} hosts, {rounds} rounds")
    reference = median(wall for wall, _ in samples[OURS])
    for name, taken in samples.items():
        wall, cpu = (median(column) for column in zip(*taken))
        result.add_row(name, f"{wall:.2f}", f"{cpu:.2f}", f"{wall / reference:.2f}")
    return result


def _run_ours(hosts: Sequence[Host]) -> None:
    transports = [connect(host) for host in hosts]
    _ask(transports)
    for transport in transports:
        transport.close()


def _ask(transports: Sequence[Transport]) -> None:
    for outcome in fan_out(transports, lambda t: t.run(["true"]), limit=AT_ONCE):
        if outcome.error is not None or outcome.value is None or not outcome.value.ok:
            raise SystemExit(f"{outcome.host}: {outcome.error or outcome.value}")


def _run(command: Sequence[str], **environment: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, env={**os.environ, **environment})


def _loop(commands: Sequence[Sequence[str]]) -> None:
    for command in commands:
        _run(command)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


if __name__ == "__main__":
    sys.exit(main())
