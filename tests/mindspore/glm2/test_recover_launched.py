"""A run that loses a host goes on with real workers on the ones that are left."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import psutil
import pytest

from orchestrator.runs.journal import read_events
from tests.mindspore.glm2.launched import Launches, Shape
from tests.mindspore.glm2.test_resume_launched import FOREVER, done
from tests.mindspore.glm2.worker import wait_until

ANY = Shape(data=2, shared=True, more=("parallel_config.data_parallel=0",))
"""As many ranks as there are; each holds its part of the optimizer's state."""


@pytest.mark.slow
def test_in_a_smaller_world_it_goes_on_from_the_last_complete_step(
    data: Path, tmp_path: Path
) -> None:
    launches = Launches(tmp_path, data)  # of its own: the host is quarantined
    words = launches.words("shrunk", ANY, *FOREVER, hosts=2)
    recover = ("--recover", "max_restarts=1", "--recover", "min_hosts=1")
    process = launches.cli.start(*words[:-1], *recover, words[-1])
    try:
        wait_until(lambda: process.poll() is not None or done(launches, "shrunk") >= 7, "7 steps")
        kill_supervisor(launches, "shrunk", host=1)
        wait_until(
            lambda: process.poll() is not None or done(launches, "shrunk.2") >= 3, "more", 200
        )
        stopped = launches.cli("stop", "shrunk", timeout=120)
        _, talk = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait(timeout=30)
    assert stopped.status == 0, stopped.stderr
    assert process.returncode == 8, talk + launches.said("shrunk.2", 1)
    assert "recovery: host1 is left out; starting again on 1 host from step" in talk
    assert "cut from dp 2, mp 1, state divided for dp 1, mp 1" in talk
    journal = launches.cli.run("shrunk").journal
    (decision,) = [one for one in read_events(journal) if one["event"] == "recovery"]
    assert (decision["rule"], decision["host"]) == ("bad-host", "host1")
    assert json.loads(launches.cli.run("shrunk.2").plan.read_text())["world_size"] == 1
    losses = launches.losses("shrunk")
    assert max(launches.losses("shrunk.2")[:3]) < losses[0], "it began anew"


def kill_supervisor(launches: Launches, run_id: str, host: int) -> None:
    journal = launches.folder / f"work{host}" / "runs" / run_id / "journal.jsonl"
    (armed,) = [one for one in read_events(journal) if one["event"] == "armed"]
    psutil.Process(armed["pid"]).send_signal(signal.SIGKILL)
