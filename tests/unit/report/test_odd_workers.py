"""Metrics of any worker: whatever is in its lines, every view of the run is shown."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from orchestrator.report.gathering import gather
from orchestrator.report.live import line_of, view
from orchestrator.report.metrics import exposition
from orchestrator.report.page import report_page
from orchestrator.report.reading import RunReader
from tests.unit.report.made_run import START, made_run
from tests.unit.report.test_metrics import parsed

anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.just(10**400)
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.just("\x1b[2Jx"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)
FIELDS = ("phase", "step", "steps", "loss", "lr", "tokens_per_s_per_p", "step_time_s", "wall",
          "overflow", "loss_scale", "epoch", "result")  # fmt: skip
lines = st.lists(st.dictionaries(st.sampled_from(FIELDS), anything), max_size=6)


@settings(max_examples=60, deadline=None)
@given(lines)
def test_every_view_is_shown(found):
    with tempfile.TemporaryDirectory() as folder:
        paths = made_run(Path(folder), hosts=1, per_host=3, steps=4)
        with paths.metrics("rank_1").open("a") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in found)
        shot = RunReader(paths).read()
        console = Console(width=80, color_system=None)
        with console.capture() as captured:
            console.print(view(shot, 80, 24, START + 30))
        assert "\x1b" not in captured.get()
        assert "\x1b" not in line_of(shot, START + 30)
        parsed(exposition(shot, START + 30))
        assert "\x1b" not in report_page(gather(paths, None), START + 30, "1.0")
