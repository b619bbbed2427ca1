"""``glm2-orch hosts``, and plans that leave quarantined hosts out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli.hosts import parse_duration
from orchestrator.cli.main import main
from orchestrator.errors import UsageError

INVENTORY = """\
cluster: c
defaults: {device_target: CPU, devices: "[0,2)", workdir: /data}
groups:
  workers: {hosts: "n[1-3]"}
  spares: {hosts: n8}
hosts:
  n1: {server_id: 10.0.0.1}
  n2: {server_id: 10.0.0.2}
  n3: {server_id: 10.0.0.3}
  n8: {server_id: 10.0.0.8}
job: {worker_command: "true"}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs one command; its exit status, output and talk."""
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inv.yaml").write_text(INVENTORY)

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([*words[:2], "-i", "inv.yaml", *words[2:]])
        done = capsys.readouterr()
        return int(str(ended.value.code)), done.out, done.err

    return run


def test_a_host_goes_into_quarantine_and_comes_back(run: Any) -> None:
    status, out, err = run("hosts", "quarantine", "n2", "--reason", "link down", "--for", "24h")
    assert (status, out) == (0, "")
    assert err.startswith("n2 is quarantined until 20")
    status, out, err = run("hosts", "list")
    assert status == 0
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["HOST", "ROLE", "STATE", "UNTIL", "BY", "SINCE", "REASON"]
    assert rows[1][:3] == ["n1", "host", "working"]
    assert rows[2][:3] == ["n2", "host", "quarantined"]
    assert rows[2][-2:] == ["link", "down"]
    assert rows[4][:5] == ["n8", "spare", "in", "use", "working"]
    assert "n8 takes its place" in err
    assert run("hosts", "release", "n[1-2]") == (0, "", "n1 was not quarantined\nn2 is released\n")
    assert "quarantined" not in run("hosts", "list")[1]


def test_json(run: Any) -> None:
    _, out, _ = run("hosts", "quarantine", "workers", "--reason", "[red]move", "-o", "json")
    assert [entry["host"] for entry in json.loads(out)["hosts"]] == ["n1", "n2", "n3"]
    status, out, err = run("hosts", "list", "--json")
    listed = json.loads(out)
    assert (status, err, listed["schema"], listed["cluster"]) == (0, "", 1, "c")
    assert {key: listed["hosts"][0][key] for key in ("host", "role", "state", "reason", "by")} == {
        "host": "n1",
        "role": "host",
        "state": "quarantined",
        "reason": "[red]move",
        "by": "operator",
    }
    assert listed["hosts"][0]["until"] is None
    assert listed["notes"][0].startswith("no spare is left to take the place of n2, n3")
    assert "[red]move" in run("hosts", "list")[1]
    released = json.loads(run("hosts", "release", "n1", "--json")[1])["hosts"]
    assert [entry["host"] for entry in released] == ["n1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("quarantine", "n9", "--reason", "x"), "has no host or group 'n9'"),
        (("quarantine", "n[1", "--reason", "x"), "`[` is not closed"),
        (("quarantine", "n1", "--reason", " "), "--reason is empty"),
        (("quarantine", "n1", "--reason", "x", "--for", "soon"), "'soon' is not a time"),
        (("quarantine", "n1", "--reason", "x", "--for", "0h"), "ten years"),
        (("quarantine", "n1"), "--reason"),
        (("release",), "HOST..."),
        (("release", "n9"), "has no host or group 'n9'"),
    ],
)
def test_what_is_refused(run: Any, words: tuple[str, ...], said: str) -> None:
    status, _, err = run("hosts", *words)
    assert status == 2
    assert said in err
    assert "quarantined" not in run("hosts", "list")[1]


def test_a_host_that_left_the_inventory_is_listed_and_released(run: Any, tmp_path: Path) -> None:
    run("hosts", "quarantine", "n3", "--reason", "x")
    (tmp_path / "inv.yaml").write_text(
        INVENTORY.replace("n[1-3]", "n[1-2]").replace("  n3: {server_id: 10.0.0.3}\n", "")
    )
    assert "not in the inventory" in run("hosts", "list")[1]
    assert run("hosts", "release", "n3")[2] == "n3 is released\n"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("24h", 86400), ("7d", 604800), ("1d12h", 129600)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "1.5h", "24 hours", "9999999d", "999999d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError):
        parse_duration(text)


PLAN = ("plan", "finetune")
DRY_RUN = ("launch", "finetune", "--dry-run")


@pytest.mark.parametrize("words", [PLAN, DRY_RUN])
def test_plans_leave_quarantined_hosts_out(run: Any, words: tuple[str, ...]) -> None:
    before = json.loads(run(*words, "--json")[1])
    assert before["notes"] == []
    run("hosts", "quarantine", "n2", "--reason", "link down")
    status, out, err = run(*words)
    assert status == 0
    assert [line.split()[1] for line in out.splitlines()[2:]] == [
        "n1",
        "n1",
        "n3",
        "n3",
        "n8",
        "n8",
    ]
    note = "n2 is quarantined until released (link down); n8 takes its place"
    assert f"note: {note}\n" in err
    assert json.loads(run(*words, "--json")[1])["notes"] == [note]


@pytest.mark.parametrize("words", [PLAN, DRY_RUN, ("launch", "finetune")])
def test_too_few_hosts_is_one_error(run: Any, words: tuple[str, ...]) -> None:
    run("hosts", "quarantine", "n1", "n8", "--reason", "ECC", "--for", "7d")
    status, _, err = run(*words)
    assert status == 4
    assert "no spare is left to take the place of n1: 2 of 3 hosts can work" in err
    assert "  n8 is quarantined until 20" in err
    assert "glm2-orch hosts release -i inv.yaml n1" in err
    assert run(*PLAN, "--limit", "!n1")[0] == 0


def test_devices_that_the_inventory_does_not_have(run: Any, tmp_path: Path) -> None:
    text = INVENTORY.replace("{server_id: 10.0.0.8}", "{server_id: 10.0.0.8, devices: '0'}")
    (tmp_path / "inv.yaml").write_text(text)
    status, _, err = run(*PLAN, "--devices", "[0,4)")
    assert status == 2
    assert "--devices [0,4): inv.yaml gives n1 no device 2, 3 (nor 2 more hosts all of" in err
    assert "choose among 0, 1" in err
    assert run(*PLAN, "--devices", "1")[0] == 0  # a spare that lacks it is no spare for this job
    run("hosts", "quarantine", "n1", "--reason", "x")
    assert run(*PLAN, "--devices", "1")[0] == 4
    assert run(*PLAN, "--devices", "0")[0] == 0
