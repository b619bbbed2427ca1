"""What the controller sees of a running job, and what it does about it, over real SSH."""

from __future__ import annotations

import pytest

from orchestrator.engine.recording import replay
from orchestrator.runs.journal import Journal
from tests.cluster.launch.conftest import processes_of, standin
from tests.cluster.sshd import wait_until


@pytest.fixture
def two_hosts(loopback):
    return loopback(2)


def decisions(run):
    return [event for event in Journal(run.journal).events() if event["event"] == "decision"]


def test_a_hang_is_stopped_with_the_stacks_of_all_ranks(cli, two_hosts):
    done = cli(
        *("launch", "-i", two_hosts.inventory(), "--run-id", "stuck", "--watch", "step_s=2"),
        *("--env", "STANDIN_STUCK=2:3", *standin(5), "-o", "json", "finetune"),
    )
    assert done.status == 7, done.stderr
    last = done.stderr.splitlines()[-1]
    assert "after step 3" in last
    assert "rank 2 in load_batch (standin_rank.py:" in last
    run = cli.run("stuck")
    taken, stopped = decisions(run)
    assert (taken["action"], taken["rule"]) == ("take-stacks", "hang")
    assert (stopped["action"], stopped["evidence"]["differ"]) == ("stop", [2])
    assert [group["ranks"] for group in stopped["evidence"]["stacks"]] == [[0, 1, 3], [2]]
    assert "in all_reduce" in run.stacks("rank_0").read_text()
    assert [dict(one.evidence) for one in replay(run)] == [
        taken["evidence"],
        stopped["evidence"],
    ]
    cause = done.json()["cause"]
    assert (cause["rule"], cause["rank"], cause["host"]) == ("hang", 2, "127.0.1.2")
    assert processes_of("stuck") == []


def test_a_host_that_is_cut_off_is_waited_for_and_then_given_up(cli, loopback):
    """Its sshd and all connections end; what runs there goes on until it is back."""
    cluster = loopback(2)
    lost = cluster.hosts[1]
    with cli.start(
        *(
            "launch",
            "-i",
            cluster.inventory(job={"heartbeat_s": 0.2}),
            "--run-id",
            "severed-run",
            "--watch",
            "silence_s=5",
        ),
        *("--env", "STANDIN_HANG=1", *standin(), "finetune"),
    ) as launch:
        wait_until(lambda: '"running"' in text(cli, "severed-run"), "the start")
        cluster.stop(lost)
        _, talk = launch.communicate(timeout=120)
    assert launch.returncode == 5, talk
    assert f"{lost.name}: not reached, so not proven clean: " in talk
    assert f"{lost.name} was not heard of for too long" in talk.splitlines()[-2]
    (decision,) = decisions(cli.run("severed-run"))
    assert (decision["rule"], decision["evidence"]["host"]) == ("host-silent", lost.name)
    cluster.start(lost)
    stopped = cli("stop", "severed-run", "--grace", "1")
    assert stopped.status == 0, stopped.stderr
    assert processes_of("severed-run") == []


def text(cli, run_id):
    journal = cli.store.root / run_id / "journal.jsonl"
    return journal.read_text() if journal.exists() else ""
