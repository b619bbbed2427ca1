"""Runs that are started again after a failure, over real SSH."""

from __future__ import annotations

import json
import signal
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.drill.cluster import Loopback
from orchestrator.drill.processes import wait_until
from orchestrator.drill.scene import Scene, standin
from orchestrator.runs.journal import read_events
from orchestrator.runs.lease import holder
from tests.cluster.sshd import SSHD

pytestmark = pytest.mark.skipif(SSHD is None, reason="sshd is not installed")


@contextmanager
def run(folder, *options, spares=0):
    with Loopback(folder / "cluster", 2 + spares) as cluster:
        hosts = cluster.hosts
        scene = Scene(folder / "scene", cluster, hosts[:2], standin(), spares=hosts[2:])
        scene.options = options
        scene.let("go")
        scene.launched = scene.launch()
        try:
            yield scene
        finally:
            scene.close()


def trains_again(scene, host, run_id="drill.2"):
    """Its first rank's first step."""
    folder = scene.run_dir(host).parent / run_id / "ranks"

    def first_step():
        for path in folder.glob("rank_*/metrics.jsonl"):
            steps = [line["step"] for line in read_events(path) if "step" in line]
            if steps:
                return steps[0]
        return None

    wait_until(lambda: first_step() is not None, "the next attempt", 60)
    return first_step()


def loses_python(scene, host):
    """What runs there goes on; nothing can be started any more."""
    tool = Path(host.python)
    tool.rename(tool.with_name("gone"))


def recovery(scene, run_id="drill"):
    journal = scene.home / "runs" / run_id / "journal.jsonl"
    (found,) = [one for one in read_events(journal) if one["event"] == "recovery"]
    return found


def test_goes_on_from_the_last_complete_step_then_stops_at_the_same_again(tmp_path):
    with run(tmp_path, "--recover", "max_restarts=3") as scene:
        scene.reach("training")
        scene.rank(2).send(signal.SIGKILL)
        assert trains_again(scene, scene.hosts[0]) == recovery(scene)["evidence"]["step"] + 1
        status = scene.command("status", "drill", "-o", "json").wait()
        assert [one["run_id"] for one in status.answer["attempts"]] == ["drill", "drill.2"]
        assert status.answer["run_id"] == "drill.2"
        scene.let("finish")
        done = scene.launched.wait(90)
        assert (done.status, done.answer["run_id"]) == (0, "drill.2")
        assert "restart 1 of at most 3" in done.talk
        assert scene.left() == []


def test_a_mistake_of_the_same_kind_is_not_tried_for_ever(tmp_path):
    """The trick is still there for the second attempt, which fails before a checkpoint."""
    with run(tmp_path, "--recover", "max_restarts=5") as scene:
        scene.trick("exit", 2)
        done = scene.launched.wait(90)
        assert done.status == 6
        assert done.answer["run_id"] == "drill.2"
        assert recovery(scene)["rule"] == "passing"
        assert recovery(scene, "drill.2")["rule"] == "same-again"
        assert "no step was completed" in done.talk


def test_a_detached_run_goes_on_with_a_spare(tmp_path):
    """The supervisor of a host vanishes: the host is quarantined, the spare takes its place."""
    with run(tmp_path, "--recover", "max_restarts=1", "--detach", spares=1) as scene:
        assert scene.launched.wait().status == 0
        scene.launched = None
        scene.reach("training")
        bad = scene.hosts[1]
        scene.supervisor(bad).send(signal.SIGKILL)
        trains_again(scene, scene.spares[0])
        assert (recovery(scene)["rule"], recovery(scene)["host"]) == ("bad-host", bad.name)
        (entry,) = json.loads((scene.home / "quarantine" / "loopback.json").read_text())["hosts"]
        assert (entry["host"], entry["by"]) == (bad.name, "drill")
        assert entry["until"] is not None
        stopped = scene.command("stop", "drill", "-o", "json").wait()
        assert stopped.status == 0, stopped.talk
        assert stopped.answer["run_id"] == "drill.2"
        wait_until(lambda: scene.left() == [], "the end of all")


