"""How soon a run ends everywhere when something fails: real ssh servers, real processes.

    python -m benchmarks.stop_times [--hosts 4] [--rounds 5] [--heartbeat 1.0] [--silence 3.0]

``rank killed``: from the SIGKILL of a rank until no process of a rank is left on the other hosts,
whose ranks end on SIGTERM at once. ``beside a deaf rank``: one of them ignores SIGTERM, so the
grace is used up; shown is the time beyond it. The target is 2 s.

``host cut``: from the moment at which a host's ssh server and connections stand still, as behind
a cut cable, until it is decided that the host is given up, beyond the ``silence_s`` of the job;
the target is two heartbeats. ``then others stopped``: from there until no process of a rank is
left on the other hosts.

Seconds; the median of all rounds, the least and the most.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Callable, Dict, List

from rich.console import Console
from rich.table import Table

from benchmarks.figures import figure
from orchestrator.drill import acts
from orchestrator.drill.cluster import Loopback
from orchestrator.drill.processes import Process, having, wait_until
from orchestrator.drill.scene import GRACE_S, Scene, standin

KILLED, DEAF = "rank killed", "beside a deaf rank, beyond the grace"
CUT, THEN = "host cut, beyond silence_s", "then others stopped"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stop_times",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hosts", type=int, default=4, help="of two ranks each; 3 or more")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heartbeat", type=float, default=1.0)
    parser.add_argument("--silence", type=float, default=3.0)
    options = parser.parse_args()
    found: Dict[str, List[float]] = {name: [] for name in (KILLED, DEAF, CUT, THEN)}
    for _ in range(options.rounds):
        found[KILLED] += play(options, killed)
        found[DEAF] += play(options, killed_beside_deaf)
        decided, stopped = play(options, cut)
        found[CUT].append(decided)
        found[THEN].append(stopped)
    targets = {KILLED: 2.0, DEAF: 2.0, CUT: 2 * options.heartbeat}
    title = f"{options.hosts} hosts, {options.rounds} rounds, seconds"
    table = Table(title=title)
    for column in ("what", "median", "least", "most", "target"):
        table.add_column(column, justify="left" if column == "what" else "right")
    for name, times in found.items():
        shown = [f"{one:.2f}" for one in (median(times), min(times), max(times))]
        table.add_row(name, *shown, f"{targets[name]:.1f}" if name in targets else "")
        figure(title, name, f"{shown[0]} s ({shown[1]} to {shown[2]})")
    Console().print(table)
    return 0


def play(options: argparse.Namespace, fault: Callable[[Scene], List[float]]) -> List[float]:
    """A job of its own, in training, to which the fault happens."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Loopback(folder / "cluster", options.hosts) as cluster:
            watch = {"silence_s": options.silence}
            scene = Scene(
                folder, cluster, cluster.hosts, standin(), watch, heartbeat_s=options.heartbeat
            )
            try:
                scene.let("go")
                scene.launched = scene.launch()
                scene.reach("training")
                return fault(scene)
            finally:
                scene.close()


def killed(scene: Scene) -> List[float]:
    others = elsewhere(scene)
    began = time.monotonic()
    acts.kill_rank(scene)
    return [gone(others) - began]


def killed_beside_deaf(scene: Scene) -> List[float]:
    """The rank that ignores SIGTERM is on another host."""
    scene.trick("deaf", 0)
    wait_until(lambda: acts.ignores_term(scene.rank(0).pid), "a rank that ignores SIGTERM")
    return [killed(scene)[0] - GRACE_S]


def cut(scene: Scene) -> List[float]:
    others = elsewhere(scene)
    began = time.monotonic()
    acts.freeze_network(scene)
    wait_until(
        lambda: any(one["rule"] == "host-silent" for one in scene.decisions()), "a decision", 60.0
    )
    decided = time.monotonic()
    stopped = gone(others)
    assert isinstance(scene.watch["silence_s"], float)
    return [decided - began - scene.watch["silence_s"], stopped - decided]


def elsewhere(scene: Scene) -> List[Process]:
    """The run's processes on all hosts but that of the fault."""
    victim = scene.host_of(acts.VICTIM)
    folders = [str(scene.run_dir(host)) for host in scene.hosts if host is not victim]
    return [one for folder in folders for one in having("GLM2_RUN_DIR", folder)]


def gone(processes: List[Process]) -> float:
    """When the last of them was gone."""
    assert processes
    wait_until(lambda: not any(one.alive for one in processes), "the end of all ranks", 60.0)
    return time.monotonic()


if __name__ == "__main__":
    raise SystemExit(main())
