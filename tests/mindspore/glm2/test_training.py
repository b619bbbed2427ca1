"""Training through the real command line: one rank, two ranks, and an end on request."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import List, Tuple

import mindspore as ms
import numpy as np
import pytest

from glm2.__main__ import main
from glm2.checkpoint import load_weights, read_parameters
from glm2.model import Glm2
from glm2.settings import find_config, load_settings
from tests.mindspore.glm2.worker import (
    TRAINING,
    Process,
    Workers,
    metrics,
    steps,
    wait_until,
)

STEPS = 12
KEYS = [
    "schema", "step", "steps", "epoch", "loss", "lr", "tokens_per_s_per_p", "step_time_s",
    "communication_share", "loss_scale", "overflow", "wall",
]  # fmt: skip


def checkpoints(folder: Path, rank: int = 0) -> list[str]:
    """The files of a rank; ``meta.json`` names the last of them."""
    place = folder / "output/checkpoint" / f"rank_{rank}"
    meta = json.loads((place / "meta.json").read_text(encoding="utf-8"))
    names = sorted(file.name for file in place.iterdir() if file.name != "meta.json")
    assert meta["last_ckpt_file"] == names[-1]
    return names


class TestAlone:
    def test_the_loss_falls(self, alone: Path) -> None:
        losses = [line["loss"] for line in steps(alone)]
        # 1024 tokens that are about equally likely.
        assert losses[0] == pytest.approx(np.log(1024), abs=0.3)
        assert losses[-1] < losses[0] - 1.0

    def test_metrics_keep_the_contract(self, alone: Path) -> None:
        lines = steps(alone)
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
        for line in lines:
            assert list(line) == KEYS
            assert (line["schema"], line["steps"]) == (1, STEPS)
            assert line["epoch"] == (line["step"] - 1) // 6 + 1
            assert (line["loss_scale"], line["overflow"]) == (1.0, False)
            # 8 rows of 97 tokens a step; both numbers are rounded.
            speed = 8 * 97 / line["step_time_s"]
            assert line["tokens_per_s_per_p"] == pytest.approx(speed, rel=0.01)
        phases = [line["phase"] for line in metrics(alone) if "phase" in line]
        saved = ["checkpoint", "train"] * 3
        assert phases == ["startup", "compile", "train", *saved, "done"]

    def test_checkpoints_are_named_by_epoch_and_step_and_the_newest_are_kept(
        self, alone: Path
    ) -> None:
        # Saved behind steps 5, 10 and 12; keep_checkpoint_max is 2.
        assert checkpoints(alone) == ["glm2-tiny_rank_0-2_4.ckpt", "glm2-tiny_rank_0-2_6.ckpt"]
        saved = read_parameters(alone / "output/checkpoint/rank_0/glm2-tiny_rank_0-2_6.ckpt")
        assert saved["step_num"].asnumpy() == saved["global_step"].asnumpy() == STEPS
        assert saved["epoch_num"].asnumpy() == 2
        assert saved["data_rows"].asnumpy() == 96

    def test_the_strategy_file_is_read_by_mindspore(self, alone: Path) -> None:
        folder = alone / "output" / "strategy"
        assert [file.name for file in folder.iterdir()] == ["ckpt_strategy_rank_0.ckpt"]
        strategy = ms.build_searched_strategy(str(folder / "ckpt_strategy_rank_0.ckpt"))
        saved = read_parameters(alone / "output/checkpoint/rank_0/glm2-tiny_rank_0-2_6.ckpt")
        assert set(strategy) == {name for name in saved if name.count(".")}

    def test_the_checkpoint_fits_the_configuration(self, alone: Path) -> None:
        model = Glm2(load_settings(find_config("tiny_cpu")).model)
        load_weights(model, alone / "output/checkpoint/rank_0/glm2-tiny_rank_0-2_6.ckpt")


class TestTwoRanks:
    def test_they_learn_what_one_rank_learns_from_the_same_rows(
        self, alone: Path, pair: Path
    ) -> None:
        expected = [line["loss"] for line in steps(alone)]
        for rank in range(2):
            found = [line["loss"] for line in steps(pair, rank)]
            assert len(found) == STEPS
            np.testing.assert_allclose(found[:6], expected[:6], rtol=1e-4)

    def test_each_writes_its_own_files_and_the_weights_are_the_same(self, pair: Path) -> None:
        saved = []
        for rank in range(2):
            names = [f"glm2-tiny_rank_{rank}-2_{step}.ckpt" for step in (4, 6)]
            assert checkpoints(pair, rank) == names
            saved.append(read_parameters(pair / f"output/checkpoint/rank_{rank}" / names[1]))
        assert saved[0].keys() == saved[1].keys()
        for name, value in saved[0].items():
            np.testing.assert_array_equal(value.asnumpy(), saved[1][name].asnumpy(), name)
        strategies = sorted(file.name for file in (pair / "output/strategy").iterdir())
        assert strategies == [f"ckpt_strategy_rank_{rank}.ckpt" for rank in range(2)]


def start_endless_pair(workers: Workers, folder: Path, *more: str) -> Tuple[Process, List[Process]]:
    """A scheduler and two ranks that have done three steps of many."""
    scheduler, ranks = workers.start_pair(
        folder, *TRAINING, *more, "--set", "runner_config.epochs=1000",
        "--set", "callbacks.1.save_checkpoint_steps=0",
        "--set", "model.model_config.num_layers=1",
    )  # fmt: skip
    file = folder / "output/log/rank_1/metrics.jsonl"
    wait_until(
        lambda: ranks[0].poll() is not None or (file.is_file() and len(steps(folder, 1)) >= 3),
        "the third step",
    )
    return scheduler, ranks


def test_a_stop_of_one_rank_ends_all_in_the_same_step_with_a_checkpoint(
    workers: Workers, tmp_path: Path
) -> None:
    # Float16 with a loss scale that is too large at first: they share the layers, so that each
    # sees other gradients overflow.
    scheduler, ranks = start_endless_pair(
        workers, tmp_path, "--set", "model.model_config.compute_dtype=float16",
        "--set", "parallel_config.model_parallel=2",
        "--set", "runner_wrapper.scale_sense.loss_scale_value=134217728",
        "--set", "runner_wrapper.scale_sense.scale_factor=4096",
    )  # fmt: skip
    ranks[1].send_signal(signal.SIGTERM)
    codes = [rank.wait(timeout=60) for rank in ranks]
    assert codes == [143, 143], (tmp_path / "rank_1.log").read_text()
    assert scheduler.wait(timeout=60) == 0
    done = [len(steps(tmp_path, rank)) for rank in range(2)]
    assert 3 <= done[0] == done[1] < 6000
    scales = [[(x["overflow"], x["loss_scale"]) for x in steps(tmp_path, rank)] for rank in (0, 1)]
    assert scales[0] == scales[1], "what overflows at one is left out by both"
    assert scales[0][:3] == [(True, 2.0**27), (False, 2.0**15), (False, 2.0**15)]
    for rank in range(2):
        (name,) = checkpoints(tmp_path, rank)
        saved = read_parameters(tmp_path / f"output/checkpoint/rank_{rank}" / name)
        assert saved["step_num"].asnumpy() == done[0]
        assert "stopped on request" in (tmp_path / f"rank_{rank}.log").read_text()
        assert metrics(tmp_path, rank)[-1]["phase"] == "done"


def test_a_rank_that_lost_another_fails_and_does_not_look_stopped(
    workers: Workers, tmp_path: Path
) -> None:
    scheduler, ranks = start_endless_pair(workers, tmp_path)
    ranks[1].kill()
    code = ranks[0].wait(timeout=90)
    scheduler.kill()
    said = (tmp_path / "rank_0.log").read_text()
    assert code == 1, said
    assert "error: another rank is gone: " in said
    assert not (tmp_path / "output/checkpoint").exists(), "nothing is saved of a broken step"


def test_an_output_folder_that_cannot_be_made_is_named(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GLM2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GLOG_v", "3")
    for name in ("GLM2_OUTPUT_DIR", "GLM2_RANK_DIR", "RANK_ID", "RANK_SIZE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "file"
    file.write_text("")
    words = ["--config", "tiny_cpu", "--train_dataset_dir", str(data), "--output_dir", f"{file}/x"]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {file}/x")
    assert "→ see that the folder exists" in said
