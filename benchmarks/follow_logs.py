"""The logs of 96 ranks on 12 hosts followed live over SSH: ours beside ``tail -F`` over paramiko.

    python -m benchmarks.follow_logs [--hosts 12] [--ranks 8] [--rate 200] [--seconds 20]
                                     [--rounds 3]

The hosts are real sshd servers on 127.0.1.1 and up. One process writes all logs, a line a rank
every 1/RATE seconds, each with the time of its writing; it stands for the ranks, which would take
the two cores of a small machine by themselves. In each round both contestants follow such a writer,
each in a process of its own, one after the other; in the middle the connections of three hosts are
cut.

Latency is from the writing of a line to its being on the controller's disk and shown (ours), or in
the reader's hands (tail). Lines written within three seconds after the cut are left out of the
latencies, and counted for loss and doubling. CPU is that of the following process alone, in per
cent of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import paramiko
from rich.console import Console
from rich.table import Table

from benchmarks.figures import figure
from orchestrator.engine import payload
from orchestrator.engine.follow import follow
from orchestrator.engine.hosts import connected, on_all, on_each
from orchestrator.engine.reader import HostRun
from orchestrator.engine.supervisor import Supervisor
from orchestrator.errors import OrchError
from orchestrator.inventory import Host, load_inventory
from orchestrator.runs.journal import Journal
from orchestrator.runs.layout import RunPaths
from orchestrator.transport.base import RemoteFile, Transport
from tests.cluster.sshd import Loopback

RUN = "followed"
CUT_HOSTS = 3
CUT_SHADOW_S = 3.0
LINE_BYTES = 120
TEXT = "train loss 2.3456, learning rate 4.8e-05, 812.3 tokens/s/p, scale 65536, "

Chunk = Tuple[float, str, bytes]
"""When it arrived (monotonic), of which rank, its bytes."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.follow_logs", description=__doc__)
    parser.add_argument("--hosts", type=int, default=12)
    parser.add_argument("--ranks", type=int, default=8, help="of each host")
    parser.add_argument("--rate", type=int, default=200, help="lines a second of each rank")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--follow", choices=sorted(FOLLOWERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.follow:
        return _follower(options)
    results: Dict[str, List[Dict[str, float]]] = {name: [] for name in FOLLOWERS}
    with tempfile.TemporaryDirectory() as folder, Loopback(Path(folder), options.hosts) as cluster:
        cluster.inventory()
        for number in range(options.rounds):
            for name in FOLLOWERS:
                results[name].append(measure(cluster, f"{RUN}-{number}-{name}", name, options))
    Console().print(table(results, options))
    return 0


def table(results: Mapping[str, Sequence[Mapping[str, float]]], options: Any) -> Table:
    ranks = options.hosts * options.ranks
    title = (
        f"{ranks} ranks × {options.rate} lines/s, {options.rounds} rounds of {options.seconds:g} s"
    )
    ours = median(one["p50"] for one in results["ours"])
    shown = Table("", "p50 ms", "p99 ms", "CPU %", "lost", "doubled", "lines", title=title)
    for name, taken in results.items():
        middle = {key: median(one[key] for one in taken) for key in taken[0]}
        figure(title, LABELS[name], f"p50 {middle['p50'] * 1e3:.0f} ms", middle["p50"] / ours)
        shown.add_row(
            LABELS[name],
            f"{middle['p50'] * 1e3:.0f}",
            f"{middle['p99'] * 1e3:.0f}",
            f"{middle['cpu'] * 100:.1f}",
            f"{max(one['lost'] for one in taken):.0f}",
            f"{max(one['doubled'] for one in taken):.0f}",
            f"{middle['lines']:.0f}",
        )
    return shown


