"""The report: one file, nothing in it runs but our script, of a bounded size."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import pytest
from click.testing import CliRunner

from orchestrator.cli.main import cli, main
from orchestrator.planning.facts import VERSIONS
from orchestrator.report.gathering import gather
from orchestrator.report.page import comparison_page, embedded, report_page
from tests.unit.report.made_run import START, made_run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\"'&"


class Page(HTMLParser):
    """What a browser would make of it: tags with their attributes, texts by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: List[Tuple[str, Dict[str, Optional[str]]]] = []
        self.texts: List[str] = []
        self.scripts: List[str] = []
        self.styles: List[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")
        elif tag == "style":
            self.styles.append("")

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "style":
            self.styles[-1] += data
        else:
            self.texts.append(data)

    def handle_endtag(self, tag):
        self._inside = ""

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])


def page_of(tmp_path, cause=None, **options) -> Page:
    return Page(report_page(gather(made_run(tmp_path, **options), cause), START + 500, "1.0"))


def test_what_a_failed_run_shows(tmp_path):
    cause = {
        "found": True,
        "headline": "rank 17 on x: EL0004, no memory",
        "remedy": "see npu-smi",
        "line": "E!",
    }
    page = page_of(
        tmp_path, cause, slow_hosts=[3], failed_rank=17, ended="failed", steps=300, nan_at=298
    )
    for text in (
        "finetune-20270115-080000-made failed",
        "finetune on cluster12, 96 ranks on 12 hosts",
        "First cause rank 17 on x: EL0004, no memory what to do see npu-smi E!",
        "Steps 300 of 600",
        "host 192.168.0.3 (ranks 24-31) is slow",
        "the loss was no number at 3 steps, first at step 298",
        "rank_17 failed, killed by SIGKILL (137)",
        "192.168.0.2 16-23 7 stopped, 1 failed (killed by SIGKILL (137)) 300",
        "recipe ascend_ranktable",
        "192.168.0.12 stands in for 192.168.0.7",
        "learning_rate: 5.0e-5",
        "saved once by 96 ranks, after step 200",
        "HCCL_CONNECT_TIMEOUT 600",
        "RANK_ID 0 … 95",
        "HUB_TOKEN (hidden)",
    ):
        assert text in page.text, text
    loss = next(chart for chart in page.data["charts"] if chart["id"] == "loss")
    assert len(loss["series"][0]["lines"]) == 96
    assert [mark["text"] for mark in loss["marks"]] == [
        "no number from step 298 to 300",
        "96 ranks saved a checkpoint",
    ]
    assert [rank for rank, slow in zip(page.data["ranks"]["ranks"], page.data["ranks"]["slow"])
            if slow] == list(range(24, 32))  # fmt: skip
    assert len(page.data["lanes"]["lanes"]) == 12


def test_hosts_with_the_same_software_are_one_row(tmp_path):
    page = page_of(tmp_path)
    assert "not all hosts have the same" in page.text
    assert "11 hosts 192.168.0.[0-10] 23.0.3 7.1.0.5.220 7.0.0 2.10.0 3.9.18" in page.text
    assert "1 host 192.168.0.11 22.0.4 – 7.0.0 2.10.0 3.9.18" in page.text


def test_where_the_logs_tell_nothing_the_journal_does(tmp_path):
    nothing = {"found": False, "headline": "no cause was found in the logs"}
    page = page_of(tmp_path, nothing, failed_rank=3, ended="failed", hosts=1)
    assert "First cause rank_3 on 192.168.0.0 failed first, killed by SIGKILL (137)" in page.text
    assert "no cause was found" not in page.text


def test_a_run_of_which_nothing_is_known_yet(tmp_path):
    page = page_of(tmp_path, steps=0, hosts=1, per_host=1)
    assert "Steps –" in page.text
    assert page.data["charts"] == []


def test_it_needs_nothing_from_anywhere(tmp_path):
    for page in (page_of(tmp_path / "a"), Page(compared(tmp_path / "b"))):
        for tag, attributes in page.tags:
            assert tag not in ("iframe", "object", "embed", "img", "base", "form"), tag
            for name in ("src", "href", "action"):
                assert attributes.get(name, "data:,") == "data:,", (tag, attributes)
            assert not any(name.startswith("on") for name in attributes)
            assert "style" not in attributes, "the policy would refuse it"
        assert not re.search(r"url\(|@import", "".join(page.styles))


