"""``eval`` and ``predict`` through the real command line, from a checkpoint of training."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glm2.evaluate import METRICS, score
from glm2.tokenizer import build_prompt
from tests.mindspore.glm2.worker import Workers, metrics, wait_until

CHECKPOINT = "output/checkpoint/rank_0/glm2-tiny_rank_0-2_6.ckpt"
QUESTION = "类型#裙*颜色#黑色"


def test_eval_scores_every_row_and_says_the_means(
    workers: Workers, alone: Path, data: Path, tmp_path: Path
) -> None:
    rows = (data / "all" / "dev.json").read_text(encoding="utf-8").splitlines()[:5]
    (tmp_path / "dev.json").write_text("\n".join(rows) + "\n", encoding="utf-8")
    worker = workers.start(
        tmp_path, "--config", "tiny_cpu", "--run_mode", "eval", "--output_dir", "output",
        "--load_checkpoint", str(alone / CHECKPOINT), "--eval_dataset_dir", ".",
        "--set", "eval_dataset.batch_size=2",
    )  # fmt: skip
    assert worker.wait(timeout=120) == 0, (tmp_path / "rank_0.log").read_text()
    report = json.loads((tmp_path / "output/eval/eval_rank_0.json").read_text(encoding="utf-8"))
    assert [row["row"] for row in report["rows"]] == list(range(5))
    for row, line in zip(report["rows"], rows):
        assert {"content": row["content"], "summary": row["summary"]} == json.loads(line)
        assert row["scores"] == score(row["prediction"], row["summary"])
    result = report["result"]
    assert result["rows"] == 5
    for name in METRICS:
        mean = sum(row["scores"][name] for row in report["rows"]) / 5
        assert result[name] == pytest.approx(mean, abs=1e-3)
    assert [line["result"] for line in metrics(tmp_path) if "result" in line] == [result]


@pytest.mark.slow
def test_fine_tuning_on_the_sample_makes_answers_far_better(data: Path, tmp_path: Path) -> None:
    """Of rows that were not trained on: ROUGE-1 was 85 against 10 of random weights when this was
    written."""

    def work(mode: str, output: str, *more: str) -> None:
        worker = workers.start(
            tmp_path, "--config", "tiny_cpu", "--run_mode", mode, "--use_parallel", "False",
            "--output_dir", output, *more,
        )  # fmt: skip
        assert worker.wait(timeout=240) == 0, (tmp_path / "rank_0.log").read_text()

    with Workers(data / "all", tmp_path / "cache") as workers:
        work("eval", "random")
        work("finetune", "trained", "--set", "runner_config.epochs=5")
        weights = tmp_path / "trained/checkpoint/rank_0/glm2-tiny_rank_0-5_60.ckpt"
        work("eval", "trained", "--load_checkpoint", str(weights))
    before, after = (
        json.loads((tmp_path / name / "eval/eval_rank_0.json").read_text("utf-8"))["result"]
        for name in ("random", "trained")
    )
    assert before["rows"] == after["rows"] == 40
    for metric in METRICS:
        assert after[metric] > before[metric] + 30, (before, after)


def test_predict_answers_every_question_in_order(
    workers: Workers, alone: Path, tmp_path: Path
) -> None:
    prompts = [build_prompt(QUESTION), build_prompt("类型#裤")]
    # As in a shell: a backslash and n for a line break.
    (tmp_path / "prompts.txt").write_text(
        prompts[1].replace("\n", "\\n") + "\n\n", encoding="utf-8"
    )
    worker = workers.start(
        tmp_path, "--config", "tiny_cpu", "--run_mode", "predict", "--output_dir", "output",
        "--load_checkpoint", str(alone / CHECKPOINT),
        "--predict_data", prompts[0].replace("\n", "\\n"), "--predict_data", "prompts.txt",
    )  # fmt: skip
    log = tmp_path / "rank_0.log"
    assert worker.wait(timeout=120) == 0, log.read_text()
    (result,) = [line["result"] for line in metrics(tmp_path) if "result" in line]
    assert len(result["predictions"]) == 2
    for prompt, answer in zip(prompts, result["predictions"]):
        assert answer.startswith(prompt)
        assert len(answer) > len(prompt)
    printed = [line for line in log.read_text().splitlines() if line.startswith("[{")]
    assert [ast.literal_eval(line) for line in printed] == [
        [{"text_generation_text": [answer]}] for answer in result["predictions"]
    ]


def test_weights_of_another_shape_exit_10_and_are_named(
    workers: Workers, alone: Path, tmp_path: Path
) -> None:
    worker = workers.start(
        tmp_path, "--config", "tiny_cpu", "--output_dir", "output",
        "--load_checkpoint", str(alone / CHECKPOINT),
        "--set", "model.model_config.ffn_hidden_size=64",
    )  # fmt: skip
    assert worker.wait(timeout=120) == 10
    said = (tmp_path / "rank_0.log").read_text()
    assert "dense_h_to_4h.weight is [688, 128], the model needs [128, 128]" in said


class TestScore:
    def test_the_same_text_has_all_points(self) -> None:
        text = "这款裙子，经典的黑色沉稳大气。"
        assert score(text, text) == pytest.approx(dict.fromkeys(METRICS, 100.0), abs=1e-3)

    def test_nothing_in_common_has_none(self) -> None:
        found = score("蓝天", "黑色裙子")
        assert [found[name] for name in METRICS[:3]] == [0.0, 0.0, 0.0]
        assert found["bleu-4"] < 1.0

    @pytest.mark.parametrize(("answer", "summary"), [("", "黑色"), (" \n", "黑色"), ("黑色", "")])
    def test_a_blank_text_has_none(self, answer: str, summary: str) -> None:
        assert score(answer, summary) == dict.fromkeys(METRICS, 0.0)

    def test_rouge_counts_words(self) -> None:
        # jieba: 黑色 / 裙子 against 红色 / 裙子; one of two words, no pair of words.
        found = score("黑色裙子", "红色裙子")
        assert [found[name] for name in METRICS[:3]] == pytest.approx([50.0, 0.0, 50.0], abs=0.01)


def test_a_killed_eval_goes_on_where_it_was(
    workers: Workers, alone: Path, data: Path, tmp_path: Path
) -> None:
    """Killed for real after some rows; the second run asks the rest, and no more."""
    rows = (data / "all" / "dev.json").read_text(encoding="utf-8").splitlines()[:12]
    (tmp_path / "dev.json").write_text("\n".join(rows) + "\n", encoding="utf-8")
    words = (
        "--config", "tiny_cpu", "--run_mode", "eval", "--output_dir", "output",
        "--load_checkpoint", str(alone / CHECKPOINT), "--eval_dataset_dir", ".",
        "--set", "eval_dataset.batch_size=1",
    )  # fmt: skip
    first = workers.start(tmp_path, *words)
    kept = tmp_path / "output/eval/answers_rank_0.jsonl"

    def answered() -> int:
        return kept.read_bytes().count(b"\n") - 1 if kept.is_file() else 0

    wait_until(lambda: answered() >= 3, "three answers")
    first.kill()
    first.wait(timeout=30)
    before = answered()
    assert before < 12, "killed in the middle"
    second = workers.start(tmp_path, *words, name="second")
    assert second.wait(timeout=120) == 0, (tmp_path / "second.log").read_text()
    said = (tmp_path / "second.log").read_text()
    assert f"eval goes on: {before} of 12 rows were answered before" in said
    report = json.loads((tmp_path / "output/eval/eval_rank_0.json").read_text(encoding="utf-8"))
    assert [row["row"] for row in report["rows"]] == list(range(12))
    assert not kept.exists()


def test_a_reader_that_has_enough(workers: Workers, alone: Path, tmp_path: Path) -> None:
    """``predict | true`` ends as a shell shows SIGPIPE, without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [
            sys.executable, "-m", "glm2", "--config", "tiny_cpu", "--run_mode", "predict",
            "--load_checkpoint", str(alone / CHECKPOINT), "--predict_data", QUESTION,
        ],
        cwd=tmp_path,
        env=workers.environ,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
