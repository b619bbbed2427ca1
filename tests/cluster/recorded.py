"""A run as ``launch`` leaves it on the controller, without launching anything."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from orchestrator.engine.hosts import save_hosts
from orchestrator.inventory import Host
from orchestrator.planning.plan import HostPlan, Plan, PlannedProcess

RUN_ID = "recorded"


def run_dir(host: Host) -> Path:
    """The run's folder on a host (of this machine)."""
    return Path(host.workdir) / "runs" / RUN_ID


def record_run(home: Path, hosts: Sequence[Host], ranks: int) -> Path:
    """Write the run below ``home`` (``GLM2_ORCH_HOME``); ``ranks`` run on each host. Returns the
    run's folder."""
    plan = Plan(
        run_id=RUN_ID,
        cluster="loopback",
        mode="train",
        recipe="none",
        world_size=len(hosts) * ranks,
        hosts=tuple(
            HostPlan(
                host=host.name,
                server_id=host.server_id,
                run_dir=str(run_dir(host)),
                python=host.python,
                processes=tuple(
                    PlannedProcess(f"rank_{rank}", rank, rank, (), ())
                    for rank in range(number * ranks, (number + 1) * ranks)
                ),
                files=(),
            )
            for number, host in enumerate(hosts)
        ),
        grace_s=10.0,
        heartbeat_s=1.0,
        ships_worker=False,
    )
    folder = home / "runs" / RUN_ID
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(plan.to_json())
    (folder / "journal.jsonl").touch()
    save_hosts(folder / "hosts.json", hosts)
    return folder
