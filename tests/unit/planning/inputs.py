"""Inventories, jobs and facts for tests of the planner, each stated in a line or two."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any, Mapping, Set

from orchestrator.inventory import Inventory, load_inventory, parse_inventory
from orchestrator.job import Job
from orchestrator.planning.facts import HostFacts
from orchestrator.planning.plan import HostPlan, Plan
from orchestrator.planning.ranktable_lint import CheckedTable
from orchestrator.resources import resource_dir
from orchestrator.worker_config import WorkerConfig, parse_config

CONFIG = """\
run_mode: train
context:
  mode: 0
  device_target: "Ascend"
train_dataset: &train_dataset
  batch_size: 1
train_dataset_task:
  dataset_config: *train_dataset
"""


def inventory(text: str) -> Inventory:
    return parse_inventory(
        dedent(text),
        "inv.yaml",
        folder=Path("/etc/glm2"),
        default_python="/opt/python",
        home=Path("/home/someone"),
    )


def cluster12() -> Inventory:
    """The shipped inventory of the guide's cluster."""
    path = resource_dir("inventories") / "cluster12.yaml"
    return load_inventory(path, default_python="python3", home=Path("/home/someone"))


def cpu(hosts: str, devices: str = "[0,2)", more: str = "") -> Inventory:
    """Hosts with CPU ranks, reached by ssh."""
    return inventory(
        f"hosts: {hosts}\n"
        f'defaults: {{device_target: CPU, devices: "{devices}", workdir: /data{more}}}\n'
    )


def ascend(hosts: str, devices: str = "[0,8)") -> Inventory:
    return inventory(
        f"hosts: {hosts}\n"
        f'defaults: {{device_target: Ascend, devices: "{devices}", workdir: /data}}\n'
    )


def config(text: str = CONFIG) -> WorkerConfig:
    return parse_config(text, "c.yaml", "c")


def job(**changes: Any) -> Job:
    values: Mapping[str, Any] = {"run_id": "r1", "mode": "finetune", "config": config(), **changes}
    return Job(**values)


def reported(host_index: int, devices: int = 8) -> HostFacts:
    """Facts of a host whose devices have IPs."""
    return HostFacts(device_ips={d: f"10.{d}.0.{host_index}" for d in range(devices)})


def file(host: HostPlan, path: str) -> str:
    return next(f.text for f in host.files if f.path == path)


def environments(plan: Plan) -> dict[str, dict[str, str]]:
    """Variables of every process, by ``host/process``."""
    return {f"{h.host}/{p.name}": dict(p.env) for h in plan.hosts for p in h.processes}


def codes(checked: CheckedTable) -> Set[str]:
    """Of the rules that a table breaks."""
    return {finding.rule.code for finding in checked.findings}
