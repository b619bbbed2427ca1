"""Lines of many ranks shown once: nothing is lost, little is held."""

from __future__ import annotations

from collections import Counter
from typing import Dict, List

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.main import cli
from orchestrator.logs.collapse import Collapsed, Collapser, alike
from orchestrator.runs.journal import Journal
from orchestrator.runs.layout import RunStore

NAMES = [f"rank_{rank}" for rank in range(12)]


def shown(lines: List[Collapsed]) -> List[str]:
    return [f"[{line.label()}] {line.text}" for line in lines]


def test_a_line_of_all_ranks_comes_out_at_once():
    held = Collapser(NAMES)
    out = [line for name in NAMES for line in held.add(name, "compiling", 0.0)]
    assert shown(out) == ["[0-11] compiling"]
    assert held.held == 0


def test_a_line_of_some_ranks_waits_for_the_window():
    held = Collapser([*NAMES, "scheduler"], window_s=2.0)
    for name in NAMES:
        if name != "rank_8":
            assert held.add(name, "ready", 1.0) == []
    assert held.add("scheduler", "ready", 2.9) == []
    assert shown(held.tick(3.0)) == ["[0-7,9-11,scheduler] ready"]
    assert shown(held.add("rank_8", "ready", 4.0) + held.flush()) == ["[8] ready"]


def test_a_repeated_line_is_repeated():
    held = Collapser(NAMES[:2])
    out = [line for name in NAMES[:2] for _ in range(3) for line in held.add(name, "nan", 0.0)]
    assert shown(out) == ["[0-1] nan"] * 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("11:39:14 compiling the step", "11:39:15 compiling the step"),
        ("[WARNING] DEVICE(12,7f3a,python):2023-11-20-15:34:32.886.561 [x.cc:76] F] text",
         "[WARNING] DEVICE(99,fff0,python):2023-11-20-15:34:33.000.001 [x.cc:76] F] text"),
        ("EI0006: [PID: 12] 2024-04-24-06:32:27.781.599 text",
         "EI0006: [PID: 9] 2024-04-24-06:32:28.781.599 text"),
        ("2023-08-01 10:00:00,123 - mindformers[a.py:87] - INFO - text",
         "2023-08-01 10:00:01,999 - mindformers[a.py:87] - INFO - text"),
    ],
)  # fmt: skip
def test_times_and_process_ids_do_not_count(one, other):
    assert alike(one) == alike(other)
    assert alike(one).endswith(("text", "step"))


@pytest.mark.parametrize(
    ("one", "other"),
    [("loss 1.25", "loss 1.26"), ("rank 0 of 2", "rank 1 of 2"), ("f(1,2)", "f(1,3)"), ("", " ")],
)
def test_other_differences_count(one, other):
    assert alike(one) != alike(other)


lines = st.lists(st.tuples(st.sampled_from(NAMES[:4]), st.sampled_from("abc"), st.floats(0, 3)))


@given(lines, st.integers(1, 5))
def test_no_line_is_lost_and_little_is_held(script, most):
    held = Collapser(NAMES[:4], window_s=2.0, most=most)
    out: List[Collapsed] = []
    now = 0.0
    for name, text, later in script:
        now += later
        out += held.add(name, text, now)
        assert held.held <= most
    out += held.flush()
    assert Counter((name, text) for name, text, _ in script) == Counter(
        (name, line.text) for line in out for name in line.processes
    )


@given(st.lists(st.sampled_from("abc")))
def test_the_lines_of_one_rank_keep_their_order(texts):
    held = Collapser(NAMES, most=3)
    out = [line.text for text in texts for line in held.add("rank_3", text, 0.0)]
    assert out + [line.text for line in held.flush()] == texts


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path))
    paths = RunStore(tmp_path).create("run-1")
    ranks: List[Dict[str, object]] = [{"name": name, "rank": int(name[5:])} for name in NAMES]
    Journal(paths.journal).append(
        "launch", cluster="c", mode="train", recipe="r", world_size=12,
        hosts=[{"name": "a", "processes": ranks}],
    )  # fmt: skip
    paths.logs.mkdir()
    for rank, name in enumerate(NAMES):
        odd = "10:00:01 slow\n" if rank == 5 else ""
        paths.log(name).write_text(f"10:00:0{rank % 9} start\n{odd}10:01:00 rank {rank}\n")
    answer = CliRunner().invoke(cli, ["logs", "--collapse", "--grep", "start|slow"])
    assert answer.output == "[0-11] 10:00:00 start\n[5] 10:00:01 slow\n"
    answer = CliRunner().invoke(cli, ["logs", "-f", "--collapse", "-n", "1", "--rank", "0-1"])
    assert answer.output == "[0] 10:01:00 rank 0\n[1] 10:01:00 rank 1\n"
    for form in (["-o", "jsonl"], ["--json"]):
        answer = CliRunner().invoke(cli, ["logs", "--collapse", "--rank", "3", *form])
        assert answer.output.startswith('{"processes": ["rank_3"], "line": "10:00:03 start"}\n')
