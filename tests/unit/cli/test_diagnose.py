"""``glm2-orch diagnose`` as a command: what it prints and how it exits."""

from __future__ import annotations

import json

import pytest

from orchestrator.cli.main import main
from orchestrator.runs.journal import Journal
from orchestrator.runs.layout import RunStore

OOM = "EL0004: 2024-01-01-00:00:05.000.000 Failed to allocate memory\n"


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def logs(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    (folder / "rank_0.log").write_text("EI0006: 2024-01-01-00:02:05.000.000 Getting socket\n")
    (folder / "rank_1.log").write_text(OOM)
    return folder


def call(capsys, *arguments):
    """Exit status, standard output, standard error."""
    with pytest.raises(SystemExit) as ended:
        main(["diagnose", *map(str, arguments)])
    shown = capsys.readouterr()
    return ended.value.code, shown.out, shown.err


def a_run(tmp_path, outcome):
    paths = RunStore(tmp_path / "home").create("train-1")
    host = {"name": "a", "processes": [{"name": "rank_0", "rank": 0}]}
    journal = Journal(paths.journal)
    journal.append("launch", cluster="c", mode="train", recipe="r", world_size=1, hosts=[host])
    journal.append("running")
    paths.plan.write_text("{}")
    paths.logs.mkdir()
    paths.log("rank_0").write_text(OOM if outcome != "succeeded" else "fine\n")
    code = 0 if outcome == "succeeded" else 1
    paths.host_journal("a").parent.mkdir(parents=True)
    Journal(paths.host_journal("a")).append(
        "process_exited", name="rank_0", rank=0, code=code, collateral=False
    )
    journal.append("end", outcome=outcome, exit_status=code * 6, cause=None)
    return paths


def test_a_folder(logs, capsys):
    status, out, _ = call(capsys, logs)
    assert status == 0
    assert "\nfirst cause: rank 1: EL0004, memory of the device" in out
    assert "rank_1.log:1: EL0004" in out
    assert out.splitlines()[-1].startswith("  do      ")


def test_one_file_as_json(logs, capsys):
    status, out, _ = call(capsys, logs / "rank_1.log", "-o", "json")
    answer = json.loads(out)
    assert status == 0
    assert (answer["schema"], answer["found"], answer["code"]) == (1, True, "EL0004")
    assert (answer["rank"], answer["place"]) == (1, "rank_1.log:1")


def test_no_cause_is_status_11(tmp_path, capsys):
    (tmp_path / "fine.log").write_text("all is well\n")
    status, out, err = call(capsys, tmp_path / "fine.log")
    assert status == 11
    assert "no cause was found" in out
    assert "--signatures" in err
    status, out, _ = call(capsys, tmp_path / "fine.log", "--json")
    assert (status, json.loads(out)["found"]) == (11, False)


def test_a_table_of_ones_own(tmp_path, logs, capsys):
    own = tmp_path / "own.yaml"
    own.write_text(
        "schema: 1\nsignatures:\n- id: pool\n  regex: Failed to allocate memory\n  role: root\n"
        "  meaning: the pool of our site is too small\n  remedy: call the site\n"
    )
    status, out, _ = call(capsys, logs, "--signatures", own)
    assert status == 0
    assert "pool, the pool of our site is too small" in out
    own.write_text("schema: 1\nsignatures:\n- id: pool\n")
    status, _, err = call(capsys, logs, "--signatures", own)
    assert status == 3
    assert f"{own}:3:3" in err


@pytest.mark.parametrize("name", ["none/at/all", "nothing"])
def test_what_does_not_exist(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = call(capsys, name)
    assert status == 2
    assert "next:" in err


def test_a_failed_run_by_name_and_by_folder(tmp_path, capsys):
    paths = a_run(tmp_path, "failed")
    for name in ("latest", "train", paths.dir):
        status, out, _ = call(capsys, name)
        assert status == 0
        assert "first cause: rank 0 on a: EL0004" in out


def test_a_launch_that_failed_before_its_start(tmp_path, capsys):
    paths = RunStore(tmp_path / "home").create("train-2")
    journal = Journal(paths.journal)
    journal.append("launch", cluster="c", mode="train", recipe="r", world_size=0, hosts=[])
    cause = {"rule": "start-failed", "sentence": "a: the device is held by another run"}
    journal.append("end", outcome="failed", exit_status=9, cause=cause)
    status, out, _ = call(capsys)
    assert (status, out) == (0, "first cause: a: the device is held by another run\n")


@pytest.mark.parametrize(("outcome", "said"), [(None, "is running"), ("cancelled", "on request")])
def test_a_run_that_is_well_or_was_stopped(tmp_path, capsys, outcome, said):
    paths = RunStore(tmp_path / "home").create("train-3")
    journal = Journal(paths.journal)
    host = {"name": "a", "processes": [{"name": "rank_0", "rank": 0}]}
    journal.append("launch", cluster="c", mode="train", recipe="r", world_size=1, hosts=[host])
    journal.append("running")
    if outcome:
        journal.append("end", outcome=outcome, exit_status=8, cause=None)
    status, out, err = call(capsys)
    assert (status, out) == (0, "")
    assert said in err


def test_a_run_that_succeeded_has_no_cause(tmp_path, capsys):
    a_run(tmp_path, "succeeded")
    status, out, err = call(capsys)
    assert (status, out) == (0, "")
    assert "succeeded" in err
    status, out, _ = call(capsys, "--json")
    assert (status, json.loads(out)["found"]) == (0, False)
