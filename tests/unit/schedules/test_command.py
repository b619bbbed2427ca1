"""``glm2-orch schedule`` with a crontab and a systemd that only write down what they are told."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.runs import lease
from orchestrator.runs.journal import Journal
from orchestrator.schedules.starters import Systemd
from orchestrator.schedules.store import Schedule, ScheduleStore

CRONTAB = """#!/bin/sh
case "$1" in
-l) cat "$0.txt" 2>/dev/null || { echo "no crontab for me" >&2; exit 1; };;
-r) rm "$0.txt";;
-) if [ -e "$0.refuses" ]; then echo 'you may not' >&2; exit 1; fi; cat >"$0.txt";;
esac
"""
SYSTEMCTL = """#!/bin/sh
echo "$*" >>"$0.txt"
if [ -e "$0.refuses" ] && [ "$2" = enable ]; then echo 'no bus' >&2; exit 1; fi
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A folder first on PATH with both tools; what they were told is in ``<tool>.txt``."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name, text in (("crontab", CRONTAB), ("systemctl", SYSTEMCTL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return folder


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["schedule", *words])
    return ended.value.code


def add(*words: str, name: str = "nightly", with_: str = "cron") -> int:
    command = words or ("launch", "-i", "local", "finetune")
    return run("add", name, "--cron", "0 2 * * *", "--with", with_, "--", *command)


def listed(capsys) -> list:
    capsys.readouterr()
    assert run("list", "--json") == 0
    return json.loads(capsys.readouterr().out)["schedules"]


def test_a_line_comes_and_goes_and_the_others_stay(tools, tmp_path, capsys):
    table = tools / "crontab.txt"
    before = "MAILTO=ops\n# mine\n5 5 * * * true"  # no line end, as editors leave it
    table.write_text(before)
    assert add() == 0
    *others, mark, line = table.read_text().splitlines()
    assert "\n".join(others) == before
    assert mark == f"# glm2-orch schedule nightly of {tmp_path / 'home'}"
    assert line.startswith(f"0 2 * * * /usr/bin/env GLM2_ORCH_HOME={tmp_path / 'home'} ")
    assert f"{sys.executable} -m orchestrator.cli.main schedule run nightly >>" in line
    assert run("remove", "nightly") == 0
    assert table.read_text() == before + "\n"
    assert not (tmp_path / "home" / "schedules").exists()


def test_an_own_crontab_leaves_nothing(tools, capsys):
    assert add() == 0
    assert run("remove", "nightly") == 0
    assert not (tools / "crontab.txt").exists()


def test_what_is_kept_is_for_the_user_alone(tools, tmp_path, capsys):
    assert add() == 0
    folder = tmp_path / "home" / "schedules" / "nightly"
    for path in (tmp_path / "home", folder.parent, folder, folder / "logs"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for path in (folder / "schedule.json", folder / "journal.jsonl"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


HOSTILE = ("a b", "'; touch pwned; '", '"$(touch pwned)"', "100%", "new\nline", "`touch pwned`")


def test_arguments_come_back_as_they_were_and_reach_no_shell(tools, tmp_path, capsys):
    words = ("launch", "-i", "local", "--env", "X=1", "finetune", "--", *HOSTILE)
    assert add(*words) == 0
    assert ScheduleStore(tmp_path / "home").get("nightly").arguments == words
    table = (tools / "crontab.txt").read_text()
    assert "touch" not in table
    assert len(table.splitlines()) == 2


def test_a_path_cannot_end_the_line_of_a_crontab(tools, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path / "50%'$(touch pwned)"))
    assert add() == 0
    line = (tools / "crontab.txt").read_text().splitlines()[-1]
    assert "%" not in line.replace(r"\%", "")
    # What cron hands to the shell, with the program replaced by one that prints its arguments.
    words = line.split(" ", 5)[5].replace(r"\%", "%").partition(" >>")[0]
    done = subprocess.run(
        ["sh", "-c", words.replace("/usr/bin/env", "printf '%s\\n'", 1)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stdout.splitlines()[0] == f"GLM2_ORCH_HOME={tmp_path}/50%'$(touch pwned)"
    assert not (tmp_path / "pwned").exists()
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path / "two\n* * * * * touch pwned"))
    assert add() == 2
    assert "control character" in capsys.readouterr().err
    assert "* touch" not in (tools / "crontab.txt").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("launch", "-i", "local"), "Missing argument"),
        (("launch", "-i", "local", "--nope", "finetune"), "--nope"),
        (("launch", "-i", "local", "finetune", "--run-id", "x"), "run id"),
        (("launch", "-i", "local", "finetune", "--detach"), "--detach"),
        (("launch", "--help"), "help"),
        (("schedule", "list"), "'schedule'"),
        (("reboot",), "'reboot'"),
    ],
)
def test_a_command_that_would_fail_at_night_is_refused_by_day(tools, capsys, words, said):
    assert add(*words) == 2
    talk = capsys.readouterr().err
    assert said in talk
    assert "next: " in talk
    assert listed(capsys) == []


