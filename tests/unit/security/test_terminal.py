"""Nothing that a host, a log or a file says can drive the terminal of whoever looks at it."""

from __future__ import annotations

import json
import os
import re

import pytest

from orchestrator.cli import output
from orchestrator.cli.main import main
from orchestrator.errors import HostErrors, HostNotReady, OrchError
from orchestrator.runs.journal import Journal
from orchestrator.runs.layout import RunPaths
from tests.unit.report.made_run import made_run

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x08\u202egnp.exe [bold red]x[/] [/] [link=http://h]y"
FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunPaths:
    """A failed run in which every text that came from a host is hostile."""
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path))
    paths = made_run(
        tmp_path, run_id="r", hosts=2, per_host=1, steps=2, ended="failed", failed_rank=0
    )
    for rank in (0, 1):
        with paths.metrics(f"rank_{rank}").open("a") as metrics:
            metrics.write(json.dumps({"schema": 1, "phase": EVIL, "wall": 1.0}) + "\n")
        paths.logs.mkdir(exist_ok=True)
        paths.log(f"rank_{rank}").write_bytes(
            f"{EVIL}\nRuntimeError: {EVIL}\nTraceback (most recent call last):\n".encode()
        )
    cause = {"rule": "x", "rank": 0, "process": "rank_0", "sentence": EVIL}
    journal = Journal(paths.journal)
    journal.append("host", host="192.168.0.0", state=EVIL, detail=EVIL)
    journal.append("end", outcome="failed", exit_status=6, cause=cause)
    return paths


COMMANDS = (
    "status",
    "status --json",
    "status --watch",
    "status --watch --json",
    "runs",
    "runs --json",
    "logs",
    "logs --collapse",
    "logs -o jsonl",
    "diagnose",
    "diagnose --json",
    "attach",
    "attach --json",
    "metrics",
    "report",
)


@pytest.mark.parametrize("words", COMMANDS)
def test_no_command_passes_on_what_drives_a_terminal(run, capsys, words):
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    said = capsys.readouterr()
    assert ended.value.code != 1, said.err
    assert FORBIDDEN.search(said.out) is None, repr(said.out)
    assert FORBIDDEN.search(said.err) is None, repr(said.err)
    assert "internal error" not in said.err


def test_markup_of_rich_is_text(run, capsys):
    with pytest.raises(SystemExit):
        main(["status"])
    assert "[bold red]x[/]" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["table", "json"])
def test_an_error_that_quotes_a_host_is_escaped(monkeypatch, capsys, form):
    from orchestrator.cli.main import cli

    def fail(*_args: object, **_options: object) -> None:
        raise HostErrors(EVIL, [OrchError(EVIL, hint=EVIL, host="n"), HostNotReady(EVIL)])

    monkeypatch.setattr(cli.commands["facts"], "callback", fail)
    with pytest.raises(SystemExit):
        main(["facts", "-i", "local", "-o", form])
    said = capsys.readouterr()
    assert FORBIDDEN.search(said.out + said.err) is None
    if form == "json":
        assert json.loads(said.out)["error"]["message"] == EVIL


def test_json_keeps_the_text_and_escapes_it(capsys):
    output.print_json({"text": EVIL, "蓝": "蓝"})
    out = capsys.readouterr().out
    assert FORBIDDEN.search(out) is None
    assert json.loads(out)["text"] == EVIL
    assert "蓝" in out


def test_talk_is_escaped_and_keeps_its_lines(capsys):
    output.say(f"one {EVIL}\ntwo")
    err = capsys.readouterr().err
    assert FORBIDDEN.search(err) is None
    assert err.count("\n") == 2


def test_arguments_come_back_escaped(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path))
    for words in (["status", EVIL], [EVIL], ["plan", "-i", EVIL, "finetune"]):
        with pytest.raises(SystemExit):
            main(words)
        assert FORBIDDEN.search(capsys.readouterr().err) is None
    assert os.listdir(tmp_path) == []
