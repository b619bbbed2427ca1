"""What goes wrong before a job runs: the exit status, one clear sentence, and nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster.launch.conftest import standin
from tests.cluster.sshd import with_ssh, write_key


def launch(cli, inventory, *options):
    return cli("launch", "-i", inventory, "--run-id", "r", *options, *standin(), "finetune")


def last_error(done):
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "  next: " in done.stderr
    return lines[0]


def nothing_left(cluster):
    return [
        path
        for host in cluster.hosts
        for path in [Path(host.workdir) / "runs" / "r"]
        if path.exists()
    ] == []


def test_a_wrong_path(cli, tmp_path):
    done = launch(cli, tmp_path / "absent.yaml")
    assert done.status == 3
    assert "absent.yaml" in last_error(done)


def test_an_unknown_key_in_the_inventory(cli, loopback):
    cluster = loopback(1)
    inventory = cluster.inventory(grops={})
    done = launch(cli, inventory)
    assert done.status == 3
    assert "inventory.yaml:" in last_error(done)
    assert "groups" in done.stderr


def test_an_unknown_key_in_the_worker_configuration(cli, loopback):
    cluster = loopback(1)
    done = cli(
        *("launch", "-i", cluster.inventory(), "--config", "tiny_cpu"),
        *("--set", "model.model_config.num_layer=2", "finetune"),
    )
    assert done.status == 3
    assert "num_layer" in last_error(done)
    assert "num_layers" in done.stderr
    assert nothing_left(cluster)


def test_an_unreachable_host_hides_no_other(cli, loopback):
    cluster = loopback(3)
    cluster.stop(cluster.hosts[1])
    done = launch(cli, cluster.inventory())
    assert done.status == 5
    assert "127.0.1.2" in last_error(done)
    assert nothing_left(cluster)


def test_errors_of_several_hosts_are_all_shown(cli, loopback):
    cluster = loopback(3)
    cluster.stop(cluster.hosts[1])
    cluster.stop(cluster.hosts[2])
    done = cli(*("launch", "-i", cluster.inventory(), "-o", "json", *standin(), "finetune"))
    assert done.status == 5
    assert "2 of 3 hosts failed" in last_error(done)
    error = done.json()["error"]
    assert [one["host"] for one in error["errors"]] == ["127.0.1.2", "127.0.1.3"]
    assert {one["code"] for one in error["errors"]} == {"unreachable"}


def test_a_wrong_key(cli, loopback, tmp_path):
    cluster = loopback(1)
    write_key(tmp_path / "other")
    hosts = [with_ssh(host, key=str(tmp_path / "other")) for host in cluster.hosts]
    done = launch(cli, cluster.inventory(hosts=hosts))
    assert done.status == 5
    assert "key" in last_error(done)


def test_a_changed_host_key(cli, loopback):
    cluster = loopback(1)
    text = cluster.known_hosts.read_text()
    new_key = write_key(cluster.folder / "imposter").split()
    name = text.split()[0]
    cluster.known_hosts.write_text(f"{name} {new_key[0]} {new_key[1]}\n")
    done = launch(cli, cluster.inventory())
    assert done.status == 5
    assert "host key" in last_error(done)
    assert "ssh-keygen -R" in done.stderr


def test_a_host_without_python(cli, loopback):
    cluster = loopback(1)
    hosts = [replace(host, python="/usr/bin/python-is-not-here") for host in cluster.hosts]
    done = launch(cli, cluster.inventory(hosts=hosts))
    assert done.status == 4
    assert "python-is-not-here" in last_error(done)
    assert nothing_left(cluster)


def test_a_host_without_mindspore(cli, loopback, tmp_path):
    cluster = loopback(1)
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    hosts = [replace(host, python=f"{bare}/bin/python") for host in cluster.hosts]
    inventory = cluster.inventory(hosts=hosts, job={"config": "tiny_cpu"})
    done = cli("launch", "-i", inventory, "finetune")
    assert done.status == 4
    assert "has no MindSpore" in last_error(done)
    assert nothing_left(cluster)


def test_a_workdir_that_is_a_file(cli, loopback, tmp_path):
    cluster = loopback(1)
    (tmp_path / "file").write_text("")
    hosts = [replace(host, workdir=str(tmp_path / "file" / "work")) for host in cluster.hosts]
    done = launch(cli, cluster.inventory(hosts=hosts))
    assert done.status == 4
    assert str(tmp_path / "file") in last_error(done)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of its own; ``mount(options)`` mounts it."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a tmpfs needs root")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


@pytest.mark.parametrize(
    ("options", "reason"), [("size=64k", "full"), ("size=64k,ro", "ead-only")], ids=["full", "ro"]
)
def test_a_workdir_without_room(cli, loopback, small_disk, options, reason):
    cluster = loopback(1)
    folder = small_disk(options)
    hosts = [replace(host, workdir=str(folder)) for host in cluster.hosts]
    done = launch(cli, cluster.inventory(hosts=hosts))
    assert done.status == 4
    assert reason in last_error(done)
    assert list(folder.iterdir()) == []
    assert not cli.store.names()


def test_a_run_that_is_unknown(cli):
    for command in (
        ["status"],
        ["logs", "x"],
        ["stop", "x"],
        ["attach", "x"],
        ["collect-ckpt", "x"],
    ):
        done = cli(*command)
        assert done.status == 2
        assert "there is no run" in last_error(done)


def test_collecting_from_a_run_without_checkpoints(cli, loopback):
    cluster = loopback(1)
    assert launch(cli, cluster.inventory()).status == 0
    done = cli("collect-ckpt", "r")
    assert done.status == 10
    assert "checkpoint" in last_error(done)
