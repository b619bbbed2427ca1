"""``stage --prune`` on real hosts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Callable, List, Sequence

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli.main import cli
from orchestrator.errors import UsageError
from tests.cluster.sshd import Loopback

MONTHS_AGO = 1_600_000_000


def stage(inventory: Path, *words: str) -> Result:
    return CliRunner().invoke(cli, ["stage", "-i", str(inventory), *words])


def test_old_files_go_and_what_is_staged_now_stays(
    loopback: Callable[..., Loopback], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path / "home"))
    cluster = loopback(2)
    weights, place = tmp_path / "weights", tmp_path / "on-host" / "weights"
    inventory = cluster.inventory()
    inventory.write_text(
        f"{inventory.read_text()}job: {{stage: [{{from: {weights}, to: {place}}}]}}\n"
    )
    digests: List[str] = []
    for text in ("first", "second"):
        weights.write_text(text)
        assert stage(inventory).exit_code == 0
        assert place.read_text() == text
        digests.append(Path(os.readlink(place)).parents[1].name)
    trees = [Path(host.workdir, "staged", name) for host in cluster.hosts for name in digests]
    for folder in trees:
        os.utime(folder, (MONTHS_AGO, MONTHS_AGO))

    shown = stage(inventory, "--prune", "30d", "--dry-run")
    assert "2 of 4 trees on 2 hosts would be removed: " in shown.stderr
    assert "kept: this inventory stages it" in shown.stdout
    assert all(folder.exists() for folder in trees)

    done = json.loads(stage(inventory, "--prune", "30d", "--json").stdout)
    assert (done["dry_run"], done["failed"]) == (False, [])
    assert [folder.exists() for folder in trees] == [False, True, False, True]
    assert place.read_text() == "second"

    inventory.write_text(inventory.read_text().split("job:")[0])
    assert stage(inventory, "--prune", "30d").exit_code == 0
    assert not any(folder.exists() for folder in trees)
    assert not place.is_symlink()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--prune", "30d", "--direct"), "--prune sends nothing"),
        (("--prune", "soon"), "--prune 'soon' is not a time"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, words: Sequence[str], said: str) -> None:
    file = tmp_path / "inventory.yaml"
    file.write_text(
        "hosts: localhost\ndefaults: {connection: local, device_target: CPU, devices: [0], "
        "workdir: /w}\n"
    )
    failed = stage(file, *words).exception
    assert isinstance(failed, UsageError)
    assert said in str(failed)
