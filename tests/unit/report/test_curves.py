"""Curves: bounded, and no peak lost."""

from __future__ import annotations

import json
import math
from statistics import median
from typing import Dict, List, Optional

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.report.curves import RankHistory, curves, read_history, rounded, typical
from tests.unit.report.made_run import made_run


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_history(3, path)


def test_a_rank_that_reported_nothing(tmp_path):
    history = read_history(3, tmp_path / "absent")
    assert (history.rank, history.steps, history.phases) == (3, (), ())
    assert curves([RankHistory(0)], "loss") is None


def test_steps_phases_and_marks(tmp_path):
    step = {"loss": 2.0, "tokens_per_s_per_p": 10.0, "step_time_s": 0.5, "lr": 0.1, "steps": 4}
    history = written(
        tmp_path / "m.jsonl",
        [
            {"phase": "startup", "wall": 10.0},
            {"phase": "train", "wall": 12.0},
            {**step, "step": 1, "wall": 13.0},
            {**step, "step": 2, "wall": 14.0, "overflow": True, "loss": float("inf")},
            {"phase": "checkpoint", "wall": 14.5},
            {"phase": "train", "wall": 15.0},
            {**step, "step": 3, "wall": 16.0, "loss": float("nan")},
            {"result": {"rouge-1": 0.5}, "wall": 17.0},
            {"phase": "done", "wall": 18.0},
        ],
    )
    assert history.steps == (1, 2, 3)
    assert history.columns["loss"] == (2.0, None, None)
    assert [(p.name, p.start, p.end) for p in history.phases] == [
        ("startup", 10.0, 12.0), ("train", 12.0, 14.5), ("checkpoint", 14.5, 15.0),
        ("train", 15.0, 18.0),
    ]  # fmt: skip
    assert (history.saves, history.bad_steps, history.overflows) == ((2,), (3,), (2,))
    assert (history.goal, history.result) == (4, {"rouge-1": 0.5})


def test_steps_that_were_done_again_count_once(tmp_path):
    lines = [{"step": n, "loss": float(n), "wall": float(n)} for n in (1, 2, 3, 4)]
    again = [{"step": n, "loss": 10.0 + n, "wall": 10.0 + n} for n in (3, 4, 5)]
    history = written(tmp_path / "m.jsonl", [*lines, *again])
    assert history.steps == (1, 2, 3, 4, 5)
    assert history.columns["loss"] == (1.0, 2.0, 13.0, 14.0, 15.0)
    assert history.restarts == (3,)


def test_foreign_lines_are_passed_over(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(
        b'\xff\n[1]\n{"step":true}\n{"step":"x"}\n{"step":-1}\n{"step":2,"loss":"x"}\n{"st'
    )
    assert read_history(0, path).steps == (2,)
    assert read_history(0, path).columns["loss"] == (None,)


def test_long_files_are_read_in_part_but_not_their_marks(tmp_path):
    lines = [
        {"step": n, "loss": 1.0, "wall": float(n), "overflow": n == 777} for n in range(1, 3001)
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    history = read_history(0, path, most=100)
    assert history.stride >= 30
    assert len(history.steps) <= 102
    assert 777 in history.overflows


values = st.one_of(st.none(), st.floats(-1e6, 1e6))


@st.composite
def ranks(draw) -> List[RankHistory]:
    found = []
    for rank in range(draw(st.integers(1, 5))):
        steps = sorted(draw(st.sets(st.integers(1, 2000), max_size=40)))
        losses = draw(st.lists(values, min_size=len(steps), max_size=len(steps)))
        found.append(RankHistory(rank, tuple(steps), {"loss": tuple(losses)}))
    return found


@given(ranks())
def test_thinning_keeps_the_extremes(histories):
    found = curves(histories, "loss")
    known: Dict[float, List[int]] = {}
    for history in histories:
        for value in history.columns["loss"]:
            if value is not None:
                known.setdefault(value, []).append(history.rank)
    if not known:
        assert found is None
        return
    assert found is not None
    band = found.band
    assert len(band.steps) <= 400
    assert band.steps[-1] == max(h.steps[-1] for h in histories if h.steps)
    assert list(band.steps) == sorted(set(band.steps))
    highs = [(v, r) for v, r in zip(band.high, band.high_rank) if v is not None]
    assert max(highs)[0] == max(known)
    assert max(highs)[1] in known[max(known)]
    assert min(v for v in band.low if v is not None) == min(known)
    for low, middle, high in zip(band.low, band.middle, band.high):
        if low is not None and middle is not None and high is not None:
            assert low - 1e-6 <= middle <= high + 1e-6


def test_few_steps_are_shown_as_they_are():
    histories = [RankHistory(r, (1, 2, 3), {"loss": (1.0 + r, None, 3.0)}) for r in range(3)]
    found = curves(histories, "loss")
    assert found is not None
    assert found.band.steps == (1, 2, 3)
    assert found.band.middle == (2.0, None, 3.0)
    assert found.lines[2] == (3.0, None, 3.0)
    assert found.line_steps == (1, 2, 3)


def test_the_first_steps_are_not_typical(tmp_path):
    paths = made_run(tmp_path, hosts=1, per_host=1, steps=50)
    history = read_history(0, paths.metrics("rank_0"))
    usual = typical(history, "time")
    assert usual is not None
    assert usual == median([t for t in history.columns["time"][5:] if t is not None])
    assert typical(RankHistory(0), "time") is None


def test_rounding_is_for_the_eye():
    given_: List[Optional[float]] = [1.23456789, None, 123456.0, 1.5e-9]
    assert rounded(given_) == [1.235, None, 123500.0, 1.5e-9]
    assert all(math.isfinite(value) for value in rounded(given_) if value is not None)