def measure(cluster: Loopback, run: str, name: str, options: Any) -> Dict[str, float]:
    """One contestant follows one writer."""
    ranks = {
        host.name: [index * options.ranks + slot for slot in range(options.ranks)]
        for index, host in enumerate(cluster.hosts)
    }
    folder = cluster.folder / run
    folder.mkdir()
    with connected(cluster.hosts) as transports:
        _arm(cluster.hosts, transports, run, ranks)
        command = [sys.executable, "-m", "benchmarks.follow_logs", "--follow", name]
        command += ["--folder", str(folder), "--hosts", str(options.hosts)]
        command += ["--ranks", str(options.ranks)]
        follower = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert follower.stdout is not None
            assert follower.stdin is not None
            follower.stdout.readline()  # it follows
            cut_at = _write(cluster, run, ranks, options)
            time.sleep(2.0)  # what is under way arrives
            follower.stdin.close()
            follower.wait(timeout=60)
        finally:
            follower.kill()
            follower.wait()
        _stop(cluster.hosts, transports, run)
    return _judge(cluster, run, ranks, folder, cut_at)


def _arm(
    hosts: Sequence[Host],
    transports: Mapping[str, Transport],
    run: str,
    ranks: Mapping[str, Sequence[int]],
) -> None:
    by_name = {host.name: host for host in hosts}

    def arm(transport: Transport) -> None:
        host = by_name[transport.name]
        processes = [
            {"name": f"rank_{rank}", "rank": rank, "argv": ["sleep", "3600"]}
            for rank in ranks[host.name]
        ]
        spec = {
            "schema": 1,
            "run_id": run,
            "host": host.name,
            "workdir": host.workdir,
            "grace_s": 1.0,
            "heartbeat_s": 1.0,
            "leases": [],
            "processes": processes,
        }
        files = [*payload.node_files(), RemoteFile("spec.json", json.dumps(spec).encode())]
        transport.put(files, _run_dir(host, run))
        supervisor = Supervisor(transport, host.python, _run_dir(host, run))
        supervisor.arm()
        supervisor.start()

    on_all(transports, "arming", arm)


def _stop(hosts: Sequence[Host], transports: Mapping[str, Transport], run: str) -> None:
    by_name = {host.name: host for host in hosts}

    def stop(transport: Transport) -> None:
        host = by_name[transport.name]
        Supervisor(transport, host.python, _run_dir(host, run)).stop("measured", grace_s=0.0)

    for outcome in on_each(transports, "stopping", stop):
        if outcome.error is not None:
            raise outcome.error


def _write(cluster: Loopback, run: str, ranks: Mapping[str, Sequence[int]], options: Any) -> float:
    """Write all logs at their rate; returns the time of the cut."""
    logs = {
        rank: os.open(_log(host, run, rank), os.O_WRONLY | os.O_APPEND)
        for host in cluster.hosts
        for rank in ranks[host.name]
    }
    began = time.monotonic()
    total = int(options.rate * options.seconds)
    cut_at = began + options.seconds / 2
    cutter = threading.Timer(
        options.seconds / 2, lambda: [cluster.cut(host) for host in cluster.hosts[:CUT_HOSTS]]
    )
    cutter.start()
    for number in range(total):
        ahead = began + number / options.rate - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
        for rank, log in logs.items():
            head = f"{rank} {number} {time.monotonic():.6f} {TEXT}"
            os.write(log, head.ljust(LINE_BYTES - 1, ".").encode() + b"\n")
    cutter.join()
    for log in logs.values():
        os.close(log)
    return cut_at


