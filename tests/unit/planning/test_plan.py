"""The planner: golden plans of the shipped inventories, purity, and every refusal.

``python -m tests.unit.planning.test_plan`` writes the golden files anew; look at the difference.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from orchestrator.errors import OrchError, PlanError
from orchestrator.inventory import Inventory, limit, load_inventory, parse_inventory
from orchestrator.job import Job, JobDefaults, JobOptions, build_job
from orchestrator.planning.facts import HostFacts
from orchestrator.planning.plan import Plan, plan_from_json
from orchestrator.planning.planner import plan

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parent / "golden"
PLACE = ("RANK_ID", "DEVICE_ID", "RANK_SIZE", "RANK_TABLE_FILE", "MS_NODE_ID", "MS_ROLE")


def shipped(name: str) -> Inventory:
    path = ROOT / "inventories" / f"{name}.yaml"
    return load_inventory(path, default_python="/opt/python3", home=Path("/home/user"))


def job_for(inventory: Inventory, mode: str = "finetune", **options: object) -> Job:
    return build_job(
        "golden",
        mode,
        JobOptions(**options),  # type: ignore[arg-type]
        JobDefaults(inventory.job, inventory.job_locations, inventory.folder),
        config_dir=ROOT / "glm2" / "configs",
        cwd=Path("/home/user"),
    )


def plan_of(name: str, **options: object) -> Plan:
    inventory = shipped(name)
    return plan(inventory, job_for(inventory, **options), {})


def table_of_ranks(made: Plan) -> str:
    """One line a rank: what the environment of each one says of its place."""
    lines = []
    for host in made.hosts:
        for process in host.processes:
            env = dict(process.env)
            names = (
                "RANK_ID",
                "DEVICE_ID",
                "RANK_SIZE",
                "RANK_TABLE_FILE",
                "MS_NODE_ID",
                "MS_ROLE",
            )
            values = " ".join(f"{name}={env[name]}" for name in names if name in env)
            lines.append(f"{host.host} {process.name} {values}")
    return "\n".join(lines) + "\n"


def files_of_one_host(made: Plan, host: str) -> str:
    (chosen,) = (item for item in made.hosts if item.host == host)
    parts = [f"==> {file.path} {file.mode:04o}\n{file.text}" for file in chosen.files]
    return "".join(parts)


def golden_files() -> dict[str, str]:
    cluster, local = plan_of("cluster12"), plan_of("local")
    rank_32 = replace(
        cluster,
        hosts=tuple(
            replace(
                host,
                files=tuple(
                    file
                    for file in host.files
                    if "rank_32" in file.path or file.path == "spec.json"
                ),
            )
            for host in cluster.hosts
        ),
    )
    return {
        "cluster12_ranks.txt": table_of_ranks(cluster),
        "cluster12_rank_table.json": cluster.rank_table or "",
        "cluster12_rank_32_files.txt": files_of_one_host(rank_32, "192.168.0.2"),
        "local_ranks.txt": table_of_ranks(local),
        "local_files.txt": files_of_one_host(
            replace(
                local,
                hosts=tuple(
                    replace(host, files=tuple(f for f in host.files if f.path != "job.yaml"))
                    for host in local.hosts
                ),
            ),
            "localhost",
        ),
    }


@pytest.mark.parametrize("name", sorted(golden_files()))
def test_golden(name):
    assert golden_files()[name] == (GOLDEN / name).read_text(encoding="utf-8")


def test_the_96_ranks_of_the_guide():
    made = plan_of("cluster12")
    ranks = {process.rank: (host, process) for host in made.hosts for process in host.processes}
    assert sorted(ranks) == list(range(96))
    # Dictionary order of server_id, decided by text: .0 .1 .10 .11 .2 … .9
    order = sorted(f"192.168.0.{number}" for number in range(12))
    for rank, (host, process) in ranks.items():
        env = dict(process.env)
        assert host.host == order[rank // 8]
        assert (env["RANK_ID"], env["RANK_SIZE"]) == (str(rank), "96")
        assert env["DEVICE_ID"] == str(rank % 8) == str(process.device_id)
        assert env["RANK_TABLE_FILE"] == "/data/glm2/runs/golden/rank_table.json"
        assert not [name for name in env if name.startswith(("MS_", "CM_"))]
    texts = {f.text for host in made.hosts for f in host.files if f.path == "rank_table.json"}
    assert texts == {made.rank_table}


def test_the_same_inputs_give_the_same_bytes_and_the_file_gives_the_plan_back():
    first, second = plan_of("cluster12"), plan_of("cluster12")
    assert first.to_json() == second.to_json()
    assert plan_from_json(first.to_json()) == first
    assert plan_of("cluster12", env=("A=1",)).digest != first.digest


def test_a_changed_plan_file_is_refused():
    text = plan_of("local").to_json().replace('"world_size": 2', '"world_size": 3')
    with pytest.raises(PlanError, match="digest"):
        plan_from_json(text)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 99}'])
def test_what_is_no_plan(text):
    with pytest.raises(PlanError):
        plan_from_json(text)


def test_the_device_target_of_the_inventory_wins_in_the_workers_configuration():
    inventory = shipped("local")
    job = job_for(inventory, settings=("context.device_target=Ascend", "seed=7"))
    (host,) = plan(inventory, job, {}).hosts
    (config,) = (file.text for file in host.files if file.path == "job.yaml")
    values = yaml.safe_load(config)
    assert (values["context"]["device_target"], values["seed"]) == ("CPU", 7)


def test_values_are_quoted_for_the_shell():
    hostile = "a'b $(touch /tmp/x) `id` \\"
    made = plan_of("local", env=(f"NOTE={hostile}",))
    import subprocess

    (host,) = made.hosts
    (env,) = (file.text for file in host.files if file.path == "ranks/rank_0/env.sh")
    shown = subprocess.run(
        ["bash", "-c", f'{env}\nprintf %s "$NOTE"'], capture_output=True, text=True, check=True
    )
    assert shown.stdout == hostile


def test_a_free_port_of_the_facts_is_used_by_the_scheduler():
    inventory = shipped("local")
    made = plan(inventory, job_for(inventory), {"localhost": HostFacts(free_port=8200)})
    assert "MS_SCHED_PORT=8200" in "\n".join(f.text for h in made.hosts for f in h.files)
    chosen = plan(
        inventory,
        job_for(inventory, scheduler_port=9000),
        {"localhost": HostFacts(free_port=8200)},
    )
    assert "MS_SCHED_PORT=9000" in "\n".join(f.text for h in chosen.hosts for f in h.files)


def ascend(hosts: str) -> Inventory:
    text = (
        "defaults: {device_target: Ascend, devices: '[0,2)', workdir: /w}\n"
        f"hosts:\n{hosts}\njob: {{config: run_glm2_6b_finetune}}\n"
    )
    return parse_inventory(
        text, "i.yaml", folder=Path("/etc"), default_python="python3", home=Path("/home/user")
    )


@pytest.mark.parametrize(
    ("hosts", "facts", "said"),
    [
        ("  a: {}\n  b: {}", {}, "a: the IP of device 0, 1 is not known"),
        (
            "  a: {device_ips: [10.0.0.1, 10.0.0.2]}\n  b: {}",
            {"b": HostFacts(device_ips={0: "10.0.0.2", 1: "10.0.0.3"})},
            "10.0.0.2",
        ),
        (
            "  a: {device_ips: [10.0.0.1, 10.0.0.2]}\n  b: {device_ips: [10.0.0.3, 10.0.0.4]}",
            {"b": HostFacts(device_ips={0: "10.0.0.9"})},
            "the inventory declares",
        ),
        (
            "  a: {device_ips: [10.0.0.1, 10.0.0.2]}\n  b: {devices: [0], device_ips: [10.0.0.3]}",
            {},
            "number of devices|devices",
        ),
    ],
    ids=["unknown", "duplicate", "drift", "unequal"],
)
def test_device_ips_that_cannot_be_right(hosts, facts, said):
    inventory = ascend(hosts)
    job = job_for(inventory, config="tiny_cpu")
    with pytest.raises(OrchError, match=said) as caught:
        plan(inventory, job, facts)
    assert caught.value.exit_status == 3


def test_a_layout_that_does_not_fit_names_the_line_and_the_fix():
    inventory = limit(shipped("cluster12"), "192.168.0.[0-1]")
    with pytest.raises(PlanError, match="but there are 16 ranks") as caught:
        plan(inventory, job_for(inventory), {})
    assert "parallel_config.data_parallel=16" in caught.value.hint
    assert caught.value.location is not None


def test_predict_needs_something_to_answer():
    with pytest.raises(PlanError, match="nothing to answer"):
        plan_of("local", mode="predict")


def test_two_kinds_of_device_in_one_job():
    inventory = ascend("  a: {}\n  b: {device_target: CPU}")
    with pytest.raises(PlanError, match="device_target"):
        plan(inventory, job_for(inventory), {})


def test_plan_json_is_stable_text():
    data = json.loads(plan_of("local").to_json())
    assert data["schema"] == 1
    assert len(data["digest"]) == 64


if __name__ == "__main__":
    for file, text in golden_files().items():
        (GOLDEN / file).write_text(text, encoding="utf-8")
