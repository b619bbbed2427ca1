"""Exact resume: which checkpoint is chosen, and that training goes on as if never interrupted."""

from __future__ import annotations

import shutil
import signal
import threading
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

from glm2.checkpoint import saved_files
from glm2.errors import CheckpointError, ConfigError, Glm2Error
from glm2.resume import Source, Step, choose, set_aside, source_of
from glm2.settings import Settings, find_config, load_settings
from tests.mindspore.glm2.worker import TRAINING, Process, Workers, metrics, steps, wait_until


def write(folder: Path, rank: int, *names: str, damaged: bool = False) -> None:
    """Files with a checksum such as those of training, of the rank, under ``{epoch}_{step}``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        content = f"rank {rank}, step {name}".encode()
        trailer = b"crc_num" + zlib.crc32(content).to_bytes(10, "big")
        content = b"X" + content[1:] if damaged else content
        (folder / f"glm2_rank_{rank}-{name}.ckpt").write_bytes(content + trailer)


class Ranks:
    """Several ranks that choose at the same time, each in a thread."""

    def __init__(self, root: Path, ranks: int) -> None:
        self.sources = [Source(root / f"rank_{rank}", f"glm2_rank_{rank}") for rank in range(ranks)]
        self.barrier = threading.Barrier(ranks)
        self.told: Dict[int, Step] = {}

    def gather(self, rank: int) -> Callable[[Step], List[Step]]:
        def gather(step: Step) -> List[Step]:
            self.told[rank] = step
            self.barrier.wait(timeout=30)
            found = [self.told[i] for i in range(len(self.sources))]
            self.barrier.wait(timeout=30)
            return found

        return gather

    def choose(self) -> List[Any]:
        """What each rank chose: the name of a file, or the error."""
        found: List[Any] = [None] * len(self.sources)

        def work(rank: int) -> None:
            try:
                found[rank] = choose(self.sources[rank], self.gather(rank)).name
            except Glm2Error as error:
                found[rank] = error

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(self.sources))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        return found


class TestChoose:
    def test_the_newest_by_number_that_all_have(self, tmp_path: Path) -> None:
        write(tmp_path / "rank_0", 0, "1_4", "1_10", "2_2")
        write(tmp_path / "rank_1", 1, "1_4", "1_10", "2_2")
        assert Ranks(tmp_path, 2).choose() == ["glm2_rank_0-2_2.ckpt", "glm2_rank_1-2_2.ckpt"]

    def test_a_step_that_one_rank_lacks_is_passed_over_and_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(tmp_path / "rank_0", 0, "1_4", "1_8", "1_10")
        write(tmp_path / "rank_1", 1, "1_4", "1_6", "1_8")
        write(tmp_path / "rank_2", 2, "1_4", "1_6", "1_10")
        assert Ranks(tmp_path, 3).choose() == [f"glm2_rank_{rank}-1_4.ckpt" for rank in range(3)]
        assert "step 1_10 is not on all ranks: rank 1 goes back to 1_8" in capsys.readouterr().out

    def test_a_step_that_is_damaged_on_one_rank_is_passed_over_and_named(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write(tmp_path / "rank_0", 0, "1_4", "1_8")
        write(tmp_path / "rank_1", 1, "1_4")
        write(tmp_path / "rank_1", 1, "1_8", damaged=True)
        assert Ranks(tmp_path, 2).choose() == ["glm2_rank_0-1_4.ckpt", "glm2_rank_1-1_4.ckpt"]
        said = capsys.readouterr().err
        assert "glm2_rank_1-1_8.ckpt is damaged and passed over: its checksum differs" in said

    def test_without_a_common_step_all_ranks_fail_alike(self, tmp_path: Path) -> None:
        write(tmp_path / "rank_0", 0, "1_4")
        write(tmp_path / "rank_1", 1, "1_8")
        for error in Ranks(tmp_path, 2).choose():
            assert isinstance(error, CheckpointError)
            assert error.message.startswith("no step is whole on all ranks: rank ")

    def test_a_wanted_step_is_taken_or_refused_and_never_another(self, tmp_path: Path) -> None:
        write(tmp_path / "rank_0", 0, "1_4", "1_8")
        source = Source(tmp_path / "rank_0", "glm2_rank_0", (1, 4))
        assert choose(source, lambda step: [step]).name == "glm2_rank_0-1_4.ckpt"
        with pytest.raises(CheckpointError, match="step 1_4 is missing or damaged on rank 1"):
            choose(source, lambda step: [step, (0, 0)])
        with pytest.raises(CheckpointError, match="step 1_5 is missing or damaged on rank 0"):
            choose(Source(tmp_path / "rank_0", "glm2_rank_0", (1, 5)), lambda step: [step])

    def test_what_lies_behind_the_chosen_step_is_set_aside(self, tmp_path: Path) -> None:
        write(tmp_path, 0, "1_4", "1_8", "2_1")
        set_aside(tmp_path, "glm2_rank_0", (1, 4))
        assert [file.name for file in saved_files(tmp_path, "glm2_rank_0")] == [
            "glm2_rank_0-1_4.ckpt"
        ]
        assert (tmp_path / "glm2_rank_0-2_1.ckpt.left").is_file(), "nothing is lost"


class TestSource:
    def settings(self, tmp_path: Path, checkpoint: str, resume: str = "True") -> Settings:
        return load_settings(
            find_config("tiny_cpu"),
            [
                f"load_checkpoint={checkpoint}", f"resume_training={resume}",
                f"output_dir={tmp_path}", "callbacks.1.prefix=glm2",
            ],
        )  # fmt: skip

    @pytest.mark.parametrize("place", ["", "out", "out/checkpoint", "out/checkpoint/rank_1"])
    def test_the_folder_of_a_run_or_one_in_it_is_meant(self, tmp_path: Path, place: str) -> None:
        folder = tmp_path / "out" / "checkpoint" / "rank_1"
        write(folder, 1, "1_4")
        given = str(tmp_path / place) if place else "null"
        settings = self.settings(tmp_path if place else tmp_path / "out", given)
        assert source_of(settings, 1) == Source(folder, "glm2_rank_1")

    def test_a_file_means_its_step_on_every_rank(self, tmp_path: Path) -> None:
        for rank in range(2):
            write(tmp_path / f"rank_{rank}", rank, "1_4", "1_8")
        file = str(tmp_path / "rank_0" / "glm2_rank_0-1_4.ckpt")
        for rank in range(2):
            found = source_of(self.settings(tmp_path, file), rank)
            assert found == Source(tmp_path / f"rank_{rank}", f"glm2_rank_{rank}", (1, 4))
        named = self.settings(tmp_path, str(tmp_path), "glm2_rank_0-1_8.ckpt")
        assert source_of(named, 1).wanted == (1, 8)

    def test_no_checkpoint_is_an_error_that_says_where_it_looked(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="nothing to resume from") as caught:
            source_of(self.settings(tmp_path, str(tmp_path / "absent")), 0)
        assert "absent" in caught.value.message
        (tmp_path / "weights.ckpt").write_bytes(b"")
        with pytest.raises(ConfigError, match="is not named as a checkpoint of training"):
            source_of(self.settings(tmp_path, str(tmp_path / "weights.ckpt")), 0)


def start(workers: Workers, folder: Path, *words: str) -> Process:
    """The training of the fixture ``alone``, with a checkpoint behind every third step."""
    return workers.start(
        folder, *TRAINING, "--use_parallel", "False", "--set", "runner_config.batch_size=8",
        "--set", "callbacks.1.save_checkpoint_steps=3", *words,
    )  # fmt: skip


def begin(workers: Workers, folder: Path, come: Callable[[], bool], what: str) -> Process:
    """A training that would go on for long, when it has ``come`` somewhere. It keeps all its
    checkpoints: a step takes some 20 ms, and who looks may be late by many."""
    worker = start(
        workers, folder, "--set", "runner_config.epochs=200",
        "--set", "callbacks.1.keep_checkpoint_max=1000",
    )  # fmt: skip
    file = folder / "output/log/rank_0/metrics.jsonl"
    wait_until(lambda: worker.poll() is not None or (file.is_file() and come()), what)
    return worker


def check_same_course(folder: Path, alone: Path, first: int) -> None:
    """The last lines of a resumed run, from step ``first`` on, are those of an unbroken one."""
    ours = {line["step"]: line for line in steps(folder)[-(12 - first + 1) :]}
    theirs = {line["step"]: line for line in steps(alone)}
    assert sorted(ours) == list(range(first, 13))
    for number, line in ours.items():
        for key in ("loss", "lr", "epoch", "loss_scale", "steps"):
            assert line[key] == theirs[number][key], (number, key)


def test_a_run_that_was_killed_goes_on_to_the_bit_from_its_last_whole_step(
    workers: Workers, alone: Path, data: Path, tmp_path: Path
) -> None:
    worker = begin(workers, tmp_path, lambda: len(steps(tmp_path)) >= 7, "step 7")
    worker.kill()
    worker.wait(timeout=30)
    place = tmp_path / "output" / "checkpoint" / "rank_0"
    files = saved_files(place, "glm2-tiny_rank_0")
    # The newest is cut off, as a disk may leave it; those of steps the unbroken run has not are
    # left out as well.
    newest = next(file for file in files if file.name.endswith("-1_6.ckpt"))
    for file in files[files.index(newest) + 1 :]:
        file.unlink()
    newest.write_bytes(newest.read_bytes()[:-1000])
    (tmp_path / "dev.json").write_text(
        (data / "all" / "dev.json").read_text(encoding="utf-8").splitlines()[0], encoding="utf-8"
    )
    resumed = start(
        workers, tmp_path, "--resume_training", "True", "--load_checkpoint", "output/checkpoint",
        "--eval_dataset_dir", ".", "--set", "do_eval=True", "--set", "eval_step_interval=8",
        "--set", "model.model_config.max_decode_length=60",
    )  # fmt: skip
    log = tmp_path / "rank_0.log"
    assert resumed.wait(timeout=120) == 0, log.read_text()
    said = log.read_text()
    assert "glm2-tiny_rank_0-1_6.ckpt is damaged and passed over: it is cut off" in said
    assert "3 of 12 steps are done" in said
    check_same_course(tmp_path, alone, first=4)
    # Evaluated behind step 8 and at the end, without a mark on the course.
    results = [line["result"] for line in metrics(tmp_path) if "result" in line]
    assert [(result["step"], result["epoch"]) for result in results] == [(8, 2), (12, 2)]
    # At the end it is saved before that.
    kinds = [line.get("phase", "result") for line in metrics(tmp_path) if "step" not in line]
    assert kinds[-6:] == ["checkpoint", "train", "eval", "result", "train", "done"]
    for number in (8, 12):
        assert (tmp_path / f"output/eval/step_{number}/eval_rank_0.json").is_file()
    assert [file.name for file in saved_files(place, "glm2-tiny_rank_0")] == [
        "glm2-tiny_rank_0-2_3.ckpt",
        "glm2-tiny_rank_0-2_6.ckpt",
    ]


def test_a_run_that_was_asked_to_stop_saves_and_goes_on_to_the_bit(
    workers: Workers, alone: Path, tmp_path: Path
) -> None:
    # It is asked while it compiles, which takes seconds, and stops behind its first step; asked
    # later, it could have come further than the unbroken run before the signal was sent.
    def compiling() -> bool:
        return any(line.get("phase") == "compile" for line in metrics(tmp_path))

    worker = begin(workers, tmp_path, compiling, "compiling")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == 143, (tmp_path / "rank_0.log").read_text()
    done = len(steps(tmp_path))
    assert 1 <= done < 12, "the machine is too slow for this test"
    assert metrics(tmp_path)[-1]["phase"] == "done"
    resumed = start(workers, tmp_path, "--resume_training", "True")
    assert resumed.wait(timeout=120) == 0, (tmp_path / "rank_0.log").read_text()
    check_same_course(tmp_path, alone, first=done + 1)


def test_a_new_training_in_the_folder_of_a_longer_one_keeps_its_own_checkpoints(
    workers: Workers, alone: Path, tmp_path: Path
) -> None:
    place = tmp_path / "output" / "checkpoint" / "rank_0"
    shutil.copytree(alone / "output" / "checkpoint" / "rank_0", place)
    longer = [file.name for file in saved_files(place, "glm2-tiny_rank_0")]
    assert longer[-1] == "glm2-tiny_rank_0-2_6.ckpt"
    log = tmp_path / "rank_0.log"
    worker = start(workers, tmp_path, "--set", "runner_config.epochs=1")
    assert worker.wait(timeout=120) == 0, log.read_text()
    own = ["glm2-tiny_rank_0-1_3.ckpt", "glm2-tiny_rank_0-1_6.ckpt"]
    assert [file.name for file in saved_files(place, "glm2-tiny_rank_0")] == own
    assert all((place / f"{name}.left").is_file() for name in longer), "nothing is lost"
    assert f"renamed to {longer[-1]}.left" in log.read_text()
    # And a resume that finds all steps done ends well, also into a folder without checkpoints.
    resumed = start(
        workers, tmp_path, "--set", "runner_config.epochs=1", "--resume_training", "True",
        "--load_checkpoint", "output", "--output_dir", "other",
    )  # fmt: skip
    assert resumed.wait(timeout=120) == 0, log.read_text()
    assert f"{own[-1]}: 6 of 6 steps are done" in log.read_text()


def test_adapters_with_dropout_go_on_to_the_bit(workers: Workers, tmp_path: Path) -> None:
    adapters = [
        f"model.model_config.pet_config.{key}={value}"
        for key, value in {
            "pet_type": "lora", "lora_rank": 2, "lora_alpha": 4, "lora_dropout": 0.5,
            "target_modules": "'.*query_key_value*'",
        }.items()
    ]  # fmt: skip
    words = [word for setting in adapters for word in ("--set", setting)]
    unbroken, folder = tmp_path / "unbroken", tmp_path / "broken"
    for place in (unbroken, folder):
        place.mkdir()
        worker = start(workers, place, *words, "--set", "callbacks.1.keep_checkpoint_max=9")
        assert worker.wait(timeout=120) == 0, (place / "rank_0.log").read_text()
        if place == unbroken:
            saved = "unbroken/output/checkpoint/rank_0/glm2-tiny_rank_0-1_3.ckpt"
            words += ["--resume_training", "True", "--load_checkpoint", str(tmp_path / saved)]
    assert steps(folder)[0]["step"] == 4
    check_same_course(folder, unbroken, first=4)