def test_the_policy_names_what_may_run(tmp_path):
    page = page_of(tmp_path)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy is not None

    def digest(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    assert policy.split("; ") == [
        "default-src 'none'",
        "img-src data:",
        f"script-src {digest(page.scripts[1])}",
        f"style-src {digest(page.styles[0])}",
    ]


def test_nothing_hostile_becomes_markup(tmp_path):
    cause = {
        "found": True, "headline": HOSTILE, "reason": HOSTILE, "line": HOSTILE, "notes": [HOSTILE],
        "evidence": [{"processes": HOSTILE, "line": HOSTILE, "time": HOSTILE, "count": 1}],
    }  # fmt: skip
    decisions = [{"action": "tell", "rule": HOSTILE, "evidence": {"host": HOSTILE}}]
    names = [HOSTILE.replace("/", "_"), "plain"]
    paths = made_run(
        tmp_path, host_names=names, per_host=2, failed_rank=1, ended="failed", decisions=decisions
    )
    with paths.metrics("rank_0").open("a") as stream:
        stream.write(json.dumps({"result": {HOSTILE: HOSTILE}, "wall": 1.0}) + "\n")
        stream.write(json.dumps({"phase": HOSTILE, "wall": START + 50}) + "\n")
    versions = {"hosts": names, **dict.fromkeys(VERSIONS, HOSTILE)}
    with paths.journal.open("a") as stream:
        stream.write(json.dumps({"event": "versions", "groups": [versions], "wall": START}) + "\n")
    innocent = page_of(tmp_path / "other", hosts=2, per_host=2, failed_rank=1, ended="failed")
    text = report_page(gather(paths, cause), START + 500, "1.0")
    page = Page(text)
    assert [t for t, _ in page.tags].count("script") == 2
    assert {t for t, _ in page.tags} - {t for t, _ in innocent.tags} <= {
        "dt", "details", "summary", "pre", "code",
    }  # fmt: skip
    assert page.text.count("<img src=x onerror=alert(2)>") > 5, "it is shown as text"
    assert "\x1b" not in text
    assert page.data["lanes"]["lanes"][0]["phases"][-1][0] == "other"


def test_embedded_data_cannot_end_its_element():
    text = str(embedded({"x": HOSTILE + "<!--\u2028"}))
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == {"x": HOSTILE + "<!--\u2028"}
    with pytest.raises(ValueError, match="float"):
        embedded({"x": float("nan")})


def test_96_long_ranks_stay_below_3_megabytes(tmp_path):
    paths = made_run(tmp_path, goal=100_000)
    paths.metrics("rank_0").write_text("".join(
        json.dumps({"step": n, "steps": 100_000, "loss": 1.0 + n % 97 / 1e3, "lr": n * 1e-9,
                    "tokens_per_s_per_p": 800.0 + n % 13, "step_time_s": 1.5, "wall": START + n})
        + "\n" for n in range(1, 100_001)
    ))  # fmt: skip
    run = gather(paths, None)
    alike = tuple(replace(run.histories[0], rank=rank) for rank in range(96))
    text = report_page(replace(run, histories=alike), START + 500, "1.0")
    assert len(text.encode()) < 3_000_000
    assert "of each rank about every 17th step was read" in text


def test_1000_ranks_stay_below_3_megabytes(tmp_path):
    text = report_page(
        gather(made_run(tmp_path, hosts=125, steps=70, slow_hosts=[100]), None), START + 500, "1"
    )
    assert len(text.encode()) < 3_000_000
    assert "24 of 125 hosts, those that had trouble first" in Page(text).text
    assert "192.168.0.100" in [lane["host"] for lane in Page(text).data["lanes"]["lanes"]]


def compared(tmp_path: Path) -> str:
    a = made_run(tmp_path, run_id="run-a", steps=60, ended="succeeded")
    b = made_run(tmp_path, run_id="run-b", steps=90, seed=7, step_s=1.0, hosts=6)
    return comparison_page(gather(a, None), gather(b, None), START + 500, "1.0")


def test_two_runs_side_by_side(tmp_path):
    page = Page(compared(tmp_path))
    assert "A · run-a B · run-b" in page.text
    assert "Steps 60, of 600 90, of 600 +30 (+50.0%)" in page.text
    assert "ranks 96 48" in page.text
    (loss, *_) = page.data["charts"]
    assert [(s["name"], s["run"], len(s["steps"])) for s in loss["series"]] == [
        ("A", "run-a", 60), ("B", "run-b", 90),
    ]  # fmt: skip


def test_a_damaged_plan_is_told_and_the_rest_is_shown(tmp_path):
    paths = made_run(tmp_path)
    paths.plan.write_text("{}")
    page = Page(report_page(gather(paths, None), START + 500, "1.0"))
    assert "is not a plan of schema 1" in page.text
    assert "Steps 60 of 600" in page.text


def test_collected_checkpoints_are_listed(tmp_path):
    paths = made_run(tmp_path)
    paths.checkpoints.mkdir()
    manifest = {"schema": 1, "steps": {"1_200": {"files": [{"size": 3 << 20}, {"size": 1 << 20}]}}}
    (paths.checkpoints / "manifest.json").write_text(json.dumps(manifest))
    page = Page(report_page(gather(paths, None), START + 500, "1.0"))
    assert "1_200 2 4.0 MiB" in page.text


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path))
    paths = made_run(tmp_path, hosts=2, failed_rank=3, ended="failed")
    paths.logs.mkdir()
    paths.log("rank_3").write_text("11:00:00 start\nEL0004: Failed to allocate memory.\n")
    answer = CliRunner().invoke(cli, ["report"])
    assert answer.exit_code == 0
    assert answer.stdout.strip() == str(paths.dir / "report.html")
    assert "First cause" in (paths.dir / "report.html").read_text()
    made_run(tmp_path, run_id="other", hosts=2)
    out = tmp_path / "c.html"
    answer = CliRunner().invoke(
        cli, ["report", "--compare", "other", "finetune", "--out", str(out), "--json"]
    )
    assert json.loads(answer.stdout)["file"] == str(out)
    assert "Side by side" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "a"], "--compare needs two runs, 1 given"),
        (["a", "b"], "a report is of one run, 2 given"),
        (["--out", "/nonexistent/x.html"], "cannot write /nonexistent/x.html"),
    ],
)
def test_bad_options_are_told(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("GLM2_ORCH_HOME", str(tmp_path))
    made_run(tmp_path, hosts=1, per_host=1)
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
