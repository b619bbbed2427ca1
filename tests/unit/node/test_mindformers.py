"""Metrics from what MindFormers logs. The forms are those of its MFLossMonitor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Dict

import pytest

import orchestrator.node.mindformers as runner

SINK = (
    "{ Epoch:[  2/  3], step:[   10/  100], loss: 3.250, per_step_time: 412ms, lr: 4.8e-05, "
    "overflow cond: True, loss_scale: 65536.0"
)
EACH = SINK.replace("loss: 3.250", "loss:[3.250/3.400]") + ", global_norm: [1.2]"


@pytest.mark.parametrize("message", [SINK, EACH, EACH.replace("4.8e-05", "[4.8e-05]")])
def test_both_forms(message: str) -> None:
    assert runner.metrics(message) == {
        "schema": 1,
        "step": 110,
        "steps": 300,
        "epoch": 2,
        "loss": 3.25,
        "lr": 4.8e-05,
        "loss_scale": 65536.0,
        "step_time_s": 0.412,
        "overflow": True,
    }


def test_a_diverged_loss_has_no_number() -> None:
    line = runner.metrics(SINK.replace("3.250", "  nan"))
    assert line is not None
    assert line["loss"] is None


@pytest.mark.parametrize(
    "message",
    [
        "   0.6% |█   | 0.36261 samples/s/p  2:23:12 }",
        "Epoch:[1/2], step:[1/x], loss: 3.0",
        "Epoch:[1/2], step:[1/2], loss: none",
        "",
    ],
)
def test_other_lines_are_none(message: str) -> None:
    assert runner.metrics(message) is None


def test_what_is_not_said_is_left_out() -> None:
    line = runner.metrics("Epoch:[1/1], step:[1/2], loss: 3.0, lr: None, loss_scale: None")
    assert line == {"schema": 1, "step": 1, "steps": 2, "epoch": 1, "loss": 3.0}


def run(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    (folder / "job").mkdir()
    (folder / "job/script.py").write_text(script)
    environ: Dict[str, str] = {**os.environ, "GLM2_RANK_DIR": str(folder)}
    command = [sys.executable, runner.__file__, str(folder / "job/script.py"), "--a", "1"]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)


def test_the_script_runs_as_by_itself(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "import logging, sys\nprint(sys.argv[1:], __name__, sys.path[0])\n"
        "logging.getLogger('x').error('step:[%d', 'no number')\nsys.exit(7)\n",
    )
    assert done.returncode == 7
    assert done.stdout.split("\n")[0] == f"['--a', '1'] __main__ {tmp_path / 'job'}"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("phase") for line in lines] == ["startup"]
    assert (tmp_path / "stacks.log").exists()
