"""Findings for people, and the page of all checks."""

from __future__ import annotations

from pathlib import Path

from orchestrator.preflight.catalogue import CANN, CHECKS, GATEWAY, LINK, PING, SCHEDULER_PORT
from orchestrator.preflight.findings import CRIT, WARN
from orchestrator.preflight.summary import as_errors, page, places, rows, skipped, verdict, well

ROOT = Path(__file__).resolve().parents[3]


def test_like_findings_are_one_row_and_the_worst_come_last() -> None:
    findings = [
        *(LINK.bad(CRIT, "link status: DOWN", "n1", device) for device in (0, 1, 2, 7)),
        *(GATEWAY.bad(WARN, "none", f"n{n}", d) for n in range(5) for d in range(8)),
        LINK.ok("UP", "n2", 0),
        CANN.ok("CANN 7.0"),
        SCHEDULER_PORT.skip("no port"),
        PING.skip("no port"),
    ]
    assert [(row.status, row.check, row.places) for row in rows(findings)] == [
        ("WARN", "gateway", "5 hosts (n0, n1, n2, …) devices 0-7"),
        ("CRIT", "link", "n1 devices 0,1,2,7"),
    ]
    assert well(findings) == ["cann"]  # a link is down, so `link` is not well
    assert skipped(findings) == [("no port", ["scheduler-port", "ping"])]
    assert verdict(findings, 5) == "5 hosts: 1 critical, 1 warning, 1 check OK"


def test_errors_of_a_launch() -> None:
    findings = [
        *(LINK.bad(CRIT, "DOWN", "n1", device) for device in (0, 1)),
        *(CANN.bad(CRIT, "2 hosts differ", host) for host in ("n1", "n2")),
        PING.bad(CRIT, "all lost"),
        GATEWAY.bad(WARN, "none", "n1", 0),
    ]
    assert [(str(error), error.exit_status, bool(error.hint)) for error in as_errors(findings)] == [
        ("n1: link: devices 0,1: DOWN", 4, True),
        ("cann: 2 hosts (n1, n2): 2 hosts differ", 4, True),
        ("ping: all lost", 4, True),
    ]


def test_places() -> None:
    assert places([CANN.bad(CRIT, "differs")]) == ""
    assert places([CANN.bad(CRIT, "x", "n1")]) == "n1"
    assert places([LINK.bad(CRIT, "x", "n1", 3)]) == "n1 device 3"
    uneven = [LINK.bad(CRIT, "x", "n1", 3), LINK.bad(CRIT, "x", "n2", 4)]
    assert places(uneven) == "2 hosts (n1, n2) several devices"


def test_remedies_name_host_and_device() -> None:
    found = LINK.bad(CRIT, "DOWN", "node7", 3)
    assert found.remedy.startswith("ssh node7 hccn_tool -i 3 -link_stat -g")


def test_every_check_says_when_it_is_bad_and_what_mends_it() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert check.title
        assert check.remedy
        assert check.warn or check.crit


def test_the_page_of_checks_is_that_of_the_code() -> None:
    assert (ROOT / "docs" / "preflight.md").read_text("utf-8") == page()
