"""What ``ranktable check`` prints, for people and programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.planning.ranktable_lint import check_table
from orchestrator.planning.ranktable_report import as_json, as_sarif, as_text, rules_page, summary
from orchestrator.planning.ranktable_rules import RULES
from tests.unit.planning.test_ranktable_lint import table

ROOT = Path(__file__).parents[3]


def spoilt() -> Any:
    content = table()
    content["status"] = "initializing"
    for server in content["server_list"]:
        for device in server["device"]:
            device["device_ip"] = "-.-.-.-"
    return check_table(json.dumps(content, indent=1).encode(), "a b.json")


def test_text_names_place_behaviour_and_remedy():
    text = as_text([spoilt()])
    lines = text.splitlines()
    assert lines[0] == "a b.json: version 1.0, 2 servers, 16 devices: 17 errors"
    assert "RT031: `device_ip` '-.-.-.-' is a placeholder" in lines[1]
    assert lines[1].startswith("  a b.json:10:19: error ")
    assert "EI0004" in lines[2]
    assert "hccn_tool" in lines[3]
    assert "  … and 11 more of RT031" in lines
    assert "waits, up to 30 minutes" in text


def test_a_hostile_name_cannot_drive_the_terminal():
    text = as_text([check_table(b"{}", "\x1b[31m.json")])
    assert "\x1b" not in text


def test_json_holds_every_finding():
    top = json.loads(as_json([spoilt()]))
    assert top["schema"] == 1
    (file,) = top["files"]
    assert (file["file"], file["form"], file["servers"]) == ("a b.json", "1.0", 2)
    assert file["errors"] == 17
    assert len(file["findings"]) == 17
    assert file["findings"][0]["code"] == "RT031"
    assert (file["findings"][0]["line"], file["findings"][0]["column"]) == (10, 19)


def test_sarif_refers_to_its_rules_and_places():
    log = json.loads(as_sarif([spoilt(), check_table(b"", "/x/y.json")], "1.2.3"))
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(RULES)
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        place = result["locations"][0]["physicalLocation"]
        assert place["region"]["startLine"] >= 1
        assert place["region"]["startColumn"] >= 1
    uris = [item["location"]["uri"] for item in run["artifacts"]]
    assert uris == ["a%20b.json", "file:///x/y.json"]


def test_summary():
    clean = check_table(json.dumps(table()).encode(), "t.json")
    assert summary([clean]) == "1 file: clean"
    assert summary([clean, spoilt()]) == "2 files: 17 errors"


def test_the_page_of_rules_is_that_of_the_code():
    page = (ROOT / "docs" / "rank-table-rules.md").read_text("utf-8")
    assert page == rules_page()
