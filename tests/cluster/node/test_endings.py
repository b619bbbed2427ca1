"""What is left of a run on a host, what an earlier one left, and who may control it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Callable

from tests.cluster.node.host import Frames, Host, alive, sh, wait_until

FOREVER = sh("exec sleep 600")


def killed_with_a_helper(host: Host) -> int:
    """A run whose supervisor was killed; the pid of a helper that outlived its rank."""
    host.launch(sh("(sleep 600 & echo $! > helper); exec sleep 600"))
    helper = int(host.wait_file("helper"))
    ranks = [event["pid"] for event in host.events("process_started")]
    os.kill(host.pids[0], signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in ranks), "end of the ranks")
    assert alive(helper)
    return helper


def test_arming_sweeps_what_an_earlier_run_left(new_host: Callable[..., Host]) -> None:
    """It would hold the device. Runs that live, here and in other workdirs, are left alone."""
    living, earlier, elsewhere = new_host(), new_host(), new_host(workdir="elsewhere")
    living.ship(FOREVER, leases=["device_1"])
    living.do("arm")
    living.do("start")
    helper = killed_with_a_helper(earlier)
    stranger = killed_with_a_helper(elsewhere)
    host = new_host()
    host.ship(FOREVER)
    (swept,) = host.do("arm")["swept"]
    assert (swept["run_id"], swept["swept"], swept["left"]) == (earlier.run_id, 1, [])
    assert not alive(helper)
    assert alive(stranger)
    assert living.do("status")["state"] == "running"
    for one in (host, living, elsewhere):
        one.do("stop")


def test_a_certificate_names_what_is_left_in_shared_memory(host: Host) -> None:
    name = Path("/dev/shm") / host.run_id
    worker = f"""
import mmap, time
file = open("{name}", "wb+")
file.write(bytes(8192))
file.flush()
kept = mmap.mmap(file.fileno(), 0)
print("up", flush=True)
time.sleep(600)
"""
    before = name.with_suffix(".before")
    try:
        before.write_bytes(b"data of a user")
        host.launch(
            [sys.executable, "-c", worker],
            sh(f"exec 7< {before}; echo up; exec sleep 600"),
        )
        for rank in range(2):
            host.wait_file(f"ranks/rank_{rank}/stdout.log")
        certificate = host.do("stop")
        assert certificate["shared_memory"] == [{"path": str(name), "bytes": 8192}]
        assert certificate["clean"] is False
        for kind in ("left", "ports", "devices"):
            assert certificate[kind] == []
        assert certificate["lock"] is None
        name.unlink()
        assert host.do("stop")["clean"] is True
    finally:
        name.unlink(missing_ok=True)
        before.unlink(missing_ok=True)


def test_a_lower_epoch_is_refused(host: Host) -> None:
    host.ship(FOREVER)
    host.do("arm", "--epoch", "1", "--owner", "one")
    host.do("start", "--epoch", "1", "--owner", "one")
    host.do("claim", "--epoch", "2", "--owner", "two")
    for command in ("stop", "start", "claim", "stacks"):
        status, answer = host.ask(command, "--epoch", "1", "--owner", "one")
        assert (status, answer["error"]["code"]) == (9, "fenced")
        assert "two (epoch 2, ours is 1)" in answer["error"]["message"]
    assert host.do("status")["state"] == "running"
    # Two that took the same number: the first to arrive has it.
    assert host.ask("claim", "--epoch", "2", "--owner", "three")[0] == 9
    # A stop in the name of the controller, and one by hand on the host.
    host.do("stop", "--epoch", "2")
    host.do("stop")


def test_a_stream_ends_when_another_controller_takes_over(host: Host) -> None:
    host.launch(FOREVER)
    frames = Frames(host, "--epoch", "1", "--owner", "one")
    frames.read(1)
    host.do("claim", "--epoch", "2", "--owner", "two")
    assert frames.read()[-1] == {"t": "fenced", "epoch": 2, "owner": "two"}
    frames.close()
    status, answer = host.ask("stream", "--epoch", "1", "--owner", "one")
    assert (status, answer["error"]["code"]) == (9, "fenced")
    host.do("stop")
