"""Command line + ``job:`` section -> Job."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import pytest

from orchestrator.errors import JobError, UsageError
from orchestrator.job import Job, JobDefaults, JobOptions, build_job
from orchestrator.problems import Problems
from orchestrator.yaml_positions import load


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "tiny_cpu.yaml").write_text("seed: 0\nlr: 1.0\n")
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    return folder


def section(text: str, folder: Path) -> JobDefaults:
    document = load(text, "inv.yaml", Problems())
    assert document is not None
    assert isinstance(document.value, dict)
    return JobDefaults(document.value, document.locations, str(folder))


def build(
    configs: Path,
    options: Optional[JobOptions] = None,
    text: str = "config: tiny_cpu",
    *,
    mode: str = "finetune",
    run_id: str = "r1",
) -> Job:
    return build_job(
        run_id,
        mode,
        options or JobOptions(),
        section(text, configs.parent),
        config_dir=configs,
        cwd=Path("/somewhere"),
    )


FULL = """\
config: mine.yaml
recipe: dynamic_cluster
scheduler_port: 9000
set: {a.b: 1, seed: 5}
env: {A: "1", B: 2}
worker_args: --verbose
load_checkpoint: base.ckpt
predict_data: hello
grace_s: 5
heartbeat_s: 0.5
"""


def test_defaults(configs: Path) -> None:
    job = build(configs)
    assert job.recipe == "auto"
    assert (job.grace_s, job.heartbeat_s, job.scheduler_port) == (30.0, 1.0, None)
    assert job.worker_command == ()


def test_the_section_goes_before_the_defaults(configs: Path) -> None:
    job = build(configs, text=FULL)
    assert job.config is not None
    assert job.config.values == {"seed": 5, "a": {"b": 1}}
    assert job.recipe == "dynamic_cluster"
    assert job.scheduler_port == 9000
    assert job.env == {"A": "1", "B": "2"}
    assert job.worker_args == ("--verbose",)
    assert job.load_checkpoint == str(configs.parent / "base.ckpt")
    assert job.predict_data == "hello"
    assert (job.grace_s, job.heartbeat_s) == (5.0, 0.5)


def test_the_command_line_goes_before_the_section(configs: Path) -> None:
    options = JobOptions(
        config="tiny_cpu",
        recipe="standalone",
        scheduler_port=9001,
        settings=("seed=7", "lr=1e-5", "a.b=[1, 2]"),
        env=("A=x=y", "C="),
        worker_command="python -c 'print(1)'",
        worker_args=("--more",),
        load_checkpoint="other.ckpt",
        predict_data="bye",
        grace_s=0.0,
        heartbeat_s=2.0,
    )
    job = build(configs, options, FULL)
    assert job.config is not None
    assert job.config.values == {"seed": 7, "lr": 1e-5, "a": {"b": [1, 2]}}
    assert job.recipe == "standalone"
    assert job.scheduler_port == 9001
    assert job.env == {"A": "x=y", "B": "2", "C": ""}
    assert job.worker_command == ("python", "-c", "print(1)")
    assert job.worker_args == ("--verbose", "--more")
    assert job.load_checkpoint == "/somewhere/other.ckpt"
    assert job.predict_data == "bye"
    assert (job.grace_s, job.heartbeat_s) == (0.0, 2.0)


def test_a_configuration_on_the_command_line_starts_at_the_current_folder(configs: Path) -> None:
    with pytest.raises(JobError, match=r"/somewhere/mine\.yaml"):
        build(configs, JobOptions(config="mine.yaml"))


def test_any_command_needs_no_configuration(configs: Path) -> None:
    assert build(configs, text="worker_command: [bash, run.sh]").config is None
    with pytest.raises(JobError, match="no configuration"):
        build(configs, text="recipe: auto")


@pytest.mark.parametrize(
    ("text", "place", "message", "hint"),
    [
        ("confg: x", "1:8", "unknown key 'confg'", "did you mean `config`"),
        ("config: tiny_cpu\nrecipe: hccl", "2:9", "not one of auto", ""),
        ("config: tiny_cpu\nscheduler_port: 0", "2:17", "a port", ""),
        ("config: tiny_cpu\nscheduler_port: yes", "2:17", "a port", ""),
        ("config: tiny_cpu\ngrace_s: soon", "2:10", "time in seconds", ""),
        ("config: 3", "1:9", "must be text", "quote"),
        ("config: tiny_cpu\nenv: {A: yes}", "2:10", "`env.A` must be text", "quote"),
        ("config: tiny_cpu\nenv: {1A: x}", "2:11", "cannot name", ""),
        ("config: tiny_cpu\nset: [a]", "2:6", "must be a mapping", ""),
        ('worker_command: "bash \'"', "1:17", "quotation", "balance"),
        ("worker_command: [1]", "1:17", "list of texts", "quote"),
    ],
)
def test_mistakes_in_the_section_are_placed(
    configs: Path, text: str, place: str, message: str, hint: str
) -> None:
    with pytest.raises(JobError) as caught:
        build(configs, text=text)
    assert f"inv.yaml:{place}: " in str(caught.value)
    assert message in str(caught.value)
    assert hint in caught.value.hint


def test_all_mistakes_of_the_section_at_once(configs: Path) -> None:
    with pytest.raises(JobError, match="has 2 problems"):
        build(configs, text="grace_s: x\nrecipe: y")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (JobOptions(settings=("seed",)), "--set 'seed' has no `=`"),
        (JobOptions(settings=("=1",)), "has no `=`"),
        (JobOptions(settings=("a=[1",)), "not YAML"),
        (JobOptions(env=("A",)), "--env 'A' has no `=`"),
        (JobOptions(env=("1A=x",)), "cannot name"),
        (JobOptions(worker_command="'"), "--worker-command"),
        (JobOptions(worker_command=" "), "empty"),
        (JobOptions(recipe="x"), "not one of"),
        (JobOptions(scheduler_port=70000), "between 1 and 65535"),
        (JobOptions(grace_s=-1.0), "out of range"),
        (JobOptions(heartbeat_s=0.0), "out of range"),
        (JobOptions(env=("A=x\0",)), "NUL"),
        (JobOptions(worker_args=("\udcff",)), "not UTF-8"),
    ],
)
def test_malformed_options(configs: Path, options: JobOptions, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(configs, options)
    assert message in str(caught.value)


def test_set_without_a_configuration(configs: Path) -> None:
    with pytest.raises(UsageError, match="--set needs a configuration"):
        build(configs, JobOptions(worker_command="true", settings=("a=1",)), "recipe: auto")


@pytest.mark.parametrize(
    "run_id", ["", "../x", "a/b", "-x", ".x", "latest", "a b", "x" * 65, "a\n"]
)
def test_run_ids_that_could_not_name_a_folder(configs: Path, run_id: str) -> None:
    with pytest.raises(UsageError, match="run id"):
        build(configs, run_id=run_id)


def test_an_unknown_mode(configs: Path) -> None:
    with pytest.raises(UsageError, match="not one of train"):
        build(configs, mode="fly")


def test_how_a_run_is_watched(configs: Path) -> None:
    defaults = section("{watch: {step_s: 900, on_hang: tell}, config: tiny_cpu}", configs.parent)
    options = JobOptions(watch=("step_s=30", "on_divergence=stop"))
    job = build_job("r", "train", options, defaults, config_dir=configs, cwd=configs)
    assert job.watch == {"step_s": 30.0, "on_hang": "tell", "on_divergence": "stop"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("on_hang=ignore", "`on_hang` is 'ignore', and must be stop or tell"),
        ("step_s=0", "must be a time of 1 second or more"),
        ("step_s=soon", "must be a time of 1 second or more"),
        ("step=9", "unknown key 'step' in `watch`"),
        ("step_s", "has no `=`"),
    ],
)
def test_wrong_ways_of_watching(configs: Path, option: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        build_job(
            *("r", "train", JobOptions(config="tiny_cpu", watch=(option,)), JobDefaults()),
            config_dir=configs,
            cwd=configs,
        )
    assert message in str(caught.value)
    defaults = section("{watch: {stepp_s: 1}, config: tiny_cpu}", configs.parent)
    with pytest.raises(JobError, match="unknown key"):
        build_job("r", "train", JobOptions(), defaults, config_dir=configs, cwd=configs)
