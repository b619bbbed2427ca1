"""The life of a run on one host, with real processes."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from typing import Callable

import pytest

from tests.cluster.node.host import Host, alive, sh, wait_until

FOREVER = sh("exec sleep 600")


def test_normal_run(new_host: Callable[..., Host], any_python: str) -> None:
    host = new_host(any_python)
    host.ship(
        sh("echo $GLM2_RUN_ID $GLM2_RUN_DIR; echo err >&2"),
        sh("pwd; readlink /proc/self/fd/0"),
        services={"scheduler": FOREVER},
    )
    armed = host.do("arm")
    assert host.do("status")["state"] == "armed"
    lease = json.loads(host.lease("device_0").read_text())
    assert (lease["run_id"], lease["pid"]) == (host.run_id, armed["pid"])
    host.do("start")
    finished = host.wait_finished()
    assert finished["outcome"] == "succeeded"
    assert (finished["ranks"], finished["failed"], finished["left"]) == (2, [], [])
    assert host.exits() == {
        "rank_0": (0, False),
        "rank_1": (0, False),
        "scheduler": (143, True),
    }
    assert host.stdout("rank_0") == f"{host.run_id} {host.run_dir}\nerr\n".encode()
    assert host.stdout("rank_1") == f"{host.run_dir}\n/dev/null\n".encode()
    kinds = [event["event"] for event in host.events()]
    assert kinds[:2] == ["armed", "started"]
    assert kinds[2:5] == ["process_started"] * 3
    assert kinds[-1] == "finished"
    status = host.do("status")
    assert (status["state"], status["outcome"]) == ("finished", "succeeded")
    assert status["supervisor_alive"] is False
    assert status["heartbeat"]["outcome"] == "succeeded"
    assert host.lease("device_0").read_text() == ""
    assert not (host.run_dir / "control.sock").exists()
    assert (host.run_dir / "supervisor.log").read_text() == ""


def test_a_failing_rank_ends_the_others(new_host: Callable[..., Host], any_python: str) -> None:
    host = new_host(any_python)
    host.launch(
        FOREVER,
        sh("while [ ! -e go ]; do sleep 0.02; done; exit 3"),
        FOREVER,
        services={"scheduler": FOREVER},
    )
    assert host.do("status")["state"] == "running"
    (host.run_dir / "go").touch()
    finished = host.wait_finished()
    assert finished["outcome"] == "failed"
    assert finished["failed"] == ["rank_1"]
    first = finished["first_failure"]
    assert (first["name"], first["rank"], first["code"]) == ("rank_1", 1, 3)
    assert host.exits() == {
        "rank_0": (143, True),
        "rank_1": (3, False),
        "rank_2": (143, True),
        "scheduler": (143, True),
    }
    assert host.events("stopping")[0]["reason"] == "rank_1 ended with exit status 3"
    assert {e["name"] for e in host.events("killed")} == {"rank_0", "rank_2", "scheduler"}


def test_a_crash_is_named_by_its_signal(host: Host) -> None:
    host.launch(sh("kill -SEGV $$"), FOREVER)
    first = host.wait_finished()["first_failure"]
    assert (first["code"], first["signal"]) == (139, "SIGSEGV")
    assert host.events("stopping")[0]["reason"] == "rank_0 was ended by SIGSEGV"


def test_a_rank_that_ignores_sigterm_is_killed_after_the_grace(host: Host) -> None:
    deaf = sh("trap '' TERM; echo deaf; while :; do sleep 0.05; done")
    host.launch(
        sh("until [ -s ranks/rank_1/stdout.log ]; do sleep 0.02; done; exit 1"), deaf, grace_s=0.3
    )
    host.wait_finished()
    assert host.exits()["rank_1"] == (137, True)
    signals = [e["signal"] for e in host.events("killed") if e["name"] == "rank_1"]
    assert signals == ["SIGTERM", "SIGKILL"]


def test_a_rank_may_save_with_its_helpers_before_it_ends(host: Host) -> None:
    """Its data loader gets no SIGTERM of ours: the rank's last step still needs it."""
    rank = """
    (trap 'echo terminated' TERM; while [ ! -e saved ]; do sleep 0.02; done; echo helper-ok) &
    trap 'touch saved; wait; echo done; exit 143' TERM
    echo ready
    while :; do sleep 0.02; done
    """
    host.launch(sh(rank))
    host.wait_file("ranks/rank_0/stdout.log")
    assert host.do("stop")["clean"] is True
    assert host.stdout("rank_0") == b"ready\nhelper-ok\ndone\n"
    assert host.exits() == {"rank_0": (143, True)}
    assert host.wait_finished()["outcome"] == "cancelled"