@pytest.mark.parametrize("name", ["../up", "a b", "latest", "", "x" * 41, "-x", "a\x1b[2J"])
def test_names_that_could_leave_the_folder_are_refused(tools, capsys, name):
    assert run("add", "--cron", "@daily", "--", name, "launch", "-i", "local", "finetune") == 2
    assert "\x1b" not in capsys.readouterr().err


def test_a_name_is_taken_once(tools, capsys):
    assert add() == 0
    assert add() == 2
    assert "remove it first" in capsys.readouterr().err


def test_what_cron_refuses_leaves_nothing(tools, tmp_path, capsys):
    (tools / "crontab.refuses").write_text("")
    assert add() == 4
    assert "you may not" in capsys.readouterr().err
    assert not (tmp_path / "home" / "schedules").exists()


def test_a_line_that_somebody_removed_is_noticed(tools, capsys):
    assert add() == 0
    assert listed(capsys)[0]["warnings"] == []
    (tools / "crontab.txt").unlink()
    assert "nothing starts it" in listed(capsys)[0]["warnings"][0]
    assert run("remove", "nightly") == 0


def test_units_come_and_go(tools, tmp_path, capsys):
    assert add(with_="systemd-user") == 0
    folder = tmp_path / "config" / "systemd" / "user"
    names = {"glm2-orch-nightly.service", "glm2-orch-nightly.timer"}
    assert {path.name for path in folder.iterdir()} == names
    told = (tools / "systemctl.txt").read_text().splitlines()
    assert told == ["--user daemon-reload", "--user enable --now glm2-orch-nightly.timer"]
    assert listed(capsys)[0]["warnings"] == []
    assert run("remove", "nightly") == 0
    assert list(folder.iterdir()) == []
    told = (tools / "systemctl.txt").read_text().splitlines()[2:]
    assert told == [
        "--user disable --now glm2-orch-nightly.timer",
        "--user clean --what=state glm2-orch-nightly.timer",
        "--user daemon-reload",
    ]


def test_what_systemd_refuses_leaves_nothing(tools, tmp_path, capsys):
    (tools / "systemctl.refuses").write_text("")
    assert add(with_="systemd-user") == 4
    assert "no bus" in capsys.readouterr().err
    assert list((tmp_path / "config" / "systemd" / "user").iterdir()) == []
    assert not (tmp_path / "home" / "schedules").exists()


def test_units_of_another_home_stay(tools, tmp_path, monkeypatch, capsys):
    assert add(with_="systemd-user") == 0
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path / "other"))
    assert add(with_="systemd-user") == 2
    assert "already" in capsys.readouterr().err
    folder = tmp_path / "config" / "systemd" / "user"
    assert len(list(folder.iterdir())) == 2


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
@pytest.mark.parametrize("home", ["/var/lib/glm2", '/srv/50% "q" $HOME it\'s'])
def test_systemd_accepts_the_units(tools, tmp_path, monkeypatch, home):
    schedule = Schedule(
        name="nightly",
        cron="0 2 1 * 1",
        arguments=("launch",),
        folder="/",
        python=sys.executable,
        home=home,
        starter="systemd-system",
        created=0.0,
    )
    Systemd(tmp_path / "units", user=False).install(schedule, Path(home) / "daemon.log")
    units = sorted(map(str, (tmp_path / "units").iterdir()))
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert "glm2-orch" not in checked.stderr


def test_a_run_is_logged_and_journaled(tools, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert add("plan", "-i", "local", "finetune") == 0
    assert run("run", "nightly") == 0
    row = listed(capsys)[0]
    assert row["last"]["outcome"] == "succeeded"
    assert row["running"] is False
    log = tmp_path / "home" / "schedules" / "nightly" / "logs" / row["last"]["log"]
    assert "2 ranks on 1 hosts" in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_run_that_failed_says_so_with_its_status(tools, tmp_path, capsys):
    assert add("plan", "-i", "missing.yaml", "finetune") == 0
    assert run("run", "nightly") == 3
    row = listed(capsys)[0]
    assert row["last"]["outcome"] == "failed (3)"
    assert "failed; see" in row["warnings"][0]


def test_two_never_run_at_once(tools, tmp_path, capsys):
    assert add() == 0
    paths = ScheduleStore(tmp_path / "home").paths("nightly")
    held = lease.acquire(paths.lock, "schedule run")
    try:
        assert run("run", "nightly") == 9
        assert run("remove", "nightly") == 9
        assert listed(capsys)[0]["running"] is True
    finally:
        held.release()
    skipped = [e for e in Journal(paths.journal).events() if e["event"] == "skipped"]
    assert [event["reason"] for event in skipped] == ["its last run has not ended"]
    assert len(listed(capsys)[0]["skipped"]) == 1


def test_a_damaged_file_is_named(tools, tmp_path, capsys):
    assert add() == 0
    file = tmp_path / "home" / "schedules" / "nightly" / "schedule.json"
    file.write_text("{")
    assert run("run", "nightly") == 3
    assert str(file) in capsys.readouterr().err


def test_an_unknown_name_is_answered_with_the_nearest(tools, capsys):
    assert add() == 0
    assert run("remove", "nightl") == 2
    assert "did you mean `nightly`?" in capsys.readouterr().err


def test_without_any_crontab_the_error_says_so(tools, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert add() == 4
    assert "install cron" in capsys.readouterr().err
