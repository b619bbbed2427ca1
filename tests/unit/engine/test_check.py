"""A job's configuration is judged as a whole before any host is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.engine.check import check_job
from orchestrator.engine.payload import worker_folder
from orchestrator.errors import JobError
from orchestrator.job import Job, JobDefaults, JobOptions, build_job
from tests.unit.planning.inputs import cpu

HOSTS = cpu("10.0.0.[1-2]", "[0,2)").hosts


def job(tmp_path: Path, changes: dict[str, str], *settings: str, mode: str = "train") -> Job:
    """A job with the shipped tiny configuration, some of its text replaced."""
    configs = worker_folder() / "configs"
    text = (configs / "tiny_cpu.yaml").read_text("utf-8")
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "my.yaml").write_text(text, encoding="utf-8")
    options = JobOptions(config="my.yaml", settings=settings)
    return build_job("r", mode, options, JobDefaults(), config_dir=configs, cwd=tmp_path)


def line_of(tmp_path: Path, text: str) -> int:
    lines = (tmp_path / "my.yaml").read_text("utf-8").splitlines()
    return next(i for i, line in enumerate(lines, 1) if text in line)


def test_a_good_configuration(tmp_path: Path) -> None:
    check_job(job(tmp_path, {}), HOSTS)


def test_what_the_plan_and_the_worker_refuse_comes_at_once_and_once(tmp_path: Path) -> None:
    changes = {
        "max_target_length: 48": "max_target_length: 47",
        "beta1: 0.9": "beta_1: 0.9",
        "model_parallel: 1": "data_parallel: 3",
    }
    with pytest.raises(JobError) as caught:
        check_job(job(tmp_path, changes), HOSTS)
    said = str(caught.value)
    assert said.startswith("the configuration my.yaml has 3 problems:")
    for text, problem in (
        ("    seq_length: 97", "model.model_config.seq_length is 97"),
        ("beta_1: 0.9", "unknown key optimizer.beta_1"),
        ("data_parallel: 3", "= 3, but there are 4 ranks"),
    ):
        lines = [line for line in said.splitlines() if problem in line]
        assert len(lines) == 1
        assert f"{tmp_path / 'my.yaml'}:{line_of(tmp_path, text)}:" in lines[0]


def test_a_value_of_the_command_line_is_placed_there(tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        check_job(job(tmp_path, {}, "parallel_config.data_parallel=3"), HOSTS)
    assert str(caught.value.location) == "--set parallel_config.data_parallel"
    assert "--set parallel_config.data_parallel=4" in caught.value.hint


def test_what_only_the_worker_knows_is_placed_by_the_key_it_names(tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        check_job(job(tmp_path, {"epochs: 10": "epochs: 0"}), HOSTS)
    assert caught.value.location is not None
    assert caught.value.location.line == line_of(tmp_path, "epochs: 0")
    assert "runner_config.epochs is 0; at least 1" in str(caught.value)


def test_a_key_that_is_missing_is_placed_at_its_section(tmp_path: Path) -> None:
    with pytest.raises(JobError) as caught:
        check_job(job(tmp_path, {"    vocab_file: sample:tokenizer.model\n": ""}), HOSTS)
    assert caught.value.location is not None
    assert caught.value.location.line == line_of(tmp_path, "type: ChatGLM2Tokenizer")


def test_an_own_worker_is_judged_by_the_guide_s_keys(tmp_path: Path) -> None:
    (tmp_path / "mf.yaml").write_text(
        "model:\n  model_config: {seq_length: 100, type: LlamaConfig}\nlora: {rank: 8}\n"
        "train_dataset: {max_source_length: 64, max_target_length: 128}\n"
    )
    options = JobOptions(config="mf.yaml", worker_command="python run_mindformer.py")
    made = build_job("r", "finetune", options, JobDefaults(), config_dir=None, cwd=tmp_path)
    with pytest.raises(JobError, match=r"seq_length is 100, but .* is 193") as caught:
        check_job(made, HOSTS)
    assert str(caught.value.location) == f"{tmp_path / 'mf.yaml'}:2:30"
