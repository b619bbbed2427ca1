"""Rank tables of 10,000 ranks: generate, merge, check. Each is to take less than a second.

    python -m benchmarks.rank_tables [--servers 1250] [--rounds 5]

Files are in memory; shown are medians. ``generate`` makes the table from the facts of all hosts,
``merge`` reads, checks and merges one file a server, and both check what they made, as the commands
do; ``check`` lints the merged table, ``plan`` is all that a launch of that size computes before it
touches a host.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Callable, Dict

from benchmarks.figures import figure
from orchestrator.inventory import Inventory, parse_inventory
from orchestrator.job import Job
from orchestrator.planning.cluster_table import cluster_table
from orchestrator.planning.facts import HostFacts
from orchestrator.planning.planner import plan
from orchestrator.planning.ranktable import host_table
from orchestrator.planning.ranktable_convert import merge_files, proven
from orchestrator.planning.ranktable_lint import check_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", type=int, default=1250)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    inventory = cluster(options.servers)
    facts = {host.name: reported(i) for i, host in enumerate(inventory.hosts)}
    files = {
        f"hccl_{host.name}.json": host_table(host.server_id, dict(facts[host.name].device_ips))
        .to_json()
        .encode()
        for host in inventory.hosts
    }
    whole = cluster_table(inventory.hosts, facts).to_json().encode()
    job = Job("bench", "train", config=None, worker_command=("true",))
    steps: Dict[str, Callable[[], object]] = {
        "generate": lambda: proven(cluster_table(inventory.hosts, facts), "all.json"),
        "merge": lambda: proven(
            merge_files([check_table(d, n) for n, d in files.items()]), "all.json"
        ),
        "check": lambda: check_table(whole, "merged.json"),
        "plan": lambda: plan(inventory, job, facts),
    }
    for name, step in steps.items():
        times = [timed(step) for _ in range(options.rounds)]
        print(f"{name:9} {8 * options.servers} ranks  {median(times):6.3f} s")
        figure(f"{8 * options.servers} ranks", name, f"{median(times):.3f} s")


def cluster(servers: int) -> Inventory:
    """An inventory of so many 910 servers."""
    return parse_inventory(
        "defaults: {device_target: Ascend, devices: '[0,8)', workdir: /data}\n"
        f"hosts: node[0000-{servers - 1:04d}]\n",
        "bench.yaml",
        folder=Path("/"),
        default_python="python3",
        home=Path("/"),
    )


def reported(server: int) -> HostFacts:
    """Facts with eight device IPs, wired as on a 910A."""
    return HostFacts(
        device_ips={
            d: f"10.{32 * (d % 4) + server // 250}.{d // 4}.{server % 250}" for d in range(8)
        }
    )


def timed(step: Callable[[], object]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