def test_services_are_asked_to_end_after_the_ranks(host: Host) -> None:
    """Ranks that save together still need MindSpore's scheduler while they end."""
    service = "trap 'echo asked >> order; exit 0' TERM; touch up; while :; do sleep 0.02; done"
    rank = """
    trap 'sleep 0.3; echo saved >> order; exit 143' TERM
    until [ -e up ]; do sleep 0.02; done
    echo ready
    while :; do sleep 0.02; done
    """
    host.launch(sh(rank), services={"scheduler": sh(service)})
    host.wait_file("ranks/rank_0/stdout.log")
    assert host.do("stop")["clean"] is True
    assert (host.run_dir / "order").read_text() == "saved\nasked\n"
    assert host.wait_finished()["outcome"] == "cancelled"


DAEMON = "(setsid bash -c '(sleep 600 & echo $! > daemon)' &)"
SCRUBBED = "(env -i setsid /bin/bash -c '(/bin/sleep 600 & echo $! > daemon)' &)"
DEAF = """(setsid bash -c "trap '' TERM; (sleep 600 & echo \\$! > daemon); sleep 600" &)"""


@pytest.mark.parametrize("daemon", [DAEMON, SCRUBBED, DEAF], ids=["marked", "scrubbed", "deaf"])
@pytest.mark.parametrize("end", ["stop", "failure", "success"])
def test_a_double_forked_daemon_does_not_survive(host: Host, daemon: str, end: str) -> None:
    last = {"stop": "exec sleep 600", "failure": "exit 1", "success": "exit 0"}[end]
    host.launch(sh(f"{daemon}; until [ -s daemon ]; do sleep 0.02; done; {last}"), grace_s=0.3)
    pid = int(host.wait_file("daemon"))
    if end == "stop":
        assert alive(pid)
        assert host.do("stop")["clean"] is True
    finished = host.wait_finished()
    expected = {"stop": "cancelled", "failure": "failed", "success": "succeeded"}[end]
    assert finished["outcome"] == expected
    assert finished["left"] == []
    assert not alive(pid)
    assert pid in [event["pid"] for event in host.events("killed")]


def test_ranks_die_with_a_killed_supervisor(new_host: Callable[..., Host], any_python: str) -> None:
    host = new_host(any_python)
    host.launch(FOREVER, sh("echo up; (sleep 600 & echo $! > helper); exec sleep 600"))
    helper = int(host.wait_file("helper"))
    ranks = [event["pid"] for event in host.events("process_started")]
    os.kill(host.pids[0], signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in ranks), "end of the ranks")
    status = host.do("status")
    assert (status["state"], status["outcome"]) == ("lost", None)
    assert [process["state"] for process in status["processes"]] == ["gone", "gone"]
    assert alive(helper)
    certificate = host.do("sweep")
    assert (certificate["clean"], certificate["left"], certificate["swept"]) == (True, [], 1)
    assert certificate["state"] == "lost"
    assert not alive(helper)


def test_sweep_leaves_a_living_supervisor_alone(host: Host) -> None:
    host.launch(FOREVER)
    code, answer = host.ask("sweep")
    assert (code, answer["error"]["code"]) == (9, "busy")
    assert host.do("status")["state"] == "running"
    host.do("stop")


def test_stop_is_repeatable_and_works_in_every_state(host: Host) -> None:
    host.ship(FOREVER)
    absent = host.do("stop")
    assert (absent["clean"], absent["state"]) == (True, "absent")
    host.do("arm")
    host.do("start")
    first = host.do("stop", "--reason", "enough")
    assert first == {
        "clean": True,
        "left": [],
        "ports": [],
        "devices": [],
        "shared_memory": [],
        "lock": None,
        "swept": 0,
        "state": "finished",
        "outcome": "cancelled",
    }
    assert host.do("stop") == first
    (stopping,) = host.events("stopping")
    assert stopping["reason"] == "enough"
    assert stopping["by"].startswith("stop (pid ")


def test_an_armed_run_can_be_stopped(host: Host) -> None:
    host.ship(FOREVER)
    host.do("arm")
    assert host.do("stop")["outcome"] == "cancelled"
    code, answer = host.ask("start")
    assert (code, answer["error"]["code"]) == (4, "host-not-ready")
    assert host.events("process_started") == []


def test_a_second_stop_can_shorten_the_grace(host: Host) -> None:
    host.launch(sh("trap '' TERM; echo deaf; while :; do sleep 0.05; done"), grace_s=600)
    host.wait_file("ranks/rank_0/stdout.log")
    patient = subprocess.Popen(host.argv("stop"), stdout=subprocess.PIPE)
    wait_until(lambda: host.events("killed"), "SIGTERM")
    assert host.do("stop", "--grace", "0")["clean"] is True
    output, _ = patient.communicate(timeout=30)
    assert json.loads(output)["clean"] is True
    assert host.exits() == {"rank_0": (137, True)}


