"""``glm2-orch preflight`` and ``launch`` as they are run, with stand-ins for the device tools."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Iterator

import pytest

from tests.cluster.launch.conftest import Cli, standin
from tests.cluster.preflight.ascend import DATA, Ascend
from tests.cluster.sshd import SSHD


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ascend]:
    if SSHD is None:
        pytest.skip("sshd is not installed (Debian: openssh-server)")
    with ExitStack() as stack:
        yield Ascend(stack, tmp_path_factory.mktemp("preflight"), 2)


@pytest.fixture
def cluster(servers: Ascend) -> Ascend:
    servers.healthy()
    return servers


def test_all_is_well(cli: Cli, cluster: Ascend) -> None:
    done = cli("preflight", "-i", cluster.inventory())
    assert done.status == 0, done.stderr
    first, *rest, last = done.stdout.splitlines()
    assert first.startswith("OK   reachable, answers, tools, ")
    assert all(line.startswith("SKIP ") for line in rest)
    assert last.startswith("2 hosts: 32 checks OK (")
    assert "checking hosts: 2/2" in done.stderr


def test_the_worst_comes_last(cli: Cli, cluster: Ascend) -> None:
    bad = cluster.servers[0]
    bad.nic(4, "link", "link status: DOWN\n")
    bad.nic(4, "netdetect", "netdetect address: 0.0.0.0\n")
    done = cli("preflight", "-i", cluster.inventory())
    assert done.status == 4
    assert done.stdout.splitlines()[-5:-1] == [
        f"WARN netdetect: {bad.name} device 4: no netdetect address is set",
        f"      next: ssh {bad.name} hccn_tool -i 4 -netdetect -s address A (usually the gateway)",
        f"CRIT link: {bad.name} device 4: link status: DOWN",
        f"      next: ssh {bad.name} hccn_tool -i 4 -link_stat -g; check cable, optical module "
        "and switch port",
    ]
    assert done.stdout.splitlines()[-1].startswith("2 hosts: 1 critical, 1 warning, 30 checks OK (")


def test_json_has_every_finding(cli: Cli, cluster: Ascend) -> None:
    bad = cluster.servers[0]
    bad.nic(4, "link", "link status: DOWN\n")
    done = cli("preflight", "-i", cluster.inventory(), "-o", "json")
    assert done.status == 4
    answer = done.json()
    assert answer["hosts"] == 2
    links = {
        (f["host"], f["device"]): f["status"] for f in answer["findings"] if f["check"] == "link"
    }
    names = [server.name for server in cluster.servers]
    assert links == {
        (n, d): "CRIT" if (n, d) == (names[0], 4) else "OK" for n in names for d in (0, 4)
    }
    lines = cli("preflight", "-i", cluster.inventory(), "-o", "jsonl").stdout.splitlines()
    found = [json.loads(line) for line in lines]
    assert all(finding.pop("schema") == 1 for finding in found)
    assert {frozenset(f) for f in found} == {
        frozenset(("check", "status", "class", "host", "device", "evidence", "remedy"))
    }
    assert len(found) == len(answer["findings"])


def test_the_files_of_a_described_job(cli: Cli, cluster: Ascend, tmp_path: Path) -> None:
    config = tmp_path / "own.yaml"
    config.write_text(
        "train_dataset:\n"
        f"  data_loader: {{dataset_dir: {DATA}/train.json}}\n"
        "  tokenizer: {vocab_file: tokenizer.model}\n"
    )
    cluster.servers[1].remove("data/train.json")
    inventory = cluster.inventory()
    done = cli(*("preflight", "-i", inventory, "--config", config, "--load-checkpoint", "/no/such"))
    assert done.status == 4
    assert "CRIT checkpoint: 2 hosts (127.0.1.1, 127.0.1.2): /no/such is missing" in done.stdout
    assert f"CRIT dataset: 127.0.1.2: {DATA}/train.json is missing" in done.stdout
    assert (
        "CRIT vocabulary: train_dataset.tokenizer.vocab_file 'tokenizer.model' is a" in done.stdout
    )


def test_only_unreachable(cli: Cli, cluster: Ascend) -> None:
    host = cluster.servers[1].host
    cluster.loopback.stop(host)
    try:
        done = cli("preflight", "-i", cluster.inventory())
    finally:
        cluster.loopback.start(host)
    assert done.status == 5
    assert f"CRIT reachable: {host.name}: " in done.stdout


def test_a_bad_host_is_quarantined(cli: Cli, cluster: Ascend) -> None:
    bad = cluster.servers[1]
    bad.npus(health={0: "Alarm"})
    cluster.servers[0].npus(processes={0: (4242, "python", 300)})
    inventory = cluster.inventory()
    done = cli("preflight", "-i", inventory, "--quarantine")
    assert done.status == 4
    hosts = cli("hosts", "list", "-i", inventory, "-o", "json").json()["hosts"]
    states = {host["host"]: (host["state"], host["by"], host["reason"]) for host in hosts}
    reason = "npu-health device 0: health Alarm"
    assert states == {
        cluster.servers[0].name: ("working", None, None),
        bad.name: ("quarantined", "preflight", reason),
    }


def test_launch_stops_before_anything_is_sent(cli: Cli, cluster: Ascend) -> None:
    bad = cluster.servers[1]
    bad.npus(health={4: "Alarm"})
    bad.nic(0, "gateway", "Get gateway failed, because no gateway was preset there!\n")
    launch = ("launch", "-i", cluster.inventory(), "--run-id", "refused", *standin(), "finetune")
    done = cli(*launch)
    assert done.status == 4, done.stderr
    lines = done.stderr.splitlines()
    assert f"warning: gateway: {bad.name} device 0: no gateway address is set" in lines
    assert f"error: {bad.name}: npu-health: device 4: health Alarm" in lines
    assert any(line.endswith(" --quarantine") for line in lines)
    assert not cli.store.names()
    assert not (bad.home / "workdir/runs").exists()


def test_launch_after_a_preflight_and_without(cli: Cli, cluster: Ascend) -> None:
    launch = ("launch", "-i", cluster.inventory(), *standin(), "finetune")
    done = cli(*launch)
    assert done.status == 0, done.stderr
    assert "preflight: 2 hosts: 32 checks OK\n" in done.stderr
    cluster.servers[0].npus(health={4: "Alarm"})
    done = cli(*launch, "--skip-preflight")
    assert done.status == 0, done.stderr
    assert "preflight" not in done.stderr
