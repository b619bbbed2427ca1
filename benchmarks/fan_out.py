"""One short command on N hosts over SSH: our pool beside the tools people use, in one run; and all
supervisors armed, which is what a launch does.

    python -m benchmarks.fan_out [--hosts 12,64,200] [--rounds 5]

The hosts are real sshd servers on 127.0.1.1 and up. In each round every contestant runs once, so
that they share the machine's moods; shown are medians of wall time and of the client's CPU time,
and the ratio to our pool in a fresh process. pdsh and clush take part where they are installed,
32 at a time and with the same key exchange as ours, pdsh also with ssh's default one; the plain
loop over ssh only with up to 12 hosts.

Arming starts a Python on each host, and all hosts of a loopback cluster share this machine's cores.
Its peer is tuned paramiko alone: a connection a host with the fastest key exchange and one key, 32
at a time, running one command: ``true``, and Python that does nothing, or the least that arming
could do: fork and answer.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Callable, Dict, List, Sequence, Tuple

import paramiko
from rich.console import Console
from rich.table import Table

from benchmarks.figures import absent, figure
from orchestrator.engine import payload
from orchestrator.engine.hosts import on_all
from orchestrator.engine.supervisor import Supervisor
from orchestrator.inventory import Host, load_inventory
from orchestrator.transport.base import RemoteFile, Transport
from orchestrator.transport.pool import connect, fan_out
from tests.cluster.sshd import Loopback

AT_ONCE = 32
LOOP_AT_MOST = 12
OURS = "our pool, fresh process"
LEAST = "import os; os.fork() or os._exit(0); print('{}')"
"""What arming cannot do without: a process in the background, and an answer."""

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
            absent(tool)
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
    armed = Arming(cluster)
    python = cluster.hosts[0].python
    ours = [sys.executable, "-m", "benchmarks.fan_out", "--once", str(cluster.inventory())]
    runs: Dict[str, Contestant] = {
        OURS: lambda: _run(ours),
        "our pool, within a process": lambda: _run_ours(cluster.hosts),
        "our pool, connections kept": lambda: _ask(warm),
        "all supervisors armed": armed,
        "tuned paramiko, python3 that forks": lambda: _paramiko(
            cluster, [python, "-S", "-c", LEAST]
        ),
        "tuned paramiko, python3 -c pass": lambda: _paramiko(cluster, [python, "-S", "-c", "pass"]),
        "tuned paramiko, true": lambda: _paramiko(cluster, ["true"]),
    }
    if shutil.which("ssh") and len(addresses) <= LOOP_AT_MOST:
        runs["ssh in a loop"] = lambda: _loop([["ssh", *options, a, "true"] for a in addresses])
    if shutil.which("pdsh"):
        command = ["pdsh", "-S", "-R", "ssh", "-f", str(AT_ONCE), "-w", ",".join(addresses), "true"]
        runs["pdsh"] = lambda: _run(command, PDSH_SSH_ARGS_APPEND=" ".join(options))
        plain = " ".join(option for option in options if "Kex" not in option)
        runs["pdsh, default key exchange"] = lambda: _run(command, PDSH_SSH_ARGS_APPEND=plain)
    if shutil.which("clush"):
        flat = " ".join(options)
        nodes = ",".join(addresses)
        clush = ["clush", "-q", "-S", "-f", str(AT_ONCE), "-o", flat, "-w", nodes, "true"]
        runs["clush"] = lambda: _run(clush)
    return runs


class Arming:
    """Arms a supervisor on every host over new connections. Files are there before, and what was
    armed is ended, outside the measure: see ``prepare`` and ``clean``."""

    def __init__(self, cluster: Loopback) -> None:
        self._hosts = cluster.hosts
        self._kept = {host.name: connect(host) for host in cluster.hosts}
        self._round = 0

    def prepare(self) -> None:
        self._round += 1
        on_all(self._kept, "sending", self._send)

    def __call__(self) -> None:
        transports = {host.name: connect(host) for host in self._hosts}
        on_all(transports, "arming", lambda t: self._supervisor(t).arm())
        for transport in transports.values():
            transport.close()

    def clean(self) -> None:
        on_all(self._kept, "stopping", lambda t: self._supervisor(t).stop("measured", grace_s=0.0))

    def _send(self, transport: Transport) -> None:
        host = self._host(transport)
        spec = {
            "schema": 1,
            "run_id": f"armed-{self._round}",
            "host": host.name,
            "workdir": host.workdir,
            "grace_s": 1.0,
            "heartbeat_s": 1.0,
            "leases": [f"device_{device}" for device in host.devices],
            "processes": [{"name": "rank_0", "rank": 0, "argv": ["true"]}],
        }
        files = [*payload.node_files(), RemoteFile("spec.json", json.dumps(spec).encode())]
        transport.put(files, self._folder(host))

    def _supervisor(self, transport: Transport) -> Supervisor:
        host = self._host(transport)
        return Supervisor(transport, host.python, self._folder(host))

    def _host(self, transport: Transport) -> Host:
        return next(host for host in self._hosts if host.name == transport.name)

    def _folder(self, host: Host) -> str:
        return f"{host.workdir}/runs/armed-{self._round}"


def measure(runs: Dict[str, Contestant], rounds: int) -> Dict[str, List[Sample]]:
    """(wall seconds, client CPU seconds) of each contestant in each round."""
    samples: Dict[str, List[Sample]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            if isinstance(run, Arming):
                run.prepare()
            cpu, started = _cpu_seconds(), time.perf_counter()
            run()
            wall = time.perf_counter() - started
            samples[name].append((wall, _cpu_seconds() - cpu))
            if isinstance(run, Arming):
                run.clean()
    return samples


def table(count: int, rounds: int, samples: Dict[str, List[Sample]]) -> Table:
    result = Table("", "wall s", "CPU s", "wall ratio", title=f"{count} hosts, {rounds} rounds")
    reference = median(wall for wall, _ in samples[OURS])
    for name, taken in samples.items():
        wall, cpu = (median(column) for column in zip(*taken))
        figure(f"{count} hosts", name, f"{wall:.2f} s", wall / reference)
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


def _paramiko(cluster: Loopback, command: Sequence[str]) -> None:
    """The command on every host by paramiko alone, as fast as it can be made."""
    key = paramiko.Ed25519Key.from_private_key_file(str(cluster.key))

    def one(host: Host) -> None:
        with socket.create_connection((host.address, cluster.port)) as wire:
            transport = paramiko.Transport(wire)
            transport.get_security_options().kex = ("curve25519-sha256@libssh.org",)
            transport.start_client()
            transport.auth_publickey(host.ssh.user, key)
            channel = transport.open_session()
            channel.exec_command(shlex.join(command))
            if channel.recv_exit_status() != 0:
                raise SystemExit(f"{host.name}: {command} failed")
            transport.close()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, cluster.hosts))


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
