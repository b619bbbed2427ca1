"""``metrics.jsonl``: each line is whole, and valid JSON whatever the loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

from glm2.metrics import Metrics


def lines(file: Path) -> List[Dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = file.read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_lines_are_there_at_once_with_schema_and_time(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "rank_0", clock=lambda: 12.34567)
    metrics.phase("compile")
    assert lines(metrics.file) == [{"schema": 1, "phase": "compile", "wall": 12.346}]
    metrics.step(step=1, loss=2.5)
    metrics.result({"predictions": ["你好"]})
    assert lines(tmp_path / "rank_0" / "metrics.jsonl")[1:] == [
        {"schema": 1, "step": 1, "loss": 2.5, "wall": 12.346},
        {"schema": 1, "result": {"predictions": ["你好"]}, "wall": 12.346},
    ]


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.step(loss=float("nan"), lr=float("inf"))
    metrics.result({"scores": [1.0, float("-inf")]})
    step, result = lines(metrics.file)
    assert (step["loss"], step["lr"]) == (None, None)
    assert result["result"] == {"scores": [1.0, None]}


def test_a_file_that_is_there_is_continued(tmp_path: Path) -> None:
    Metrics(tmp_path).phase("startup")
    Metrics(tmp_path).phase("done")
    assert [line["phase"] for line in lines(tmp_path / "metrics.jsonl")] == ["startup", "done"]
