"""``--inventory modelarts:``: this pod's ranks of a job that the platform has laid out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Dict, Optional

import pytest

from orchestrator.errors import InventoryError, RankTableError, UsageError
from orchestrator.inventory import Inventory
from orchestrator.job import Job
from orchestrator.planning.modelarts import modelarts_inventory
from orchestrator.planning.planner import plan


def pods(status: str = "completed") -> str:
    """Three pods of eight devices, in another order than that of their ranks and addresses."""
    instances = [
        {
            "pod_name": f"job-worker-{pod}",
            "server_id": f"10.0.0.{90 - pod}",
            "devices": [
                {"device_id": str(d), "device_ip": f"192.168.{d}.{pod + 10}"} for d in range(8)
            ],
        }
        for pod in (2, 0, 10)
    ]
    group = {"group_name": "g", "device_count": "24", "instance_count": "3"}
    groups = [{**group, "instance_list": instances}]
    return json.dumps({"status": status, "group_count": "1", "group_list": groups})


def read(
    environ: Dict[str, str], folder: Path, text: Optional[str] = None, file: Optional[Path] = None
) -> Inventory:
    table = folder / "user/config/jobstart_hccl.json"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(pods() if text is None else text)
    return modelarts_inventory(
        environ, file, default_python="/py", home=folder, cwd=Path("/job"), root=folder
    )


def test_this_pods_ranks_in_the_platforms_order(tmp_path: Path) -> None:
    inventory = read({"HOSTNAME": "job-worker-2"}, tmp_path)
    [host] = inventory.hosts
    assert (host.connection, host.server_id) == ("local", "10.0.0.88")
    job = Job("r", "train", None, worker_command=("true",))
    made = plan(inventory, job, {})
    assert (made.world_size, len(made.hosts), made.recipe) == (24, 1, "ascend_ranktable")
    processes = made.hosts[0].processes
    assert [(p.rank, p.device_id) for p in processes] == [(8 + d, d) for d in range(8)]
    env = dict(processes[0].env)
    assert (env["RANK_ID"], env["RANK_SIZE"], env["DEVICE_ID"]) == ("8", "24", "0")
    assert made.rank_table is not None
    servers = json.loads(made.rank_table)["server_list"]
    assert [server["server_id"] for server in servers] == ["10.0.0.90", "10.0.0.88", "10.0.0.80"]
    assert servers[1]["device"][0]["rank_id"] == "8"


@pytest.mark.parametrize("environ", [{"POD_IP": "10.0.0.80"}, {"VC_TASK_INDEX": "2"}])
def test_other_ways_to_know_the_pod(tmp_path: Path, environ: Dict[str, str]) -> None:
    assert read(environ, tmp_path).hosts[0].server_id == "10.0.0.80"


def test_a_table_of_version_1_keeps_its_ranks(tmp_path: Path) -> None:
    devices = [
        {"device_id": str(d), "device_ip": f"192.168.{d}.1", "rank_id": str(d)} for d in range(8)
    ]
    server = {"server_id": "10.0.0.1", "device": devices}
    own = tmp_path / "v1.json"
    own.write_text(
        json.dumps(
            {
                "version": "1.0",
                "server_count": "1",
                "server_list": [server],
                "status": "completed",
            }
        )
    )
    inventory = read({"RANK_TABLE_FILE_V_1_0": str(own)}, tmp_path)
    assert inventory.hosts[0].devices == tuple(range(8))
    assert inventory.platform is not None
    assert inventory.platform.first_rank == 0


def test_a_file_brings_defaults_and_job(tmp_path: Path) -> None:
    file = tmp_path / "d.yaml"
    file.write_text("defaults: {workdir: /cache/glm2, setup: source x}\njob: {config: y}\n")
    inventory = read({"HOSTNAME": "job-worker-0"}, tmp_path, file=file)
    assert inventory.hosts[0].workdir == "/cache/glm2"
    assert inventory.hosts[0].setup == "source x"
    assert dict(inventory.job) == {"config": "y"}


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match="none is known to be this one"):
        read({"HOSTNAME": "elsewhere"}, tmp_path)
    with pytest.raises(UsageError, match="not complete yet"):
        read({"HOSTNAME": "job-worker-0"}, tmp_path, pods("initializing"))
    with pytest.raises(RankTableError):
        read({"HOSTNAME": "job-worker-0"}, tmp_path, "{")
    with pytest.raises(UsageError, match="no rank table"):
        modelarts_inventory(
            {}, None, default_python="p", home=tmp_path, cwd=tmp_path, root=tmp_path / "empty"
        )
