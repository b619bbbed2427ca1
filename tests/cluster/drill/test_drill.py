"""Drills as a user runs them: a subset of all faults, each at a moment where it is quick."""

from __future__ import annotations

import json
import os

import pytest

from orchestrator.drill.faults import BY_NAME, FAULTS, MOMENTS
from orchestrator.drill.rehearsal import Row, cause, rehearse

QUICK = [
    ("kill-rank", "training"),
    ("kill-rank", "collect"),
    ("hang-rank", "training"),
    ("kill-supervisor", "checkpoint"),
    ("wrong-host-key", "launch"),
    ("no-python", "launch"),
    ("ei0006-storm", "launch"),
    ("clock-skew", "training"),
    ("deaf-rank", "training"),
    ("left-behind", "checkpoint"),
]


@pytest.fixture(autouse=True)
def sshd():
    from orchestrator.drill.cluster import sshd as find
    from orchestrator.errors import HostNotReady

    try:
        find()
    except HostNotReady as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "moment"), QUICK)
def test_a_fault_ends_as_it_should(tmp_path, name, moment):
    row = rehearse(BY_NAME[name], moment, tmp_path)
    assert row.verdict == "ok", row


def test_the_drill_notices_an_ending_that_is_not_as_it_should(tmp_path):
    """A rehearsal that could not fail would be worth nothing."""
    from dataclasses import replace

    from orchestrator.drill.faults import Expected

    wrong = replace(BY_NAME["crash-rank"], expected=Expected(6, "crash rank 0"))
    row = rehearse(wrong, "training", tmp_path)
    assert (row.verdict, row.seen) == ("wrong", "6 crash rank 2")
    assert "rank 2 on 127.0.1.2" in row.notes[0]


def test_there_are_at_least_14_faults_for_every_moment():
    for moment in MOMENTS:
        assert sum(moment in fault.moments for fault in FAULTS) >= 14
    assert len(BY_NAME) == len(FAULTS)


def test_what_is_missing_is_said(tmp_path):
    from dataclasses import replace

    fault = replace(BY_NAME["full-disk"], needs=(lambda: "no disk here",))
    row = rehearse(fault, "training", tmp_path)
    assert (row.verdict, row.notes) == ("skipped", ("no disk here",))
    assert isinstance(row, Row)
    assert os.listdir(tmp_path) == []


def test_the_cause_in_words():
    assert cause({"error": {"code": "busy", "host": "n1"}}) == "busy n1"
    lost = {"cause": {"rule": "host-silent", "host": "n1"}, "diagnosis": {"found": True}}
    assert cause(lost) == "host-silent n1"
    found = {"found": True, "code": "killed", "ranks": [2], "host": "n1", "rule": "own-error"}
    assert cause({"diagnosis": found}) == "killed rank 2"
    assert cause({"diagnosis": found}, whole_host=True) == "killed n1"
    assert cause({"diagnosis": None, "cause": None}) == ""


def test_the_command_line_lists_and_refuses():
    from click.testing import CliRunner

    from orchestrator.cli.main import cli
    from orchestrator.errors import UsageError

    listed = CliRunner().invoke(cli, ["drill", "--list", "-o", "json"])
    assert len(json.loads(listed.stdout)["faults"]) == len(FAULTS)
    unknown = CliRunner().invoke(cli, ["drill", "kill-rnak"])
    assert isinstance(unknown.exception, UsageError)
    assert "kill-rank" in unknown.exception.hint
    never = CliRunner().invoke(cli, ["drill", "damaged-checkpoint", "--during", "launch"])
    assert isinstance(never.exception, UsageError)
