"""Evaluation and prediction on several ranks give what one rank gives, once and in order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from glm2.tokenizer import build_prompt
from tests.mindspore.glm2.worker import Workers, metrics

CHECKPOINT = "output/checkpoint/rank_0/glm2-tiny_rank_0-2_6.ckpt"
ROWS = 5


@pytest.fixture(scope="module")
def rows(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "dev.json"
    lines = (data / "all/dev.json").read_text(encoding="utf-8").splitlines()[:ROWS]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


def asked(alone: Path, rows: Path, mode: str) -> List[str]:
    """The command line of a mode."""
    words = [
        "--config", "tiny_cpu", "--run_mode", mode, "--output_dir", "output",
        "--load_checkpoint", str(alone / CHECKPOINT), "--eval_dataset_dir", str(rows),
        "--set", "eval_dataset.batch_size=2", "--set", "eval_dataset.max_target_length=12",
    ]  # fmt: skip
    if mode == "predict":
        contents = [json.loads(line)["content"] for line in rows.read_text("utf-8").splitlines()]
        words += ["--set", "model.model_config.max_decode_length=60"]
        for content in contents[:3]:
            words += ["--predict_data", build_prompt(content)]
    return words


def found(folder: Path, rank: int = 0) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """Result and report of a rank."""
    (result,) = [line["result"] for line in metrics(folder, rank) if "result" in line]
    file = folder / "output/eval/eval_rank_0.json"
    return result, json.loads(file.read_text("utf-8")) if file.exists() else {}


@pytest.mark.parametrize(("mode", "model_parallel"), [("eval", 2), ("predict", 1)])
def test_two_ranks_answer_as_one(
    workers: Workers, alone: Path, rows: Path, tmp_path: Path, mode: str, model_parallel: int
) -> None:
    words = asked(alone, rows, mode)
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    single = workers.start(one, *words, "--use_parallel", "False")
    assert single.wait(timeout=120) == 0, (one / "rank_0.log").read_text("utf-8")
    scheduler, ranks = workers.start_pair(
        two, "--set", f"parallel_config.model_parallel={model_parallel}", *words
    )
    codes = [rank.wait(timeout=120) for rank in ranks]
    assert codes == [0, 0], "".join(log.read_text("utf-8") for log in sorted(two.glob("*.log")))
    assert scheduler.wait(timeout=60) == 0
    assert found(two) == found(one)
    if mode == "eval":
        result, report = found(one)
        assert [row["row"] for row in report["rows"]] == list(range(ROWS))
        assert found(two, 1)[0] == result
    else:
        answers = [line for line in (two / "rank_0.log").read_text("utf-8").splitlines()
                   if "text_generation_text" in line]  # fmt: skip
        assert len(answers) == 3, "rank 0 prints all of them"
        assert "text_generation_text" not in (two / "rank_1.log").read_text("utf-8")
