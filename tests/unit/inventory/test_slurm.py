"""``--inventory slurm:``."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Optional

import pytest

from orchestrator.errors import InventoryError, UsageError
from orchestrator.inventory import Inventory, slurm_inventory

ADDRESSES = {f"n{number:02}": f"10.0.0.{number}" for number in range(1, 20)}
BASE = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[01-03,12]", "SLURM_SUBMIT_DIR": "/home/me"}


def read(environ: Dict[str, str], file: Optional[Path] = None) -> Inventory:
    return slurm_inventory(
        environ,
        file,
        resolve=ADDRESSES.get,
        default_python="/py",
        home=Path("/home/me"),
        cwd=Path("/cwd"),
    )


def test_an_allocation_of_ascend_nodes() -> None:
    found = read({**BASE, "ASCEND_RT_VISIBLE_DEVICES": "0-3", "SLURM_CPUS_PER_TASK": "6"})
    assert found.cluster == "slurm-77"
    assert [host.name for host in found.hosts] == ["n01", "n02", "n03", "n12"]
    host = found.hosts[3]
    assert (host.address, host.server_id) == ("10.0.0.12", "10.0.0.12")
    assert (host.devices, host.device_target, host.connection) == ((0, 1, 2, 3), "Ascend", "ssh")
    assert host.workdir == "/home/me/glm2-orch/n12"
    assert host.env == {"OMP_NUM_THREADS": "6"}


@pytest.mark.parametrize(
    ("extra", "devices", "target"),
    [
        ({"SLURM_GPUS_ON_NODE": "8"}, tuple(range(8)), "Ascend"),
        ({"SLURM_JOB_GPUS": "4,5,6,7"}, (4, 5, 6, 7), "Ascend"),
        ({"SLURM_NTASKS_PER_NODE": "2(x4)"}, (0, 1), "CPU"),
    ],
)
def test_where_devices_come_from(extra: Dict[str, str], devices: object, target: str) -> None:
    host = read({**BASE, **extra}).hosts[0]
    assert (host.devices, host.device_target) == (devices, target)


def test_a_file_goes_before_slurm_and_adds_its_job(tmp_path: Path) -> None:
    file = tmp_path / "d.yaml"
    file.write_text(
        "cluster: mine\nssh: {user: u}\n"
        'defaults: {devices: "[0,2)", device_target: CPU, workdir: "/w/{host}"}\njob: {config: x}\n'
    )
    found = read({**BASE, "SLURM_GPUS_ON_NODE": "8"}, file)
    assert (found.cluster, dict(found.job)) == ("mine", {"config": "x"})
    host = found.hosts[0]
    assert (host.devices, host.device_target) == ((0, 1), "CPU")
    assert (host.workdir, host.ssh.user) == ("/w/n01", "u")


def test_one_node_that_is_this_one_needs_no_ssh() -> None:
    node = {"SLURM_JOB_NODELIST": "n01", "SLURMD_NODENAME": "n01", "SLURM_NTASKS_PER_NODE": "2"}
    assert read({**BASE, **node}).hosts[0].connection == "local"


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Slurm allocation"):
        read({})
    with pytest.raises(InventoryError, match="not closed"):
        read({**BASE, "SLURM_JOB_NODELIST": "n[1-2"})
    with pytest.raises(UsageError, match="which devices this allocation has"):
        read(BASE)
    with pytest.raises(InventoryError, match="cannot be read"):
        read({**BASE, "SLURM_JOB_GPUS": "all"})
    file = tmp_path / "d.yaml"
    file.write_text("hosts: [a]\n")
    with pytest.raises(InventoryError, match="has `hosts`"):
        read(BASE, file)
