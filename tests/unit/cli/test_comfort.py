"""What every command has: JSON, help, completion, a place in the manual; and old runs go."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator, List, Tuple

import click
import pytest

from orchestrator import errors
from orchestrator.cli.completion import RUN
from orchestrator.cli.main import cli, main
from orchestrator.cli.manual import page
from orchestrator.errors import OrchError
from orchestrator.runs import lease
from orchestrator.runs.layout import RunStore
from tests.unit.report.made_run import made_run

NO_JSON = {
    "completion": "prints a script",
    "manual": "prints a page",
    "metrics": "prints what Prometheus reads",
    "control": "has no user",
}


def leaves(group: click.Group, before: str = "") -> Iterator[Tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{before}{name} ")
        else:
            yield before + name, command


COMMANDS = dict(leaves(cli))


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - set(NO_JSON)))
def test_every_command_speaks_json(name):
    options = [option for parameter in COMMANDS[name].params for option in parameter.opts]
    assert "--json" in options
    assert "-o" in options


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_in_a_sentence(name):
    assert COMMANDS[name].help
    assert COMMANDS[name].get_short_help_str(200)[0].isupper()


def test_every_error_that_is_raised_has_a_next_step():
    classes = {name: one for name, one in vars(errors).items() if isinstance(one, type)}
    raised, without = 0, []
    for path in Path(errors.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            one = classes.get(getattr(getattr(node, "func", None), "id", ""))
            if not isinstance(node, ast.Call) or one is None or not issubclass(one, OrchError):
                continue
            raised += 1
            hinted = any(word.arg in ("hint", None) for word in node.keywords)
            # HostErrors takes the hint of the gravest; of a stop on request nothing follows.
            if not (hinted or one.next_step or one in (errors.HostErrors, errors.JobCancelled)):
                without.append(f"{path}:{node.lineno}")
    assert raised > 300
    assert without == []


def test_a_hint_of_its_own_goes_before_that_of_the_class():
    assert errors.Busy("x").hint == errors.Busy.next_step
    assert errors.Fenced("x", hint="mine").hint == "mine"


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*words])
    return ended.value.code


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path))
    return tmp_path


def completed(words: str) -> List[str]:
    parts = words.split(" ")
    environment = {
        **os.environ,
        "_GLM2_ORCH_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(parts) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli.main"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_commands_runs_and_hosts_are_completed(home):
    made_run(home, run_id="night-1", hosts=1, per_host=1, steps=1, ended="succeeded")
    made_run(home, run_id="other-2", hosts=1, per_host=1, steps=1, ended="succeeded")
    assert {"status", "stop"} <= set(completed("glm2-orch st"))
    assert completed("glm2-orch logs ni") == ["night-1"]
    assert completed("glm2-orch diagnose o") == ["other-2"]
    hosts = completed("glm2-orch plan -i cluster12 --limit 192.168.0.1")
    assert hosts == ["192.168.0.1", "192.168.0.10", "192.168.0.11"]
    assert "cluster12" in completed("glm2-orch plan -i c")
    assert completed("glm2-orch plan -i missing --limit x") == []


def test_whatever_takes_a_run_completes_it():
    taking = {
        name: parameter.type
        for name, command in leaves(cli)
        for parameter in command.params
        if "RUN" in (parameter.metavar or parameter.name or "").upper().strip("[]").split("|")
        and not command.hidden
    }
    assert len(taking) > 7
    assert {name for name, kind in taking.items() if kind is not RUN} == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(shell, capsys):
    assert run("completion", shell) == 0
    script = capsys.readouterr().out
    assert f"_GLM2_ORCH_COMPLETE={shell}_complete" in script
    if shell == "bash" and shutil.which("bash"):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_manual_has_every_command_and_option():
    text = page(cli, "1").replace(r"\-", "-")
    for name, command in COMMANDS.items():
        if command.hidden:
            continue
        assert f".SS glm2-orch {name}\n" in text
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert max(parameter.opts, key=len) in text


@pytest.mark.skipif(shutil.which("man") is None, reason="no man here")
def test_man_reads_the_manual_without_a_warning(capsys, tmp_path):
    assert run("manual") == 0
    file = tmp_path / "glm2-orch.1"
    file.write_text(capsys.readouterr().out)
    done = subprocess.run(
        ["man", "-l", "--warnings", str(file)],
        capture_output=True,
        text=True,
        env={**os.environ, "MANWIDTH": "100", "LC_ALL": "C.UTF-8", "PAGER": "cat"},
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert "glm2-orch launch" in done.stdout


DAY_S = 86_400.0


def old_runs(home, *names: str) -> None:
    for name in names:
        made_run(home, run_id=name, hosts=1, per_host=1, steps=1, ended="succeeded")


def listed(capsys) -> List[str]:
    capsys.readouterr()
    assert run("runs", "list", "--json") == 0
    return [one["run_id"] for one in json.loads(capsys.readouterr().out)["runs"]]


def test_runs_lists_with_and_without_the_word(home, capsys):
    old_runs(home, "a", "b")
    assert run("runs") == 0
    plain = capsys.readouterr().out
    assert run("runs", "list") == 0
    assert capsys.readouterr().out == plain
    assert sorted(listed(capsys)) == ["a", "b"]


def test_old_runs_go_and_the_newest_stay(home, capsys):
    old_runs(home, "a", "b", "c")
    newest = RunStore(home).names()[-1]
    assert run("runs", "prune", "--keep", "1", "--dry-run") == 0
    assert len(listed(capsys)) == 3
    assert run("runs", "prune", "--keep", "1", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["removed"]) == 2
    assert listed(capsys) == [newest]


def test_only_runs_that_ended_before(home, capsys, monkeypatch):
    old_runs(home, "a")
    ended = json.loads(RunStore(home).resolve("a").journal.read_text().splitlines()[-1])["wall"]
    monkeypatch.setattr(time, "time", lambda: ended + 10 * DAY_S)
    assert run("runs", "prune", "--older-than", "11d") == 0
    assert listed(capsys) == ["a"]
    assert run("runs", "prune", "--older-than", "9d") == 0
    assert listed(capsys) == []


def test_a_run_that_goes_on_is_never_removed(home, capsys):
    made_run(home, run_id="going", hosts=1, per_host=1, steps=1)
    old_runs(home, "held")
    lock = lease.acquire(RunStore(home).resolve("held").lock, "attach")
    try:
        assert run("runs", "prune", "--keep", "0", "--yes") == 0
    finally:
        lock.release()
    assert sorted(listed(capsys)) == ["going", "held"]


def test_something_must_say_what_is_old(home, capsys):
    assert run("runs", "prune") == 2
    assert run("runs", "prune", "--older-than", "soon") == 2
    assert "--older-than 'soon' is not a time" in capsys.readouterr().err
