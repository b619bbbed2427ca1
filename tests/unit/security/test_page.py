"""The report is a page: no text of a run becomes a part of it that runs."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import pytest

from orchestrator.cli.main import main
from orchestrator.runs.journal import Journal
from tests.unit.report.made_run import made_run

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'><svg onload=alert(3)>"


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: List[Tuple[str, Dict[str, Optional[str]]]] = []

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        self.tags.append((tag, dict(attrs)))


def elements(page: str) -> List[Tuple[str, Dict[str, Optional[str]]]]:
    parser = Elements()
    parser.feed(page)
    return parser.tags


def page(home: Path, run_id: str, text: str) -> str:
    paths = made_run(
        home, run_id=run_id, hosts=1, per_host=1, steps=3, ended="failed", failed_rank=0
    )
    with paths.metrics("rank_0").open("a") as metrics:
        metrics.write(json.dumps({"schema": 1, "phase": text, "wall": 1.0}) + "\n")
    paths.logs.mkdir(exist_ok=True)
    paths.log("rank_0").write_text(f"RuntimeError: {text}\n")
    journal = Journal(paths.journal)
    journal.append("decision", action="stop", rule=text, evidence={"x": text})
    cause = {"rule": text, "rank": 0, "process": "rank_0", "sentence": text}
    journal.append("end", outcome="failed", exit_status=6, cause=cause)
    out = home / f"{run_id}.html"
    with pytest.raises(SystemExit) as ended:
        main(["report", run_id, "--out", str(out)])
    assert ended.value.code in (0, None)
    return out.read_text("utf-8")


def test_hostile_text_adds_no_element_and_no_handler(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path))
    tame = elements(page(tmp_path, "tame", "plain text"))
    text = page(tmp_path, "evil", EVIL)
    assert "alert(1)" in text
    hostile = elements(text)
    count = [tag for tag, _ in hostile].count("script")
    assert count == [tag for tag, _ in tame].count("script")
    assert "img" not in [tag for tag, _ in hostile]
    for _, attributes in hostile:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("#", "data:")), value


def test_the_pages_own_script_writes_text_not_elements():
    script = (Path(__file__).parents[3] / "templates" / "report.js").read_text("utf-8")
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in script