def test_armed_twice_is_busy(host: Host) -> None:
    host.ship(FOREVER)
    host.do("arm")
    code, answer = host.ask("arm")
    assert (code, answer["error"]["code"]) == (9, "busy")
    assert host.do("status")["state"] == "armed"
    host.do("stop")
    code, answer = host.ask("arm")
    assert (code, answer["error"]["code"]) == (9, "busy")
    assert "already been used" in answer["error"]["message"]


def test_one_device_for_one_run(new_host: Callable[..., Host]) -> None:
    holder, other = new_host(), new_host()
    holder.ship(FOREVER, leases=["device_0", "device_1"])
    other.ship(sh("true"), leases=["device_2", "device_1"])
    pid = holder.do("arm")["pid"]
    code, answer = other.ask("arm")
    assert (code, answer["error"]["code"]) == (9, "busy")
    message = answer["error"]["message"]
    assert message == f"device_1 is held by run {holder.run_id} (supervisor pid {pid})"
    assert other.events() == []
    holder.do("stop")
    other.do("arm")  # and what the refused one had taken is free again
    other.do("start")
    assert other.wait_finished()["outcome"] == "succeeded"


def test_a_supervisor_that_is_never_started_ends_itself(host: Host) -> None:
    host.ship(FOREVER)
    host.do("arm", "--start-timeout", "0.2")
    assert host.wait_finished()["outcome"] == "cancelled"
    assert host.events("stopping")[0]["reason"] == "not started in time"


def test_start_twice_starts_once(host: Host) -> None:
    host.launch(sh("echo once; exec sleep 600"))
    assert host.do("start")["started"] is True
    host.wait_file("ranks/rank_0/stdout.log")
    host.do("stop")
    assert host.do("start")["started"] is True  # the answer to the first may have been lost
    assert len(host.events("process_started")) == 1
    assert host.stdout("rank_0") == b"once\n"


def test_start_without_arm(host: Host) -> None:
    host.ship(FOREVER)
    code, answer = host.ask("start")
    assert (code, answer["error"]["code"]) == (4, "host-not-ready")


def test_sigterm_to_the_supervisor_is_a_stop(host: Host) -> None:
    host.launch(FOREVER)
    os.kill(host.pids[0], signal.SIGTERM)
    assert host.wait_finished()["outcome"] == "cancelled"
    assert host.events("stopping")[0]["reason"] == "the supervisor received SIGTERM"


def test_a_service_that_ends_well_early_is_no_failure(host: Host) -> None:
    host.launch(
        sh("until [ -s ranks/scheduler/exit.json ]; do sleep 0.02; done"),
        services={"scheduler": sh("exit 0")},
    )
    assert host.wait_finished()["outcome"] == "succeeded"


def test_a_service_that_fails_early_is_a_failure(host: Host) -> None:
    host.launch(FOREVER, services={"scheduler": sh("exit 7")})
    finished = host.wait_finished()
    assert finished["outcome"] == "failed"
    assert finished["first_failure"]["name"] == "scheduler"


@pytest.mark.parametrize("code", [0, 5])
def test_a_service_may_linger_after_the_ranks(host: Host, code: int) -> None:
    """It may still serve ranks of other hosts; how it ends then is nobody's failure."""
    service = f"until [ -s ranks/rank_0/exit.json ]; do sleep 0.02; done; exit {code}"
    host.launch(sh("exit 0"), services={"scheduler": sh(service)}, linger_s=600)
    assert host.wait_finished()["outcome"] == "succeeded"
    assert host.exits()["scheduler"] == (code, code != 0)


def test_a_program_that_does_not_exist(host: Host) -> None:
    host.launch(FOREVER, ["no-such-program"], FOREVER)
    finished = host.wait_finished()
    assert finished["failed"] == ["rank_1"]
    assert host.exits() == {"rank_0": (143, True), "rank_1": (127, False)}
    (failed,) = [e for e in host.events("process_exited") if e["name"] == "rank_1"]
    assert "no-such-program" in failed["error"]


def test_files_are_private_and_the_umask_of_ranks_is_their_own(host: Host) -> None:
    before = os.umask(0o027)
    try:
        host.launch(sh("umask; exec sleep 600"))
    finally:
        os.umask(before)
    assert host.wait_file("ranks/rank_0/stdout.log") == "0027\n"
    for name in ("journal.jsonl", "control.sock", "heartbeat.json", "ranks/rank_0/stdout.log"):
        assert stat.S_IMODE((host.run_dir / name).stat().st_mode) == 0o600
    host.do("stop")


def test_a_run_folder_with_a_long_path(new_host: Callable[..., Host]) -> None:
    host = new_host(workdir="/".join(["a-rather-long-name-of-a-folder"] * 6))
    host.launch(FOREVER)
    assert len(str(host.run_dir)) > 200
    assert host.do("stop")["outcome"] == "cancelled"
