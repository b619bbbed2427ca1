"""Fixtures of the worker's tests with MindSpore: one device, and the runs that tests share."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Callable, Dict, Iterator, List

import pytest

from glm2 import sample
from tests.mindspore.glm2.launched import Launches, Shape
from tests.mindspore.glm2.worker import TRAINING, Workers

ROWS = 48


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first rows of the sample: 6 steps of 8 rows."""
    folder = tmp_path_factory.mktemp("data")
    sample.write(folder / "all")
    lines = (folder / "all" / "train.json").read_text(encoding="utf-8").splitlines()
    (folder / "train.json").write_text("\n".join(lines[:ROWS]) + "\n", encoding="utf-8")
    shutil.copy(folder / "all" / "tokenizer.model", folder)
    return folder


@pytest.fixture(scope="session")
def workers(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Starts workers that train on ``data``; whatever still runs at the end is killed."""
    with Workers(data, tmp_path_factory.mktemp("cache")) as started:
        yield started


@pytest.fixture(scope="session")
def alone(workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished training on one rank: 2 epochs of 6 steps of 8 rows."""
    folder = tmp_path_factory.mktemp("alone")
    worker = workers.start(
        folder, *TRAINING, "--use_parallel", "False", "--set", "runner_config.batch_size=8"
    )
    assert worker.wait(timeout=120) == 0, (folder / "rank_0.log").read_text()
    return folder


@pytest.fixture(scope="session")
def pair(workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the same training on two ranks with 4 rows each."""
    folder = tmp_path_factory.mktemp("pair")
    scheduler, ranks = workers.start_pair(folder, *TRAINING, "--set", "runner_config.batch_size=4")
    codes: List[int] = [rank.wait(timeout=120) for rank in ranks]
    assert codes == [0, 0], "".join(log.read_text() for log in sorted(folder.glob("*.log")))
    assert scheduler.wait(timeout=60) == 0
    return folder


@pytest.fixture(scope="session")
def launches(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Launches:
    """Launches trainings on ``data``."""
    return Launches(tmp_path_factory.mktemp("l"), data)


@pytest.fixture(scope="session")
def trained(launches: Launches) -> Callable[[Shape], str]:
    """Runs a layout once; the id of its run."""
    done: Dict[Shape, str] = {}

    def train(shape: Shape) -> str:
        if shape not in done:
            run_id = f"{shape}-{len(done)}"
            result = launches.launch(run_id, shape)
            assert result.status == 0, result.stderr + launches.said(run_id, shape.ranks)
            done[shape] = run_id
        return done[shape]

    return train