def test_runs_on_fewer_hosts_where_that_is_allowed(tmp_path):
    options = ("--recover", "max_restarts=1", "--recover", "min_hosts=1")
    with run(tmp_path, *options) as scene:
        scene.reach("training")
        scene.supervisor(scene.hosts[1]).send(signal.SIGKILL)
        trains_again(scene, scene.hosts[0])
        scene.let("finish")
        done = scene.launched.wait(90)
        assert done.status == 0, done.talk
        assert [host["name"] for host in done.answer["hosts"]] == [scene.hosts[0].name]
        assert "starting again on 1 host" in done.talk


def test_an_attempt_that_cannot_be_started_is_judged_too(tmp_path):
    """The host is blamed, and the attempt after that does without it."""
    options = ("--recover", "max_restarts=3", "--recover", "min_hosts=1")
    with run(tmp_path, *options) as scene:
        scene.reach("training")
        bad = scene.hosts[1]
        loses_python(scene, bad)
        scene.rank(2).send(signal.SIGKILL)
        trains_again(scene, scene.hosts[0], "drill.3")
        assert recovery(scene)["rule"] == "passing"
        judged = recovery(scene, "drill.2")
        assert (judged["rule"], judged["host"]) == ("bad-host", bad.name)
        assert judged["evidence"]["signature"] == "host-not-ready"
        scene.let("finish")
        done = scene.launched.wait(90)
        assert (done.status, done.answer["run_id"]) == (0, "drill.3"), done.talk
        assert [host["name"] for host in done.answer["hosts"]] == [scene.hosts[0].name]


def test_a_run_that_can_be_started_nowhere_is_given_up_with_the_cause(tmp_path):
    with run(tmp_path, "--recover", "max_restarts=3") as scene:
        scene.reach("training")
        bad = scene.hosts[1]
        loses_python(scene, bad)
        scene.rank(2).send(signal.SIGKILL)
        done = scene.launched.wait(90)
        assert (done.status, done.answer["error"]["host"]) == (4, bad.name)
        assert "recovery: no restart: 127.0.1.2 would have to be left out" in done.talk
        status = scene.command("status", "drill", "-o", "json").wait()
        assert (status.status, status.answer["run_id"]) == (4, "drill.2")
        assert status.answer["cause"]["host"] == bad.name
        assert [one["rule"] for one in status.answer["attempts"]] == ["passing", "too-few-hosts"]
        found = scene.command("diagnose", "drill", "-o", "json").wait().answer
        assert bad.name in json.dumps(found)


def test_whoever_attaches_recovers_as_the_launch_would(tmp_path):
    with run(tmp_path, "--recover", "max_restarts=1") as scene:
        scene.reach("training")
        scene.launched.kill()
        scene.launched = None
        attached = scene.command("attach", "drill", "-o", "json")
        wait_until(lambda: holder(scene.paths.lock) is not None, "the new controller")
        scene.rank(2).send(signal.SIGKILL)
        trains_again(scene, scene.hosts[0])
        scene.let("finish")
        done = attached.wait(90)
        assert (done.status, done.answer["run_id"]) == (0, "drill.2"), done.talk
        assert scene.left() == []


def test_a_rank_that_failed_just_before_a_stop_is_the_first_cause(tmp_path):
    """The controller hears of both at once, in whatever order; and nothing is started again."""
    with run(tmp_path, "--recover", "max_restarts=1") as scene:
        scene.reach("training")
        near, far = (scene.run_dir(host) / "journal.jsonl" for host in scene.hosts)
        controller = scene.launched.process
        controller.send_signal(signal.SIGSTOP)
        scene.trick("exit", 2)
        wait_until(lambda: '"process_exited"' in far.read_text(), "the end of the rank")
        stopping = scene.command("stop", "drill", "-o", "json")
        wait_until(lambda: '"stopping"' in near.read_text(), "the stop")
        controller.send_signal(signal.SIGCONT)
        done = scene.launched.wait(90)
        cause = done.answer["cause"]
        assert (done.status, cause["rank"], cause["exit_code"]) == (6, 2, 3), done.talk
        assert done.answer["run_id"] == "drill"
        assert stopping.wait().status == 0
        assert scene.left() == []
