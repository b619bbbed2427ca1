"""``launch --resume``: to the bit in the same layout, within rounding in another."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Callable, List

import numpy as np
import psutil
import pytest

from glm2.checkpoint import saved_files, step_of
from orchestrator.errors import UsageError
from tests.cluster.launch.conftest import processes_of
from tests.mindspore.glm2.launched import STEPS, Launches, Shape
from tests.mindspore.glm2.worker import wait_until

MP2 = Shape(model=2, more=("parallel_config.vocab_emb_dp=False",))
FOREVER = ("--set", "runner_config.epochs=1000")


def start_and_kill(launches: Launches, run_id: str, shape: Shape) -> None:
    """Start a training that would go on for long; kill its last rank once 7 steps are done."""
    process = launches.cli.start(*launches.words(run_id, shape, *FOREVER))
    try:
        wait_until(lambda: process.poll() is not None or done(launches, run_id) >= 7, "step 7", 200)
        last = str(shape.ranks - 1)
        (rank,) = [one for one in ranks_of(run_id) if one.environ().get("RANK_ID") == last]
        rank.kill()
        process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait(timeout=30)
    assert process.returncode == 6, launches.said(run_id, shape.ranks)


def done(launches: Launches, run_id: str) -> int:
    try:
        return len(launches.losses(run_id))
    except (OSError, UsageError):  # the run has not begun
        return 0


def ranks_of(run_id: str) -> List[psutil.Process]:
    return [p for p in processes_of(run_id) if "--run_mode" in p.cmdline()]


def files_of(launches: Launches, run_id: str, rank: int, host: int = 0) -> List[Path]:
    folder = launches.folder / f"work{host}/runs/{run_id}/output/checkpoint/rank_{rank}"
    return saved_files(folder, f"glm2-tiny_rank_{rank}")


def test_killed_at_step_7_it_goes_on_to_the_bit_from_the_last_step_that_all_ranks_have_whole(
    launches: Launches, trained: Callable[[Shape], str]
) -> None:
    expected = launches.lines(trained(MP2))
    start_and_kill(launches, "killed", MP2)
    # Saved behind steps 3 and 6, and later ones that the kill came after. A disk may leave the
    # newest of a rank cut off, and another rank has one that nobody else has.
    for rank in range(MP2.ranks):
        for file in files_of(launches, "killed", rank):
            if step_of(file) > (2, 1 if rank else 4):
                file.unlink()
    newest = files_of(launches, "killed", 1)[-1]
    assert step_of(newest) == (2, 1)
    newest.write_bytes(newest.read_bytes()[:-1000])
    result = launches.launch("resumed", MP2, "--resume", "killed")
    assert result.status == 0, result.stderr + launches.said("resumed", MP2.ranks)
    assert "resumes run killed in place, step 2_1" in result.stderr
    log = launches.cli.run("resumed").log("rank_1").read_text(encoding="utf-8")
    assert "is damaged and passed over" in log
    found = launches.lines("resumed")
    assert [line["step"] for line in found] == list(range(4, STEPS + 1))
    for key in ("loss", "lr", "epoch", "loss_scale"):
        assert [line[key] for line in found] == [line[key] for line in expected[3:]], key


@pytest.mark.slow
def test_on_other_hosts_and_in_another_layout_it_goes_on_within_rounding(
    launches: Launches, trained: Callable[[Shape], str]
) -> None:
    losses = launches.losses(trained(Shape()))
    wide, other = Shape(data=4, shared=True), Shape(data=2, model=2, shared=True)
    half = launches.launch("wide", wide, "--set", "runner_config.epochs=2", hosts=2)
    assert half.status == 0, half.stderr + launches.said("wide", wide.ranks)
    # Saved behind steps 9 and 10; of the latter, a rank's part is damaged.
    newest = files_of(launches, "wide", 3, host=1)[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    result = launches.launch("narrow", other, "--resume", "wide")
    assert result.status == 0, result.stderr + launches.said("narrow", other.ranks)
    assert "step 2_5 is passed over: " in result.stderr
    assert (
        "resumes run wide, step 2_4, cut from dp 4, mp 1, state divided for dp 2, mp 2, state "
        "divided" in result.stderr
    )
    whole = [*launches.losses("wide")[:9], *launches.losses("narrow")]
    assert len(whole) == STEPS
    np.testing.assert_allclose(whole, losses, rtol=1e-5)


@pytest.mark.slow
def test_a_host_that_lost_its_files_is_sent_what_others_have(
    launches: Launches, trained: Callable[[Shape], str]
) -> None:
    pair = Shape(data=2)
    half = launches.launch("pair", pair, "--set", "runner_config.epochs=2", hosts=2)
    assert half.status == 0, half.stderr + launches.said("pair", 2)
    shutil.rmtree(launches.folder / "work1/runs/pair/output")
    result = launches.launch("again", pair, "--resume", "pair", hosts=2)
    assert result.status == 0, result.stderr + launches.said("again", 2)
    assert "resumes run pair, step 2_5, sent anew" in result.stderr
    whole = [*launches.losses("pair"), *launches.losses("again")]
    np.testing.assert_allclose(whole, launches.losses(trained(Shape())), rtol=1e-5)
