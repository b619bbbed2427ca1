"""From inventory, job and facts to a plan: recipes, overrides, and what cannot run."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Dict

import pytest
import yaml

from orchestrator.errors import JobError, Location, PlanError, RankTableError
from orchestrator.planning.facts import HostFacts
from orchestrator.planning.planner import plan
from tests.unit.planning.inputs import (
    ascend,
    config,
    cpu,
    environments,
    file,
    inventory,
    job,
    reported,
)

LOCAL = """\
    hosts: localhost
    defaults: {connection: local, device_target: CPU, devices: "[0,2)", workdir: ~/work}
    """


def test_local_ranks_find_each_other_as_a_dynamic_cluster() -> None:
    made = plan(inventory(LOCAL), job(), {})
    assert made.recipe == "dynamic_cluster"
    assert [p.name for p in made.hosts[0].processes] == ["scheduler", "rank_0", "rank_1"]
    by_process = environments(made)
    scheduler, second = by_process["localhost/scheduler"], by_process["localhost/rank_1"]
    assert scheduler["MS_ROLE"] == "MS_SCHED"
    assert "RANK_ID" not in scheduler
    assert second["MS_ROLE"] == "MS_WORKER"
    assert (second["MS_NODE_ID"], second["RANK_ID"], second["DEVICE_ID"]) == ("1", "1", "1")
    for env in (scheduler, second):
        assert env["MS_WORKER_NUM"] == "2"
        assert (env["MS_SCHED_HOST"], env["MS_SCHED_PORT"]) == ("127.0.0.1", "8118")
        assert not [name for name in env if name.startswith(("HCCL", "RANK_TABLE"))]
    assert made.rank_table is None
    assert made.ships_worker


def test_folders_of_a_rank() -> None:
    env = environments(plan(inventory(LOCAL), job(), {}))["localhost/rank_1"]
    assert env["GLM2_RUN_ID"] == "r1"
    assert env["GLM2_RUN_DIR"] == "/home/someone/work/runs/r1"
    assert env["GLM2_RANK_DIR"] == "/home/someone/work/runs/r1/ranks/rank_1"
    assert env["GLM2_OUTPUT_DIR"] == "/home/someone/work/runs/r1/output"


def test_the_scheduler_runs_once_on_the_host_of_rank_0() -> None:
    made = plan(cpu("10.0.0.[9-10]"), job(), {})
    assert [host.host for host in made.hosts] == ["10.0.0.10", "10.0.0.9"]
    names = [[p.name for p in host.processes] for host in made.hosts]
    assert names == [["scheduler", "rank_0", "rank_1"], ["rank_2", "rank_3"]]
    by_process = environments(made)
    assert {env["MS_SCHED_HOST"] for env in by_process.values()} == {"10.0.0.10"}


def test_the_scheduler_listens_at_the_server_id_if_that_is_an_ip() -> None:
    made = plan(cpu("{node1: {server_id: 10.0.0.1}, node2: {server_id: 10.0.0.2}}"), job(), {})
    assert environments(made)["node2/rank_3"]["MS_SCHED_HOST"] == "10.0.0.1"
    other = plan(cpu("{node1: {address: 10.1.0.1}, node2: }"), job(), {})
    assert environments(other)["node2/rank_3"]["MS_SCHED_HOST"] == "10.1.0.1"


def test_a_scheduler_that_others_could_not_reach() -> None:
    with pytest.raises(PlanError, match="needs an IP address, and 'node1' is none") as caught:
        plan(cpu("node[1-2]"), job(), {})
    assert "server_id" in caught.value.hint
    with pytest.raises(PlanError, match="cannot reach it"):
        plan(cpu("{127.0.0.1: , 192.168.0.2: }"), job(), {})
    assert plan(cpu("127.0.1.[1-2]"), job(), {}).world_size == 4


@pytest.mark.parametrize(
    ("recipe", "target", "devices", "chosen"),
    [
        ("auto", "CPU", "[0,1)", "standalone"),
        ("auto", "CPU", "[0,2)", "dynamic_cluster"),
        ("auto", "Ascend", "[0,1)", "standalone"),
        ("auto", "Ascend", "[0,8)", "ascend_ranktable"),
        ("ascend_ranktable", "Ascend", "[0,1)", "ascend_ranktable"),
        ("dynamic_cluster", "Ascend", "[0,8)", "dynamic_cluster"),
        ("dynamic_cluster", "CPU", "[0,1)", "dynamic_cluster"),
    ],
)
def test_recipes(recipe: str, target: str, devices: str, chosen: str) -> None:
    hosts = (cpu if target == "CPU" else ascend)("10.0.0.1", devices)
    made = plan(hosts, job(recipe=recipe), {})
    assert made.recipe == chosen
    env = environments(made)["10.0.0.1/rank_0"]
    assert ("MS_ROLE" in env) == (chosen == "dynamic_cluster")
    assert ("RANK_TABLE_FILE" in env) == (chosen == "ascend_ranktable")
    assert ("rank_table.json" in [f.path for f in made.hosts[0].files]) == (
        chosen == "ascend_ranktable"
    )


def test_recipes_that_do_not_fit() -> None:
    with pytest.raises(PlanError, match="HCCL is Ascend's"):
        plan(cpu("10.0.0.1"), job(recipe="ascend_ranktable"), {})
    with pytest.raises(PlanError, match="is for one rank"):
        plan(cpu("10.0.0.1"), job(recipe="standalone"), {})


def test_ranks_of_a_command_of_its_own_may_be_on_their_own() -> None:
    made = plan(cpu("10.0.0.1"), job(recipe="standalone", worker_command=("true",)), {})
    names = ["10.0.0.1/rank_0", "10.0.0.1/rank_1"]
    assert sorted(environments(made)) == names
    assert [environments(made)[name]["RANK_ID"] for name in names] == ["0", "1"]


def test_device_ips_come_from_the_hosts() -> None:
    facts = {"n1": reported(1), "n2": reported(2)}
    made = plan(ascend("n[1-2]"), job(), facts)
    assert made.rank_table is not None
    servers = json.loads(made.rank_table)["server_list"]
    assert servers[1]["device"][3] == {"device_id": "3", "device_ip": "10.3.0.2", "rank_id": "11"}


def test_device_ips_that_nobody_knows() -> None:
    facts = {
        "n1": reported(1),
        "n2": HostFacts(device_ips={0: "10.0.0.9"}, device_ip_errors={1: "no ip was preset"}),
    }
    with pytest.raises(PlanError) as caught:
        plan(ascend("n[1-2]"), job(), facts)
    assert "n2: the IP of device 1, 2, 3, 4, 5, 6, 7 is not known ('no ip was preset')" in str(
        caught.value
    )
    assert "hccn_tool" in caught.value.hint
    with pytest.raises(PlanError) as caught:
        plan(ascend("n[1-2]"), job(), {})
    assert "device_ips" in caught.value.hint or "device_ips" in str(caught.value)
    assert "glm2-orch facts" in str(caught.value) + caught.value.hint


def test_one_server_runs_without_device_ips() -> None:
    made = plan(ascend("n1"), job(), {})
    assert made.rank_table is not None
    assert "device_ip" not in made.rank_table


def test_a_host_that_contradicts_the_inventory() -> None:
    hosts = ascend('{n1: {device_ips: "10.[0-7].0.1"}, n2: {device_ips: "10.[0-7].0.3"}}')
    assert plan(hosts, job(), {"n1": reported(1)}).world_size == 16
    with pytest.raises(PlanError, match="has 8 problems") as caught:
        plan(hosts, job(), {"n1": reported(1), "n2": reported(2)})
    assert "n2: device 7 has IP '10.7.0.2', but the inventory declares '10.7.0.3'" in str(
        caught.value
    )


def test_threads_share_the_cores_that_are_known() -> None:
    facts = {"localhost": HostFacts(cpu_count=5)}
    assert (
        environments(plan(inventory(LOCAL), job(), facts))["localhost/rank_0"]["OMP_NUM_THREADS"]
        == "2"
    )
    unknown = environments(plan(inventory(LOCAL), job(), {}))["localhost/rank_0"]
    assert "OMP_NUM_THREADS" not in unknown


def test_the_jobs_environment_goes_before_the_hosts_before_the_defaults() -> None:
    hosts = inventory(
        LOCAL.replace("workdir", "env: {A: host, B: host, PYTHONUNBUFFERED: 0}, workdir")
    )
    env = environments(plan(hosts, job(env={"A": "job"}), {}))["localhost/rank_0"]
    assert (env["A"], env["B"], env["PYTHONUNBUFFERED"]) == ("job", "host", "0")


@pytest.mark.parametrize("name", ["RANK_ID", "RANK_TABLE_FILE", "MS_SCHED_HOST", "GLM2_RUN_ID"])
def test_what_makes_a_rank_cannot_be_overridden(name: str) -> None:
    with pytest.raises(PlanError, match=f"{name} is set by --env"):
        plan(inventory(LOCAL), job(env={name: "7"}), {})
    hosts = inventory(LOCAL.replace("workdir", f"env: {{{name}: 7}}, workdir"))
    with pytest.raises(PlanError, match=f"{name} is set by the inventory"):
        plan(hosts, job(), {})


def test_hccl_variables_of_the_rank_table_recipe() -> None:
    def env(**changes: str) -> Dict[str, str]:
        return environments(plan(ascend("n1"), job(env=changes), {}))["n1/rank_3"]

    assert env()["HCCL_WHITELIST_DISABLE"] == "1"
    assert env()["HCCL_CONNECT_TIMEOUT"] == "600"
    assert env()["HCCL_EXEC_TIMEOUT"] == "1836"
    assert env()["ASCEND_PROCESS_LOG_PATH"] == "/data/runs/r1/ranks/rank_3/ascend"
    assert env(HCCL_EXEC_TIMEOUT="2000")["HCCL_EXEC_TIMEOUT"] == "1972"  # 29 * 68


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"HCCL_CONNECT_TIMEOUT": "60"}, "HCCL allows 120 to 7200"),
        ({"HCCL_CONNECT_TIMEOUT": "soon"}, "HCCL_CONNECT_TIMEOUT is 'soon'"),
        ({"HCCL_EXEC_TIMEOUT": "17341"}, "HCCL allows 68 to 17340"),
        ({"HCCL_EXEC_TIMEOUT": "67"}, "HCCL allows 68 to 17340"),
        ({"HCCL_CONNECT_TIMEOUT": "1836"}, "not less than"),
    ],
)
def test_hccl_ranges(env: Dict[str, str], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan(ascend("n1"), job(env=env), {})


def test_the_configuration_is_sent_with_the_hosts_device_target() -> None:
    text = file(plan(inventory(LOCAL), job(), {}).hosts[0], "job.yaml")
    values = yaml.safe_load(text)
    assert values["context"] == {"mode": 0, "device_target": "CPU"}
    assert values["train_dataset_task"]["dataset_config"] is values["train_dataset"]


def test_a_context_that_is_no_mapping() -> None:
    with pytest.raises(JobError, match="`context` is the value"):
        plan(inventory(LOCAL), job(config=config("context: 3\n")), {})


COMMAND = ("/opt/python", "-m", "glm2")
CONFIG = ("--config", "/home/someone/work/runs/r1/job.yaml")


@pytest.mark.parametrize(
    ("changes", "argv"),
    [
        ({}, (*COMMAND, *CONFIG, "--run_mode", "finetune", "--use_parallel", "True")),
        (
            {"mode": "predict", "predict_data": "你好 $(x)", "load_checkpoint": "/w/a.ckpt"},
            (
                *(*COMMAND, *CONFIG, "--run_mode", "predict", "--use_parallel", "True"),
                *("--load_checkpoint", "/w/a.ckpt", "--predict_data", "你好 $(x)"),
            ),
        ),
        (
            {"worker_args": ("--more", "x y")},
            (
                *(*COMMAND, *CONFIG, "--run_mode", "finetune", "--use_parallel", "True"),
                *("--more", "x y"),
            ),
        ),
        (
            {"worker_command": ("python", "run.py"), "worker_args": ("-v",)},
            ("python", "run.py", "-v"),
        ),
    ],
)
def test_the_command_of_a_rank(changes: Dict[str, Any], argv: tuple[str, ...]) -> None:
    made = plan(inventory(LOCAL), job(**changes), {})
    assert made.hosts[0].processes[1].argv == argv
    assert made.hosts[0].processes[0].argv == (*COMMAND, "scheduler")


def test_one_rank_is_not_parallel() -> None:
    argv = plan(cpu("n1", "[0,1)"), job(), {}).hosts[0].processes[0].argv
    assert argv[-2:] == ("--use_parallel", "False")


def test_export_is_the_work_of_one_process() -> None:
    argv = plan(cpu("n1", "[0,1)"), job(mode="export"), {}).hosts[0].processes[0].argv
    assert argv == ("python3", "-m", "glm2", "export", "--config", "/data/runs/r1/job.yaml")
    with pytest.raises(PlanError, match="work of one process") as caught:
        plan(cpu("n1"), job(mode="export"), {})
    assert "--devices" in caught.value.hint


def test_any_command_without_a_configuration() -> None:
    only = job(config=None, worker_command=("true",), recipe="dynamic_cluster")
    made = plan(cpu("10.0.0.1", "[0,1)"), only, {})
    assert "job.yaml" not in [f.path for f in made.hosts[0].files]
    assert made.ships_worker  # the scheduler is glm2's
    assert not plan(cpu("n1", "[0,1)"), job(config=None, worker_command=("true",)), {}).ships_worker


def test_the_specification_of_the_supervisor() -> None:
    made = plan(cpu("10.0.0.1", "3,5"), job(grace_s=4.5), {})
    assert json.loads(file(made.hosts[0], "spec.json")) == {
        "schema": 1,
        "run_id": "r1",
        "host": "10.0.0.1",
        "workdir": "/data",
        "grace_s": 4.5,
        "heartbeat_s": 1.0,
        "leases": ["device_3", "device_5", "port_8118"],
        "processes": [
            {"name": "scheduler", "rank": None, "argv": ["bash", "ranks/scheduler/launch.sh"]},
            {"name": "rank_0", "rank": 0, "argv": ["bash", "ranks/rank_0/launch.sh"]},
            {"name": "rank_1", "rank": 1, "argv": ["bash", "ranks/rank_1/launch.sh"]},
        ],
    }


PARALLEL = "parallel_config:\n  data_parallel: 2\n  model_parallel: 1\n"


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        (PARALLEL, "[0,2)"),
        (PARALLEL.replace("model_parallel: 1", "model_parallel: 2"), "[0,4)"),
        ("parallel_config:\n  model_parallel: 2\n", "[0,6)"),
        ("parallel_config:\n", "[0,6)"),
        ("parallel_config: {data_parallel: 0, model_parallel: 2}", "[0,6)"),  # 0: all that fit
        (PARALLEL, "[0,1)"),  # one rank is not parallel
    ],
)
def test_layouts_that_fit(text: str, devices: str) -> None:
    assert plan(cpu("10.0.0.1", devices), job(config=config(text)), {}).world_size > 0


@pytest.mark.parametrize(
    ("text", "message", "place", "hint"),
    [
        (PARALLEL, "data_parallel 2 · model_parallel 1 · pipeline_stage 1 = 2", (2, 18), "=4"),
        ("parallel_config: {model_parallel: 3}", "does not divide 4 ranks", (1, 35), ""),
        ("parallel_config: {data_parallel: x}", "not a number from 0 up", (1, 34), "--set"),
        ("parallel_config: {model_parallel: 0}", "not a number from 1 up", (1, 35), "--set"),
        (
            "parallel_config: {data_parallel: 1, model_parallel: 8}",
            "= 8, but there are 4 ranks",
            (1, 34),
            "hosts and devices",
        ),
    ],
)
def test_layouts_that_do_not_fit(
    text: str, message: str, place: tuple[int, int], hint: str
) -> None:
    with pytest.raises(PlanError) as caught:
        plan(cpu("10.0.0.1", "[0,4)"), job(config=config(text)), {})
    assert message in str(caught.value)
    assert caught.value.location == Location("c.yaml", *place)
    assert hint in caught.value.hint


def test_devices_that_a_910_server_does_not_have() -> None:
    hosts = ascend("n1")
    beyond = replace(hosts, hosts=(replace(hosts.hosts[0], devices=(8, 9)),))
    with pytest.raises(PlanError, match="n1: device 9 does not exist on a 910"):
        plan(beyond, job(), {})


def test_uneven_hosts_are_refused_by_hccl_alone() -> None:
    uneven = "{10.0.0.1: , 10.0.0.2: {devices: '0'}}"
    assert plan(cpu(uneven), job(), {}).world_size == 3
    facts = {"10.0.0.1": reported(1), "10.0.0.2": reported(2)}
    with pytest.raises(RankTableError, match="different numbers of devices"):
        plan(ascend(uneven, "[0,2)"), job(), facts)


def test_the_order_of_the_inventory_does_not_matter() -> None:
    forward = plan(cpu("[10.0.0.1, 10.0.0.2]"), job(), {})
    backward = plan(cpu("[10.0.0.2, 10.0.0.1]"), job(), {})
    assert forward.to_json() == backward.to_json()