def _judge(
    cluster: Loopback,
    run: str,
    ranks: Mapping[str, Sequence[int]],
    folder: Path,
    cut_at: float,
) -> Dict[str, float]:
    chunks = (folder / "chunks").read_bytes()
    result = json.loads((folder / "result.json").read_text())
    latencies: List[float] = []
    seen: Dict[Tuple[int, int], int] = {}
    rests: Dict[str, bytes] = {}
    offset = 0
    for arrived, source, size in result["index"]:
        data = rests.get(source, b"") + chunks[offset : offset + size]
        offset += size
        *lines, rests[source] = data.split(b"\n")
        for line in lines:
            fields = line.split(b" ", 3)
            if len(fields) < 4 or len(line) != LINE_BYTES - 1:
                continue  # a header of tail's, or a line that a cut left in pieces
            rank, number, written = int(fields[0]), int(fields[1]), float(fields[2])
            seen[rank, number] = seen.get((rank, number), 0) + 1
            if not cut_at - 0.2 <= written <= cut_at + CUT_SHADOW_S:
                latencies.append(arrived - written)
    written_lines = sum(
        os.stat(_log(host, run, rank)).st_size // LINE_BYTES
        for host in cluster.hosts
        for rank in ranks[host.name]
    )
    latencies.sort()
    return {
        "p50": latencies[len(latencies) // 2],
        "p99": latencies[len(latencies) * 99 // 100],
        "cpu": result["cpu"] / result["wall"],
        "lost": written_lines - len(seen),
        "doubled": sum(count - 1 for count in seen.values()),
        "lines": written_lines,
    }


# The followers, each in a process of its own


class Arrivals:
    """What arrived and when; kept in memory while it is measured."""

    wants_logs = True

    def __init__(self) -> None:
        self.chunks: List[Chunk] = []

    def log(self, process: str, data: bytes) -> None:
        self.chunks.append((time.monotonic(), process, data))

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def _follower(options: argparse.Namespace) -> int:
    inventory = load_inventory(
        options.folder.parent / "inventory.yaml", default_python=sys.executable, home=Path.home()
    )
    arrivals = Arrivals()
    run = options.folder.name
    ranks = {
        host.name: [index * options.ranks + slot for slot in range(options.ranks)]
        for index, host in enumerate(inventory.hosts)
    }
    FOLLOWERS[options.follow](inventory.hosts, run, ranks, options.folder, arrivals)
    time.sleep(2.0)  # connections are up
    print("follows", flush=True)
    cpu, wall = time.process_time(), time.monotonic()
    sys.stdin.read()
    result = {
        "cpu": time.process_time() - cpu,
        "wall": time.monotonic() - wall,
        "index": [(arrived, source, len(data)) for arrived, source, data in arrivals.chunks],
    }
    (options.folder / "chunks").write_bytes(b"".join(data for _, _, data in arrivals.chunks))
    (options.folder / "result.json").write_text(json.dumps(result))
    os._exit(0)


def _ours(
    hosts: Sequence[Host],
    run: str,
    ranks: Mapping[str, Sequence[int]],
    folder: Path,
    arrivals: Arrivals,
) -> None:
    paths = RunPaths(folder)
    journal = Journal(paths.journal)

    def run_to_end() -> None:
        with connected(hosts) as transports:
            runs = [
                HostRun(
                    Supervisor(transports[host.name], host.python, _run_dir(host, run)),
                    tuple(f"rank_{rank}" for rank in ranks[host.name]),
                )
                for host in hosts
            ]
            follow(paths, journal, runs, arrivals, grace_s=1.0)

    threading.Thread(target=run_to_end, daemon=True).start()


def _tail(
    hosts: Sequence[Host],
    run: str,
    ranks: Mapping[str, Sequence[int]],
    folder: Path,
    arrivals: Arrivals,
) -> None:
    for host in hosts:
        files = [_log(host, run, rank) for rank in ranks[host.name]]
        threading.Thread(target=_tail_host, args=(host, files, arrivals), daemon=True).start()


def _tail_host(host: Host, files: Sequence[str], arrivals: Arrivals) -> None:
    """``tail -F`` of all logs of a host on one channel; begun anew, from the ends of the files,
    when the connection is lost."""
    options = host.ssh
    while True:
        client = paramiko.SSHClient()
        client.load_host_keys(str(options.known_hosts))
        try:
            client.connect(
                host.address,
                port=options.port,
                username=options.user,
                key_filename=options.key,
                look_for_keys=False,
                allow_agent=False,
            )
            channel = client.get_transport().open_session()  # type: ignore[union-attr]
            channel.exec_command("exec tail -q -n 0 -F " + " ".join(files))
            while True:
                data = channel.recv(1 << 18)
                if not data:
                    break
                arrivals.log(host.name, data)
        except (paramiko.SSHException, OSError):
            time.sleep(0.5)
        finally:
            client.close()


def _run_dir(host: Host, run: str) -> str:
    return f"{host.workdir}/runs/{run}"


def _log(host: Host, run: str, rank: int) -> str:
    return f"{_run_dir(host, run)}/ranks/rank_{rank}/stdout.log"


FOLLOWERS = {"ours": _ours, "tail": _tail}
LABELS = {"ours": "glm2-orch", "tail": "tail -F over paramiko"}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OrchError as error:
        sys.exit(f"error: {error}")
