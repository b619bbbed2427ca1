"""Who controls a run, who waits for whom, and who stands in, over real SSH."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from orchestrator.runs.journal import Journal
from tests.cluster.launch.conftest import processes_of, standin, without_scheduler
from tests.cluster.sshd import wait_until

HANG = ("--env", "STANDIN_HANG=1")


@pytest.fixture
def two_hosts(loopback):
    return loopback(2)


def events(run, kind):
    return [event for event in Journal(run.journal).events() if event["event"] == kind]


def running(cli, run_id):
    journal = cli.store.root / run_id / "journal.jsonl"
    wait_until(lambda: journal.exists() and '"running"' in journal.read_text(), "the start")


def test_a_controller_that_hung_is_taken_over_from_and_told(cli, two_hosts):
    """It is stopped, not killed: it still holds its lock, and wakes up when another has taken
    over. It must not end the run, nor write about it."""
    first = cli.start(
        *("launch", "-i", two_hosts.inventory(), "--run-id", "held", *HANG, *standin()),
        "finetune",
    )
    running(cli, "held")
    first.send_signal(signal.SIGSTOP)
    second = cli.start("attach", "held", "--take-over")
    lock = cli.run("held").lock
    wait_until(
        lambda: second.poll() is not None or json.loads(lock.read_bytes())["epoch"] == 2,
        "the second controller",
    )
    assert second.poll() is None, second.communicate()
    wait_until(lambda: events(cli.run("held"), "take-over"), "the take-over")
    notes = [Path(host.workdir, "runs/held/controller.json") for host in two_hosts.hosts]
    wait_until(lambda: all('"epoch":2' in note.read_text() for note in notes), "the claims")
    first.send_signal(signal.SIGCONT)
    _, talk = first.communicate(timeout=60)
    assert first.returncode == 9, talk
    assert "another controller has taken over the run: attach (pid" in talk
    assert events(cli.run("held"), "end") == []
    assert cli("stop", "held", "--grace", "1").status == 0
    _, talk = second.communicate(timeout=60)
    assert second.returncode == 8, talk
    assert len(events(cli.run("held"), "end")) == 1


def test_a_background_controller_that_died_is_noticed(cli, two_hosts):
    launched = cli(
        *("launch", "-i", two_hosts.inventory(), "--run-id", "alone", "--detach"),
        *(*HANG, *standin(), "-o", "json", "finetune"),
    )
    controller = psutil.Process(launched.json()["controller_pid"])
    controller.kill()
    wait_until(lambda: not controller.is_running() or controller.status() == "zombie", "its end")
    shown = cli("status", "alone")
    assert "no controller watches this run" in shown.stdout
    assert "the hosts were started within" in shown.stdout
    stopped = cli("stop", "alone", "--grace", "1")
    assert stopped.status == 0, stopped.stderr
    assert "2 of 2 hosts are clean" in stopped.stderr
    certificates = events(cli.run("alone"), "certificate")
    assert {one["host"] for one in certificates} == {host.name for host in two_hosts.hosts}
    assert all(one["clean"] for one in certificates)


def test_a_launch_waits_for_the_devices_of_another_run(cli, two_hosts):
    inventory = two_hosts.inventory()
    first = cli(
        *("launch", "-i", inventory, "--run-id", "waited-for", "--detach", *HANG, *standin()),
        "finetune",
    )
    assert first.status == 0, first.stderr
    short = cli("launch", "-i", inventory, "--wait", "1s", *standin(), "finetune")
    assert short.status == 9
    assert "run waited-for holds 2 devices of 127.0.1.1, and 1 more hosts" in short.stderr
    second = cli.start(
        *("launch", "-i", inventory, "--run-id", "waiting-one", *standin(), "finetune", "--wait")
    )
    assert second.stderr is not None
    wait_until(lambda: "waiting: run waited-for" in second.stderr.readline(), "the waiting")
    assert cli("stop", "waited-for", "--grace", "1").status == 0
    _, talk = second.communicate(timeout=60)
    assert second.returncode == 0, talk
    assert cli("launch", "-i", inventory, *standin(), "--wait", "finetune").status == 2


def test_a_spare_takes_the_place_of_a_host_that_cannot_be_armed(cli, loopback):
    cluster = loopback(3)
    bad = cluster.hosts[1]
    # Its leases cannot be made; everything else works there.
    Path(bad.workdir).mkdir(exist_ok=True)
    Path(bad.workdir, "leases").write_text("in the way")
    inventory = cluster.inventory(hosts=cluster.hosts[:2])
    done = cli("launch", "-i", inventory, "--run-id", "whole", *standin(), "finetune")
    assert done.status == 4, done.stderr
    assert f"{bad.name}: " in done.stderr.splitlines()[-2]
    # Whoever had been armed by then is undone.
    assert not any(Path(host.workdir, "runs", "whole").exists() for host in cluster.hosts)
    wait_until(lambda: processes_of("whole") == [], "the end of those that armed")
    stopped = cli("stop", "whole")
    assert stopped.status == 0, stopped.stderr
    assert "2 of 2 hosts are clean" in stopped.stderr
    assert not any(Path(host.workdir, "runs", "whole").exists() for host in cluster.hosts)
    names = [host.name for host in cluster.hosts]
    groups = {"workers": {"hosts": names[:2]}, "spares": {"hosts": names[2:]}}
    inventory = cluster.inventory(groups=groups)
    done = cli("launch", "-i", inventory, "--run-id", "spared", *standin(), "finetune")
    assert done.status == 0, done.stderr
    assert f"{bad.name} is left out" in done.stderr
    assert f"{cluster.hosts[2].name} takes its place" in done.stderr
    state = cli("status", "spared", "-o", "json").json()
    assert [host["name"] for host in state["hosts"]] == [
        cluster.hosts[0].name,
        cluster.hosts[2].name,
    ]
    assert state["hosts_clean"] == 2
    assert not Path(bad.workdir, "runs", "spared").exists()
    assert processes_of("spared") == []


def test_what_a_dead_run_left_is_ended_before_the_next(cli, loopback, tmp_path):
    """A helper of a rank lives on when the supervisor was killed, and holds the device."""
    cluster = loopback(1)
    (host,) = cluster.hosts
    inventory = cluster.inventory()
    worker = f"bash -c '(sleep 600 & echo $! >> {tmp_path}/helpers); sleep 600'"
    first = cli(
        *(
            "launch",
            "-i",
            inventory,
            "--run-id",
            "dead-run",
            "--detach",
            "--worker-command",
            worker,
        ),
        "finetune",
    )
    assert first.status == 0, first.stderr
    events_there = Path(host.workdir, "runs/dead-run/journal.jsonl").read_text().splitlines()
    controller = psutil.Process(json.loads(cli.run("dead-run").lock.read_text())["pid"])
    controller.kill()
    helpers = tmp_path / "helpers"
    wait_until(lambda: helpers.exists() and len(helpers.read_text().split()) == 2, "the helpers")
    os.kill(json.loads(events_there[0])["pid"], signal.SIGKILL)
    wait_until(lambda: 0 < len(processes_of("dead-run")) <= 3, "the end of the ranks")
    second = cli("launch", "-i", inventory, "--run-id", "next-run", *standin(), "finetune")
    assert second.status == 0, second.stderr
    assert "processes that run dead-run left" in second.stderr
    (swept,) = events(cli.run("next-run"), "swept")
    assert (swept["run_id"], swept["left"]) == ("dead-run", [])
    assert cli("stop", "dead-run").status == 0


def test_two_launches_at_one_moment_take_two_ports_on_their_common_host(cli, loopback, tmp_path):
    """The port of MindSpore's scheduler: it is free until one of them has it."""
    cluster = loopback(1)
    host = replace(cluster.hosts[0], python=str(without_scheduler(tmp_path)))
    inventory = cluster.inventory(hosts=[host])
    launch = ("launch", "-i", inventory, "--detach", *HANG, *standin(3, "dynamic_cluster"))
    names = ("left", "right")
    both = [
        cli.start(*launch, "--run-id", name, "--devices", devices, "finetune")
        for name, devices in zip(names, ("[0,1)", "[1,2)"))
    ]
    for process in both:
        _, talk = process.communicate(timeout=120)
        assert process.returncode == 0, talk
    specs = [Path(host.workdir, "runs", name, "spec.json") for name in names]
    ports = [json.loads(spec.read_text())["leases"][-1] for spec in specs]
    assert all(port.startswith("port_") for port in ports)
    assert len(set(ports)) == 2
    for name in names:
        assert cli("stop", name, "--grace", "1").status == 0
