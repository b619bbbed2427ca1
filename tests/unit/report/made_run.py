"""Runs of any size, made up: the files that a controller would have."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Set

from orchestrator.planning.plan import HostPlan, Plan, PlannedFile, PlannedProcess
from orchestrator.runs.layout import RunPaths, RunStore

START = 1_800_000_000.0


def made_run(
    home: Path,
    *,
    run_id: str = "finetune-20270115-080000-made",
    hosts: int = 12,
    per_host: int = 8,
    steps: int = 60,
    goal: int = 600,
    step_s: float = 1.5,
    slow_hosts: Iterable[int] = (),
    silent_hosts: Iterable[int] = (),
    failed_rank: Optional[int] = None,
    ended: Optional[str] = None,
    host_names: Optional[List[str]] = None,
    nan_at: Optional[int] = None,
    decisions: Iterable[Dict[str, Any]] = (),
    seed: int = 1,
) -> RunPaths:
    """A run of ``hosts`` × ``per_host`` ranks that has come to ``steps`` of ``goal``."""
    paths = RunStore(home).create(run_id)
    names = host_names or [f"192.168.0.{number}" for number in range(hosts)]
    slow, silent = set(slow_hosts), set(silent_hosts)
    ranks = [[number * per_host + slot for slot in range(per_host)] for number in range(len(names))]
    _journal(paths, names, ranks, ended, failed_rank, decisions, steps * step_s)
    now = START + 20 + steps * step_s
    for number, name in enumerate(names):
        folder = paths.host_journal(name).parent
        folder.mkdir(parents=True)
        heard = now - (40.0 if number in silent else 0.4)
        paths.host_beat(name).write_text(json.dumps({"wall": heard, "ahead": 0.2}))
        _host_journal(paths, name, ranks[number], failed_rank, ended, now)
        for rank in ranks[number]:
            own = steps - 3 if number in silent else steps
            _metrics(paths, rank, own, goal, step_s, number in slow, nan_at, seed)
    plan = made_plan(run_id, names, ranks)
    paths.plan.write_text(plan.to_json())
    return paths


def made_plan(run_id: str, names: List[str], ranks: List[List[int]]) -> Plan:
    world = sum(map(len, ranks))
    return Plan(
        run_id=run_id,
        cluster="cluster12",
        mode="finetune",
        recipe="ascend_ranktable",
        world_size=world,
        hosts=tuple(
            HostPlan(
                host=name,
                server_id=f"10.0.{number // 250}.{number % 250}",
                run_dir=f"/data/glm2/runs/{run_id}",
                python="/usr/local/bin/python3",
                processes=tuple(
                    PlannedProcess(
                        f"rank_{rank}",
                        rank,
                        rank - own[0],
                        ("/usr/local/bin/python3", "-m", "glm2", "--run_mode", "finetune"),
                        (
                            ("DEVICE_ID", str(rank - own[0])),
                            ("HCCL_CONNECT_TIMEOUT", "600"),
                            ("HUB_TOKEN", "hidden-value"),
                            ("RANK_ID", str(rank)),
                            ("RANK_SIZE", str(world)),
                        ),
                    )
                    for rank in own
                ),
                files=(PlannedFile("job.yaml", "optimizer:\n  learning_rate: 5.0e-5\n"),),
            )
            for number, (name, own) in enumerate(zip(names, ranks))
        ),
        grace_s=30.0,
        heartbeat_s=1.0,
        ships_worker=True,
        notes=("192.168.0.12 stands in for 192.168.0.7",),
    )


def software(names: List[str]) -> List[Dict[str, Any]]:
    """The last host has an older driver, and does not know its firmware."""
    alike = {"cann": "7.0.0", "mindspore": "2.10.0", "python": "3.9.18"}
    newer = {"hosts": names[:-1], "driver": "23.0.3", "firmware": "7.1.0.5.220", **alike}
    older = {"hosts": names[-1:], "driver": "22.0.4", "firmware": None, **alike}
    return [newer, older] if names[:-1] else [older]


def _journal(
    paths: RunPaths,
    names: List[str],
    ranks: List[List[int]],
    ended: Optional[str],
    failed: Optional[int],
    decisions: Iterable[Dict[str, Any]],
    taken: float,
) -> None:
    launch = {
        "wall": START,
        "event": "launch",
        "cluster": "cluster12",
        "mode": "finetune",
        "recipe": "ascend_ranktable",
        "world_size": sum(map(len, ranks)),
        "plan_digest": "0" * 64,
        "hosts": [
            {"name": name, "processes": [{"name": f"rank_{rank}", "rank": rank} for rank in own]}
            for name, own in zip(names, ranks)
        ],
    }
    events: List[Dict[str, Any]] = [
        launch,
        {"wall": START, "event": "versions", "groups": software(names)},
    ]
    for state in ("sent", "armed", "started"):
        events += [{"wall": START + 1, "event": "host", "host": n, "state": state} for n in names]
    events.append({"wall": START + 2, "event": "running"})
    events += [{"wall": START + 30, "event": "decision", **one} for one in decisions]
    if ended is not None:
        end = {"wall": START + 25 + taken, "event": "end", "outcome": ended}
        cause = None
        if failed is not None:
            host = next(name for name, own in zip(names, ranks) if failed in own)
            cause = {
                "rule": "rank-failed",
                "host": host,
                "rank": failed,
                "sentence": f"rank_{failed} on {host} failed first, killed by SIGKILL (137)",
            }
        events.append({**end, "exit_status": 0 if ended == "succeeded" else 6, "cause": cause})
    _lines(paths.journal, events)


def _host_journal(
    paths: RunPaths,
    name: str,
    ranks: List[int],
    failed: Optional[int],
    ended: Optional[str],
    now: float,
) -> None:
    events: List[Dict[str, Any]] = [{"event": "armed"}, {"event": "started"}]
    events += [
        {"event": "process_started", "name": f"rank_{rank}", "rank": rank, "pid": 1000 + rank}
        for rank in ranks
    ]
    exited: Set[int] = set(ranks) if ended else {failed} & set(ranks) if failed else set()  # type: ignore[arg-type]
    for rank in sorted(exited):
        own_fault = rank == failed
        code = 137 if own_fault else 0 if ended == "succeeded" else 143
        events.append({
            "event": "process_exited", "name": f"rank_{rank}", "rank": rank, "code": code,
            "signal": None, "collateral": code == 143,
        })  # fmt: skip
    if ended:
        events.append({"event": "finished", "outcome": ended})
    for seq, event in enumerate(events, 1):
        late = event["event"] in ("process_exited", "finished")
        event.update(seq=seq, wall=now if late else START + 2, mono=float(seq))
    _lines(paths.host_journal(name), events)


def _metrics(
    paths: RunPaths,
    rank: int,
    steps: int,
    goal: int,
    step_s: float,
    slow: bool,
    nan_at: Optional[int],
    seed: int,
) -> None:
    chance = random.Random(seed * 100_003 + rank)
    lines: List[Dict[str, Any]] = [
        {"schema": 1, "phase": "startup", "wall": START + 3},
        {"schema": 1, "phase": "compile", "wall": START + 8},
        {"schema": 1, "phase": "train", "wall": START + 20},
    ]
    for step in range(1, steps + 1):
        loss = 7.5 * math.exp(-4.0 * step / goal) + 0.9 + chance.gauss(0, 0.05)
        taken = step_s * (1.45 if slow else 1.0) * (1 + chance.gauss(0, 0.015))
        lines.append({
            "schema": 1, "step": step, "steps": goal, "epoch": 1,
            "loss": float("nan") if nan_at is not None and step >= nan_at else round(loss, 4),
            "lr": 5e-5 * step / goal, "tokens_per_s_per_p": round(1228.0 / taken, 1),
            "step_time_s": round(taken, 3), "loss_scale": 65536.0, "overflow": step % 211 == 3,
            "wall": START + 20 + step * step_s,
        })  # fmt: skip
        if step % 200 == 0:
            wall = START + 20 + step * step_s
            lines.append({"schema": 1, "phase": "checkpoint", "wall": wall})
            lines.append({"schema": 1, "phase": "train", "wall": wall + 1.0})
    _lines(paths.metrics(f"rank_{rank}"), lines)


def _lines(path: Path, entries: Iterable[Dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
