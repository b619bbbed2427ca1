"""A host in a network of its own, whose link goes down: packets vanish, nothing is refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

from orchestrator.drill.acts import lost_lines
from orchestrator.drill.cluster import Server
from orchestrator.drill.processes import wait_until
from orchestrator.drill.scene import RUN_ID, Scene, standin
from orchestrator.inventory import ServerId, SshAddress
from orchestrator.runs.journal import read_events
from orchestrator.runs.lease import holder
from tests.cluster.sshd import Loopback

NAME = f"glm2-{os.getpid()}"
LINK, PEER = f"gl{os.getpid()}a", f"gl{os.getpid()}b"
NET = f"198.18.{os.getpid() % 250}"
HERE, THERE = f"{NET}.1", f"{NET}.2"


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def apart():
    """A network namespace with the address THERE, joined to this one by a pair of links."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and ip (Debian: iproute2)")
    steps: List[List[str]] = [
        ["netns", "add", NAME],
        ["link", "add", LINK, "type", "veth", "peer", "name", PEER, "netns", NAME],
        ["addr", "add", f"{HERE}/30", "dev", LINK],
        ["link", "set", LINK, "up"],
        ["-n", NAME, "addr", "add", f"{THERE}/30", "dev", PEER],
        ["-n", NAME, "link", "set", PEER, "up"],
        ["-n", NAME, "link", "set", "lo", "up"],
    ]
    try:
        for step in steps:
            done = ip(*step)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
        yield NAME
    finally:
        ip("link", "del", LINK)
        ip("netns", "del", NAME)


def link(state: str) -> None:
    assert ip("-n", NAME, "link", "set", PEER, state).returncode == 0


@pytest.fixture
def severed(loopback: Callable[..., Loopback], apart: str, tmp_path: Path) -> Iterator[Any]:
    """Starts the job; waits until it trains."""
    cluster = loopback(1)
    servers = (
        Server(tmp_path / HERE, HERE, cluster.port),
        Server(tmp_path / THERE, THERE, cluster.port, within=("ip", "netns", "exec", apart)),
    )
    with ExitStack() as stack:
        for server in servers:
            line = server.configure(cluster.folder / "authorized_keys")
            with cluster.known_hosts.open("a") as known:
                known.write(line)
            stack.callback(server.close)
            server.start()
            server.wait_ready()
        near, lonely = (
            replace(
                cluster.hosts[0],
                name=server.address,
                address=SshAddress(server.address),
                server_id=ServerId(server.address),
                workdir=str(server.folder / "workdir"),
            )
            for server in servers
        )

        def start(**watch: object) -> Scene:
            scene = Scene(tmp_path, cluster, (near, lonely), standin(), watch)
            stack.callback(scene.close)
            scene.let("go")
            scene.launched = scene.launch()
            scene.reach("training")
            return scene

        yield start


def test_a_host_whose_link_goes_down_is_given_up_and_found_again(severed: Any) -> None:
    scene = severed(silence_s=3)
    link("down")
    done = scene.launched.wait()
    cause = done.answer["cause"]
    assert (done.status, cause["rule"], cause["host"]) == (5, "host-silent", THERE)
    assert [one["rule"] for one in scene.decisions()] == ["host-silent"]
    assert [(one["host"], one["certificate"]["clean"]) for one in stopped(scene)] == [(HERE, True)]
    assert f"{THERE}: not reached, so not proven clean: " in done.talk

    status = scene.command("status", RUN_ID, "-o", "json").wait()
    assert (status.status, status.answer["hosts_clean"]) == (5, 1)
    states = [(one["host"], one["status"]) for one in status.answer["processes"] if one["rank"]]
    assert states == [(HERE, "stopped"), (THERE, "unknown"), (THERE, "unknown")]
    attached = scene.command("attach", RUN_ID, "-o", "json").wait()
    assert (attached.status, attached.answer["cause"]) == (5, cause)
    assert f"{THERE}: not reached, so not proven clean: " in attached.talk

    link("up")
    ended = scene.command("stop", RUN_ID, "-o", "json").wait()
    assert ended.status == 0, ended.talk
    wait_until(lambda: not scene.left(), "the end of all")


def test_a_controller_that_dies_while_a_link_is_down_is_replaced(severed: Any) -> None:
    """The job runs on; whoever attaches waits for the link, and no line is lost or doubled."""
    scene = severed(silence_s=60)
    link("down")
    scene.launched.kill()
    scene.launched = None
    status = scene.command("status", RUN_ID, "-o", "json").wait()
    assert (status.status, status.answer["status"]) == (0, "running")
    assert status.answer["unwatched"]
    live = scene.command("status", RUN_ID, "--live", "-o", "json").wait().answer["live"]
    assert (live[HERE]["state"], "unreachable" in live[THERE]) == ("running", True)

    attached = scene.command("attach", RUN_ID, "-o", "json")
    scene.until(lambda: holder(scene.paths.lock) is not None, "the new controller")
    before = scene.step(2)
    wait_until(lambda: scene.step(2) > before, "steps of the host that is cut off")
    link("up")
    scene.let("finish")
    done = attached.wait()
    assert done.status == 0, done.talk
    assert [one["status"] for one in done.answer["processes"] if one["rank"]] == ["succeeded"] * 3
    assert lost_lines(scene) == ""
    wait_until(lambda: not scene.left(), "the end of all")


def stopped(scene: Scene) -> List[Dict[str, Any]]:
    return [one for one in read_events(scene.paths.journal) if one["event"] == "stopped"]
