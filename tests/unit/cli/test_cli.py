"""The command line itself: exit statuses, JSON errors, light imports, safe output."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from orchestrator.cli.main import cli, main
from orchestrator.cli.output import seconds
from orchestrator.cli.results import print_results
from orchestrator.errors import (
    Busy,
    CheckpointError,
    HostErrors,
    HostNotReady,
    HostTimeout,
    HostUnreachable,
    InventoryError,
    JobCancelled,
    JobFailed,
    JobHung,
    Location,
    OrchError,
    PartialFailure,
    Terminated,
    UsageError,
)
from orchestrator.runs.state import ProcessState, RunState, RunStatus


def status_of(monkeypatch, error, *arguments):
    """Exit status of a command that raises ``error``."""

    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(cli.commands["runs"], "callback", fail)
    with pytest.raises(SystemExit) as ended:
        main(["runs", *arguments])
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("x"), 2),
        (InventoryError("x"), 3),
        (HostNotReady("x"), 4),
        (HostUnreachable("x"), 5),
        (HostTimeout("x"), 5),
        (JobFailed("x"), 6),
        (JobHung("x"), 7),
        (JobCancelled("x"), 8),
        (Busy("x"), 9),
        (CheckpointError("x"), 10),
        (PartialFailure("x"), 11),
        (HostErrors("x", [Busy("x"), HostNotReady("x")]), 4),
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
        (ZeroDivisionError(), 1),
    ],
)
def test_exit_statuses(monkeypatch, capsys, error, status):
    assert status_of(monkeypatch, error) == status


def test_an_error_says_where_and_what_next(monkeypatch, capsys):
    error = InventoryError("bad", hint="mend it", location=Location("i.yaml", 3, 7))
    status_of(monkeypatch, error)
    assert capsys.readouterr() == ("", "error: i.yaml:3:7: bad\n  next: mend it\n")


def test_an_error_is_json_where_json_was_asked_for(monkeypatch, capsys):
    status_of(monkeypatch, Busy("taken", host="node1"), "--json")
    answer = json.loads(capsys.readouterr().out)
    assert answer["schema"] == 1
    assert answer["error"]["code"] == "busy"
    assert answer["error"]["exit_status"] == 9
    assert answer["error"]["host"] == "node1"


def test_an_unknown_option_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["status", "--nope"])
    assert ended.value.code == 2


def test_every_error_class_has_its_own_code():
    classes = [OrchError]
    for parent in classes:
        ours = [one for one in parent.__subclasses__() if one.__module__ == parent.__module__]
        classes.extend(ours)
    codes = [one.code for one in classes]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("command", ["--help", "status --help", "launch --help"])
def test_nothing_heavy_is_imported(command):
    code = (
        "import sys\n"
        "from orchestrator.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'mindspore', 'numpy', 'paramiko', 'rich', 'jinja2', 'yaml', 'glm2'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command.split()], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_durations_are_for_people():
    assert [seconds(s) for s in (None, 0.44, 59.9, 125, 12000)] == [
        *("?", "0.4 s", "59 s", "2 m 05 s", "3 h 20 m")
    ]


def test_predictions_come_in_the_order_of_their_inputs(capsys):
    ranks = tuple(
        ProcessState(f"rank_{rank}", "a", rank, result={"predictions": texts})
        for rank, texts in enumerate([["one", "three\x1b[2J"], ["two"]])
    )
    print_results(RunState("r", RunStatus.SUCCEEDED, processes=ranks))
    assert capsys.readouterr().out == "one\ntwo\nthree\\x1b[2J\n"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["plan", "-i", "cluster12", "--out", "{file}/x", "finetune"], 2, "cannot write"),
        (["launch", "-i", "local", "--worker-command", "true", "finetune"], 4, "GLM2_ORCH_HOME"),
    ],
)
def test_a_folder_here_that_cannot_be_written(tmp_path, monkeypatch, capsys, words, status, said):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("GLM2_ORCH_HOME", str(file / "home"))
    with pytest.raises(SystemExit) as ended:
        main([word.format(file=file) for word in words])
    assert ended.value.code == status
    talk = capsys.readouterr().err
    assert said in talk
    assert "internal error" not in talk


def test_json_is_one_object_also_when_an_error_follows(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path / "home"))
    (tmp_path / "file").write_text("x")
    inventory = tmp_path / "inventory.yaml"
    inventory.write_text(
        "hosts: localhost\ndefaults: {connection: local, device_target: CPU, devices: [0], "
        f"workdir: /proc/nowhere}}\njob: {{stage: ['{tmp_path}/file']}}\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["stage", "-i", str(inventory), "--json"])
    shown = capsys.readouterr()
    assert json.loads(shown.out)["failed"] == ["localhost"]
    assert "error: localhost: cannot write below /proc/nowhere" in shown.err
    assert ended.value.code == 4
