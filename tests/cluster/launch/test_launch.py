"""Whole launches over real SSH: success, failure, stop, detach and attach."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from platform import python_version

import pytest

from orchestrator.runs.journal import read_events
from tests.cluster.launch.conftest import processes_of, standin, without_scheduler
from tests.cluster.sshd import wait_until


@pytest.fixture
def two_hosts(loopback):
    return loopback(2)


def test_success_leaves_logs_metrics_and_a_true_state(cli, two_hosts):
    inventory = two_hosts.inventory()
    done = cli("launch", "-i", inventory, "--run-id", "good", *standin(), "finetune")
    assert done.status == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith("run good succeeded: 4 of 4 ranks")

    state = cli("status", "good", "-o", "json").json()
    assert (state["status"], state["ranks_succeeded"], state["ranks_total"]) == ("succeeded", 4, 4)
    assert [process["step"] for process in state["processes"] if process["rank"] is not None] == [
        3
    ] * 4

    logs = cli("logs", "good", "--rank", "0,3", "--grep", "step 2")
    assert logs.stdout.splitlines() == [
        "rank_0 | rank 0 step 2 损失",
        "rank_3 | rank 3 step 2 损失",
    ]
    (versions,) = [e for e in read_events(cli.run("good").journal) if e["event"] == "versions"]
    (alike,) = versions["groups"]
    assert (alike["hosts"], alike["python"]) == (["127.0.1.1", "127.0.1.2"], python_version())
    for host in two_hosts.hosts:
        raw = host.workdir + "/runs/good/journal.jsonl"
        with open(raw, "rb") as stream:
            assert stream.read() == cli.run("good").host_journal(host.name).read_bytes()


def test_a_failing_rank_stops_the_other_hosts_and_is_named(cli, two_hosts):
    inventory = two_hosts.inventory()
    done = cli(
        *("launch", "-i", inventory, "--run-id", "bad", "--env", "STANDIN_FAIL=2:3"),
        *("--env", "STANDIN_HANG=1", *standin(), "-o", "json", "finetune"),
    )
    assert done.status == 6, done.stderr
    assert "rank_2 on 127.0.1.2 failed first, exit status 3" in done.stderr.splitlines()[-1]
    assert "  | rank 2 gives up" in done.stderr
    state = done.json()
    assert state["status"] == "failed"
    assert state["cause"]["process"] == "rank_2"
    by_rank = {p["rank"]: p["status"] for p in state["processes"] if p["rank"] is not None}
    assert by_rank == {0: "stopped", 1: "stopped", 2: "failed", 3: "stopped"}
    assert cli("status", "bad").status == 6
    assert processes_of("bad") == []


def test_detach_attach_and_stop(cli, two_hosts):
    inventory = two_hosts.inventory()
    launched = cli(
        *("launch", "-i", inventory, "--run-id", "long", "--detach", "-o", "json"),
        *("--env", "STANDIN_HANG=1", *standin(), "finetune"),
    )
    assert launched.status == 0, launched.stderr
    assert launched.json()["run_id"] == "long"

    def steps():
        return [p["step"] for p in cli("status", "-o", "json").json()["processes"] if p["rank"]]

    wait_until(lambda: steps() == [3, 3, 3], "all ranks to reach their last step")
    assert cli("status").status == 0

    attached = cli.start("attach", "long")
    stopped = cli("stop", "long", "--grace", "2", "-o", "json")
    assert stopped.status == 0, stopped.stderr
    assert stopped.json()["clean"] is True
    _, talk = attached.communicate(timeout=60)
    assert attached.returncode == 8
    assert "run long was stopped" in talk
    assert cli("status", "long", "--json").json()["status"] == "cancelled"
    wait_until(lambda: not processes_of("long"), "the end of the background controller")
    again = cli("stop", "long")
    assert again.status == 0, again.stderr
    assert cli("status", "long", "--json").json()["status"] == "cancelled"


def test_the_controller_dies_and_attach_takes_over(cli, two_hosts):
    inventory = two_hosts.inventory()
    with cli.start(
        *("launch", "-i", inventory, "--run-id", "orphan"), *standin(60), "finetune"
    ) as launch:
        journal = cli.store.root / "orphan" / "journal.jsonl"
        wait_until(lambda: journal.exists() and "running" in journal.read_text(), "the start")
        launch.send_signal(signal.SIGKILL)
        launch.communicate()
    assert "no controller watches this run" in cli("status", "orphan").stdout
    attached = cli("attach", "orphan")
    assert attached.status == 0, attached.stderr
    assert attached.stderr.splitlines()[-1].startswith("run orphan succeeded: 4 of 4 ranks")
    steps = cli.run("orphan").metrics("rank_3").read_text().splitlines()
    assert [json.loads(line)["step"] for line in steps] == list(range(1, 61))


def test_the_first_ctrl_c_detaches(cli, two_hosts):
    inventory = two_hosts.inventory()
    with cli.start(
        *("launch", "-i", inventory, "--run-id", "kept", "--env", "STANDIN_HANG=1"),
        *standin(),
        "finetune",
    ) as launch:
        journal = cli.store.root / "kept" / "journal.jsonl"
        wait_until(lambda: journal.exists() and "running" in journal.read_text(), "the start")
        launch.send_signal(signal.SIGINT)
        _, talk = launch.communicate(timeout=60)
    assert launch.returncode == 130
    assert "detached: run kept goes on" in talk
    state = cli("status", "kept", "--json").json()
    assert state["status"] == "running"
    assert state["controller"]["purpose"] == "background controller"
    assert cli("stop", "kept", "--grace", "1").status == 0


def test_two_runs_never_share_a_device(cli, two_hosts):
    inventory = two_hosts.inventory()
    first = cli(
        *("launch", "-i", inventory, "--run-id", "first", "--detach", "--env", "STANDIN_HANG=1"),
        *standin(),
        "finetune",
    )
    assert first.status == 0, first.stderr
    second = cli("launch", "-i", inventory, "--run-id", "second", *standin(), "finetune")
    assert second.status == 9, second.stderr
    assert "first" in second.stderr
    for host in two_hosts.hosts:
        assert not (two_hosts.folder / host.name / "workdir" / "runs" / "second").exists()
    assert cli("status", "second", "--json").json()["exit_status"] == 9
    assert cli("stop", "first", "--grace", "1").status == 0


def test_twelve_hosts_two_mindspore_ranks_and_stand_ins(cli, loopback, free_port):
    cluster = loopback(12)
    python = str(without_scheduler(cluster.folder))
    hosts = [replace(host, devices=(0,), python=python) for host in cluster.hosts]
    inventory = cluster.inventory(hosts=hosts)
    done = cli(
        *("launch", "-i", inventory, "--run-id", "twelve", "--env", "STANDIN_MINDSPORE=2"),
        *("--env", f"STANDIN_PORT={free_port}", *standin(20, "auto"), "-o", "json", "finetune"),
        timeout=280,
    )
    assert done.status == 0, done.stderr
    state = done.json()
    assert (state["ranks_succeeded"], state["ranks_total"]) == (12, 12)
    # Rank ids follow the dictionary order of the servers.
    hosts_by_rank = {p["rank"]: p["host"] for p in state["processes"] if p["rank"] is not None}
    assert [hosts_by_rank[rank] for rank in (0, 1, 2, 4)] == [
        *("127.0.1.1", "127.0.1.10", "127.0.1.11", "127.0.1.2")
    ]
    losses = [
        json.loads(line)["loss"]
        for line in cli.run("twelve").metrics("rank_1").read_text().splitlines()
        if '"loss"' in line
    ]
    assert losses[-1] < 0.8 * losses[0]

    collected = cli("collect-ckpt", "twelve", "--merge", "-o", "json")
    assert collected.status == 0, collected.stderr
    assert cli.run("twelve").checkpoints.joinpath("COMPLETE").exists()


HCCN_TOOL = """#!/bin/sh
# Stands in for Ascend's hccn_tool: hccn_tool -i N -ip -g
[ "$3$4" = -ip-g ] || exit 1
echo "ipaddr:10.$(( $2 % 4 + 1 )).$(( $2 / 4 )).{last}"
echo "netmask:255.255.255.0"
"""


def test_the_rank_table_recipe_with_stand_ins_for_the_device_tools(cli, loopback):
    """Not run on hardware: hccn_tool prints the real format, the ranks are stand-ins."""
    cluster = loopback(2)
    for number, host in enumerate(cluster.hosts, start=10):
        cluster.add_tool(host, "hccn_tool", HCCN_TOOL.format(last=number))
    hosts = [
        replace(host, device_target="Ascend", devices=tuple(range(8))) for host in cluster.hosts
    ]
    inventory = cluster.inventory(hosts=hosts)
    # Both hosts are this machine and have its hostname, which a preflight does not let pass.
    done = cli(
        *("launch", "-i", inventory, "--run-id", "tables", "--skip-preflight"),
        *(*standin(recipe="auto"), "finetune"),
    )
    assert done.status == 0, done.stderr
    table = json.loads(cli.run("tables").rank_table.read_text())
    assert (table["version"], table["server_count"], table["status"]) == ("1.0", "2", "completed")
    devices = [device for server in table["server_list"] for device in server["device"]]
    assert [device["rank_id"] for device in devices] == [str(rank) for rank in range(16)]
    assert devices[13] == {"device_id": "5", "device_ip": "10.2.1.11", "rank_id": "13"}
    copies = {Path(host.workdir, "runs/tables/rank_table.json").read_bytes() for host in hosts}
    assert copies == {cli.run("tables").rank_table.read_bytes()}
    environment = Path(hosts[1].workdir, "runs/tables/ranks/rank_13/env.sh").read_text()
    assert f"RANK_TABLE_FILE={hosts[1].workdir}/runs/tables/rank_table.json" in environment
    assert "MS_WORKER_NUM=" not in environment


def test_a_nic_that_differs_from_the_inventory_is_named(cli, loopback):
    cluster = loopback(1)
    (host,) = cluster.hosts
    cluster.add_tool(host, "hccn_tool", HCCN_TOOL.format(last=10))
    declared = ("10.1.0.10", "10.9.9.9")
    ascend = replace(host, device_target="Ascend", device_ips=declared)
    done = cli(
        "launch", "-i", cluster.inventory(hosts=[ascend]), *standin(recipe="auto"), "finetune"
    )
    assert done.status == 3
    assert "10.9.9.9" in done.stderr
    assert "10.2.0.10" in done.stderr


def test_logs_follow_to_the_end_of_a_run(cli, two_hosts):
    inventory = two_hosts.inventory()
    started = cli(
        *("launch", "-i", inventory, "--run-id", "talk", "--detach"), *standin(50), "finetune"
    )
    assert started.status == 0, started.stderr
    followed = cli("logs", "talk", "-f", "--rank", "1-2", "-o", "jsonl")
    assert followed.status == 0
    lines = [json.loads(line) for line in followed.stdout.splitlines()]
    for rank in (1, 2):
        assert [line["line"] for line in lines if line["process"] == f"rank_{rank}"] == [
            f"rank {rank} step {step} 损失" for step in range(1, 51)
        ]
