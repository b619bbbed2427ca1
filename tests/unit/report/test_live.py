"""The live view: what a terminal of 80 × 24 shows of runs of any size."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from typing import List

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from orchestrator.cli.main import cli
from orchestrator.preflight.npu_smi import table
from orchestrator.report.hosts import Usage, usage_of
from orchestrator.report.live import line_of, view
from orchestrator.report.reading import RunReader, Snapshot
from orchestrator.report.words import duration, quantity, size, sparkline
from orchestrator.runs.state import HostState, ProcessState, ProcessStatus, RunState, RunStatus
from tests.unit.preflight.outputs import BUSY_910B
from tests.unit.report.made_run import START, made_run


def heard_last(shot: Snapshot) -> float:
    return max((host.heard or START for host in shot.state.hosts), default=START) + 1.0


def watched(shot: Snapshot) -> Snapshot:
    return replace(shot, state=replace(shot.state, controller={"pid": 1}))


def screen(shot: Snapshot, width: int = 80, height: int = 24, **options) -> List[str]:
    console = Console(
        width=width, height=height, force_terminal=False, color_system=None, legacy_windows=False
    )
    with console.capture() as captured:
        console.print(view(shot, width, height, heard_last(shot), **options))
    lines = captured.get().splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    return [line.rstrip() for line in lines]


def test_96_ranks_have_a_row_a_host(tmp_path):
    paths = made_run(tmp_path, slow_hosts=[3], silent_hosts=[9], failed_rank=17)
    lines = screen(watched(RunReader(paths).read()))
    assert lines[0].startswith("finetune-20270115-080000-made  running  finetune on cluster12")
    assert re.match(r"step 57 of 600 ━+─+ +10%  13m\d\ds left$", lines[1])
    assert re.match(r"loss 5\.\d{4} █[▁-█]{11}   8\d\d tokens/s/p ", lines[2])
    assert lines[3] == "12 hosts, 96 ranks: ■ 79 train  ~ 8 slow  ? 8 silent  ✗ 1 failed"
    assert lines[5].split() == [
        "HOST",
        "RANKS",
        "PHASE",
        "STEP",
        "LOSS",
        "TOK/S/P",
        "TREND",
        "HEARD",
    ]
    rows = lines[6:18]
    assert [row.split()[0] for row in rows] == [f"192.168.0.{number}" for number in range(12)]
    assert rows[2].split()[1:5] == ["16-23", "■✗■■■■■■", "train", "60"]
    assert rows[3].split()[2] == "~" * 8
    assert rows[9].split()[2:5] == ["?" * 8, "train", "57"]
    assert rows[9].endswith("40s")
    assert lines[-1] == "failed: rank 17 on 192.168.0.2, killed by SIGKILL (137)"
    assert "slow: host 192.168.0.3 (ranks 24-31), 1.5 times the usual step" in lines


def test_1000_ranks_have_a_character_each(tmp_path):
    paths = made_run(tmp_path, hosts=125, steps=20, slow_hosts=[30], failed_rank=88)
    shot = watched(RunReader(paths).read())
    lines = screen(shot)
    cells = [line for line in lines if re.match(r" *\d+ [■✗~ ]+$", line)]
    assert [int(line.split()[0]) for line in cells] == list(range(0, 1000, 64))
    assert sum(len(line.replace(" ", "").lstrip("0123456789")) for line in cells) == 1000
    assert "✗" in cells[1]
    assert lines[-1] == "failed: rank 88 on 192.168.0.11, killed by SIGKILL (137)"
    wide = screen(shot, 160, 50)
    assert any(line.startswith("192.168.0.11 ") for line in wide), "it has a row of its own"
    assert any(line.startswith("192.168.0.30 ") for line in wide)


def test_10000_ranks_have_a_character_a_host():
    hosts = tuple(HostState(f"h{number}", "started", START) for number in range(1250))
    ranks = tuple(
        ProcessState(f"rank_{n}", f"h{n // 8}", n, ProcessStatus.RUNNING, phase="train")
        for n in range(9999)
    )
    bad = ProcessState("rank_9999", "h1249", 9999, ProcessStatus.FAILED, exit_code=1)
    state = RunState("r", RunStatus.RUNNING, world_size=10000, hosts=hosts, processes=(*ranks, bad))
    lines = screen(watched(Snapshot(state)))
    cells = "".join(line.split()[1] for line in lines if re.match(r" *\d+ [■✗]+$", line))
    assert len(cells) == 1250
    assert cells[-1] == "✗"


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 60))
def test_it_fits_any_terminal(made, width, height):
    screen(made, width, height)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    paths = made_run(tmp_path_factory.mktemp("home"), hosts=20, slow_hosts=[1], silent_hosts=[2])
    return watched(RunReader(paths).read())


def test_devices_take_the_place_of_what_is_least_needed(made):
    usage = usage_of(table(BUSY_910B))
    assert usage == Usage(busy=0.0, memory=pytest.approx(42.05, abs=0.01), celsius=51)
    lines = screen(made, 80, 40, devices={"192.168.0.0": usage})
    header = next(line for line in lines if line.startswith("HOST")).split()
    assert "USE MEM °C" in " ".join(header)
    assert "TREND" not in header
    row = next(line for line in lines if line.startswith("192.168.0.0 ")).split()
    assert row[header.index("MEM") + 1] == "42%"
    assert row[header.index("°C") + 1] == "51"
    assert "USE" in screen(made, 140, 40, devices={"192.168.0.0": usage})[5]


def test_ascii_where_the_terminal_knows_no_more(made):
    text = "\n".join(screen(made, 100, 40, plain=True))
    assert text.isascii()


def test_nobody_listens_is_not_silence(tmp_path):
    shot = RunReader(made_run(tmp_path, silent_hosts=[0])).read()
    lines = screen(shot)
    assert "silent" not in "\n".join(lines)
    assert lines[-1] == "nobody watches it: glm2-orch attach finetune-20270115-080000-made"


def test_hostile_names_and_texts_drive_no_terminal(tmp_path):
    names = ["\x1b]0;x\x07evil", "b[red]old"]
    cause = [{"action": "tell", "rule": "loss-nan\x1b[2J", "evidence": {"host": "\x1b[31mh"}}]
    paths = made_run(tmp_path, host_names=names, decisions=cause)
    text = "\n".join(screen(RunReader(paths).read(), 120, 30))
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "b[red]old" in text


def test_only_what_was_added_is_read(tmp_path, monkeypatch):
    paths = made_run(tmp_path, hosts=2, per_host=2, steps=500)
    reader = RunReader(paths)
    first = reader.read()
    assert first.tracks[0].latest["step"] == 500
    assert len(first.tracks[0].losses) < 100, "of what was there only the end"
    opened: List[str] = []
    real = type(paths.plan).open

    def counted(self, *args, **kwargs):
        opened.append(self.name)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(paths.plan), "open", counted)
    with real(paths.metrics("rank_1"), "a") as stream:
        stream.write('{"schema":1,"step":501,"steps":600,"loss":1.5,"wall":1}\n{"schema":1,"st')
    assert reader.read().tracks[1].latest["loss"] == 1.5
    assert [name for name in opened if name.endswith("l") and "rank" in name] == ["rank_1.jsonl"]
    with real(paths.metrics("rank_1"), "a") as stream:
        stream.write('ep":502,"wall":2}\n')
    assert reader.read().tracks[1].latest["step"] == 502


def test_a_launch_on_other_hosts_replaces_the_first(tmp_path):
    paths = made_run(tmp_path, hosts=2)
    reader = RunReader(paths)
    assert len(reader.read().state.hosts) == 2
    again = json.loads(paths.journal.read_text().splitlines()[0])
    again["hosts"][1]["name"] = "spare"
    with paths.journal.open("a") as stream:
        stream.write(json.dumps(again) + "\n")
    shot = reader.read()
    assert [host.name for host in shot.state.hosts] == ["192.168.0.0", "spare"]
    assert shot.tracks[0].latest["step"] == 60
    assert "spare" in "\n".join(screen(shot))


def test_the_command_in_a_pipe(tmp_path, monkeypatch):
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path))
    made_run(tmp_path, hosts=2, failed_rank=3, ended="failed")
    answer = CliRunner().invoke(cli, ["status", "--watch"])
    assert answer.exit_code == 6
    assert answer.output.count("\n") == 1
    assert "failed · step 60/600 · loss" in answer.output
    assert "cause: rank_3 on 192.168.0.0 failed first" in answer.output
    answer = CliRunner().invoke(cli, ["status", "-w", "--json"])
    assert answer.exit_code == 6
    assert json.loads(answer.output)["status"] == "failed"


def test_the_command_on_a_terminal(tmp_path):
    """On a real pseudo-terminal: the screen goes, the last picture stays."""
    import pty
    import subprocess
    import sys

    made_run(tmp_path, hosts=2, ended="succeeded")
    ours, theirs = pty.openpty()
    env = {**os.environ, "GLM2_ORCH_HOME": str(tmp_path), "TERM": "xterm", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "orchestrator.cli.main", "status", "--watch"]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=env) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:
                break
            if not data:
                break
            said += data
    os.close(ours)
    assert process.returncode == 0
    gone, _, after = said.decode().rpartition("\x1b[?1049l")
    assert "\x1b[?1049h" in gone
    assert "16 ranks" in re.sub(r"\x1b\[[\d;]*m", "", after)


def test_the_line(made):
    assert re.match(
        r"running · step 57/600 · loss [\d.]+ · 8\d\d tokens/s/p · 13m\d\ds left · ",
        line_of(made, heard_last(made)),
    )


@given(st.floats(0, 1e7))
def test_durations_are_short(seconds):
    assert len(duration(seconds)) <= 7


@given(st.lists(st.floats(-1e6, 1e6)), st.integers(1, 30))
def test_sparklines_are_no_longer_than_asked(values, width):
    assert len(sparkline(values, width)) == (min(width, len(values)) if len(values) > 1 else 0)


def test_numbers_for_people():
    assert [quantity(value) for value in (0.123, 12.34, 812.3, 9999.0, 12345.0, 2.5e6)] == [
        "0.12", "12.3", "812", "9999", "12.3k", "2.50M",
    ]  # fmt: skip
    assert quantity(float("nan")) == "?"
    assert [duration(value) for value in (4, 125, 12000, 187000)] == [
        "4s", "2m05s", "3h20m", "2d03h",
    ]  # fmt: skip
    assert [size(n) for n in (812, 1536, 5 << 30)] == ["812 B", "1.5 KiB", "5.0 GiB"]
    assert sparkline([0.0, 1.0], 8) == "▁█"
