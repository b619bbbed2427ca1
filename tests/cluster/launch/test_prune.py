"""Old runs removed on their hosts too."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.launch.conftest import standin

pytestmark = pytest.mark.cluster


def test_folders_on_hosts_go_with_the_record_and_living_runs_stay(cli, tmp_path):
    inventory = tmp_path / "here.yaml"
    inventory.write_text(
        "hosts: localhost\ndefaults: {connection: local, device_target: CPU, devices: '[0,1)', "
        f"workdir: '{tmp_path}/work'}}\n"
    )
    launch = ("launch", "-i", inventory, "--skip-preflight", "finetune")
    for name in ("one", "two"):
        done = cli(*launch, "--run-id", name, *standin(1))
        assert done.status == 0, done.stderr
    assert cli(*launch, "--run-id", "alive", "--detach", *standin(5000)).status == 0
    runs = tmp_path / "work" / "runs"
    try:
        kept = cli("runs", "prune", "--keep", "2", "--json")
        assert kept.json()["removed"] == ["one"]
        assert names(runs) == ["alive", "one", "two"]
        gone = cli("runs", "prune", "--keep", "0", "--hosts", "--json")
        assert gone.json()["removed"] == ["two"]
        assert names(runs) == ["alive", "one"]
    finally:
        assert cli("stop", "alive").status == 0
    assert cli("runs", "prune", "--keep", "0", "--hosts", "--yes").status == 0
    assert names(runs) == ["one"]
    assert cli.store.names() == []


def names(folder: Path) -> list:
    return sorted(path.name for path in folder.iterdir())
