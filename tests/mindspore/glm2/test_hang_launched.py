"""A real rank that stands still is found by the pace of all, and named with the stacks."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.launch.conftest import processes_of
from tests.mindspore.glm2.launched import Launches, Shape
from tests.mindspore.glm2.test_resume_launched import FOREVER, done, ranks_of
from tests.mindspore.glm2.worker import wait_until


@pytest.mark.slow
def test_the_rank_that_stands_still_is_named_and_the_other_tells_where_it_waits(
    data: Path, tmp_path: Path
) -> None:
    launches = Launches(tmp_path, data)
    words = launches.words("still", Shape(data=2), *FOREVER)
    # It saves every third step, and may be stopped in the middle of that.
    limits = ("--watch", "step_s=5", "--watch", "checkpoint_s=5")
    process = launches.cli.start(*words[:-1], *limits, words[-1])
    try:
        wait_until(lambda: process.poll() is not None or done(launches, "still") >= 10, "10 steps")
        (rank,) = [one for one in ranks_of("still") if one.environ().get("RANK_ID") == "1"]
        rank.suspend()
        _, talk = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait(timeout=30)
    assert process.returncode == 7, talk + launches.said("still", 2)
    paths = launches.cli.run("still")
    # Not in Python when it was asked: it waits for the other in a collective.
    assert "glm2/trainer.py" in paths.stacks("rank_0").read_text()
    assert "state T" in paths.stacks("rank_1").read_text()
    diagnosis = launches.cli("diagnose", "still", "-o", "json").json()
    assert (diagnosis["code"], diagnosis["ranks"]) == ("hung", [1])
    assert processes_of("still") == []
