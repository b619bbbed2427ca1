"""Time to bring one folder to N hosts: the tree of ``stage``, against N × scp and rsync from here.

    python -m benchmarks.stage --hosts 2 4 8 12 --mib 64

Hosts are sshd servers on loopback addresses of this machine, so that all copies share its cores and
disk: only the ratios of one run carry over, and the number of bytes that leave the controller,
which is what a real network bounds. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List, Sequence

from orchestrator.engine.hosts import connected
from orchestrator.engine.manifests import Manifest, read_source
from orchestrator.engine.staging import stage_files
from orchestrator.inventory import Host
from orchestrator.stage_options import parse_stage
from tests.cluster.sshd import Loopback


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--hosts", type=int, nargs="+", default=[2, 4, 8, 12])
    parser.add_argument("--mib", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="glm2-orch-bench-") as folder:
        rows = [measure(Path(folder), count, options) for count in options.hosts]
    print(json.dumps({"schema": 1, "mib": options.mib, "cores": os.cpu_count(), "rows": rows}))
    return 0


def measure(folder: Path, count: int, options: argparse.Namespace) -> Dict[str, object]:
    """Medians for ``count`` hosts, the ways interleaved."""
    source = folder / f"data-{count}"
    source.mkdir()
    (source / "weights.bin").write_bytes(os.urandom(options.mib << 20))
    [item] = parse_stage([str(source)], "/").items
    times: Dict[str, List[float]] = {}
    sent = 0
    with Loopback(folder / f"loopback-{count}", count) as cluster:
        manifest = read_source(item, folder / "cache")
        ways: Dict[str, Callable[[], None]] = {}
        if shutil.which("scp"):
            ways["scp"] = lambda: copy(cluster, source, ["scp", "-O", "-q", "-r"])
        if shutil.which("rsync"):
            ways["rsync"] = lambda: copy(cluster, source, ["rsync", "-a"])
        for _ in range(options.repeat):
            begun = time.perf_counter()
            sent = tree(cluster.hosts, manifest)
            times.setdefault("stage", []).append(time.perf_counter() - begun)
            clean(cluster.hosts)
            for name, way in ways.items():
                begun = time.perf_counter()
                way()
                times.setdefault(name, []).append(time.perf_counter() - begun)
                clean(cluster.hosts)
    medians = {name: round(sorted(found)[len(found) // 2], 3) for name, found in times.items()}
    copies = round(sent / manifest.bytes, 2)
    return {"hosts": count, "seconds": medians, "copies_from_controller": copies}


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
