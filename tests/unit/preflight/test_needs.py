"""Ports and files that a job needs of its hosts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.inventory import ServerId
from orchestrator.job import Job
from orchestrator.preflight.needs import cluster_address, needs_of
from orchestrator.worker_config import parse_config
from tests.unit.preflight.surveys import host

CONFIG = """\
load_checkpoint: /weights/glm2.ckpt
train_dataset: &train
  data_loader: {dataset_dir: /data/train.json}
  tokenizer: {vocab_file: /data/tokenizer.model}
eval_dataset:
  data_loader: {dataset_dir: /data/dev.json}
  tokenizer: {vocab_file: /data/tokenizer.model}
"""
HOSTS = (host(1), host(2))


def job(mode: str = "finetune", config: str = CONFIG, **changes: object) -> Job:
    made = Job("r", mode, parse_config(config, "job.yaml", "job.yaml"))
    return replace(made, **changes)  # type: ignore[arg-type]


def files(wanted: Job) -> list[tuple[str, str]]:
    return [(file.check.name, file.path) for file in needs_of(HOSTS, wanted).files]


VOCABULARY, WEIGHTS = ("vocabulary", "/data/tokenizer.model"), ("checkpoint", "/weights/glm2.ckpt")
TRAIN, DEV = ("dataset", "/data/train.json"), ("dataset", "/data/dev.json")


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("finetune", [TRAIN, VOCABULARY, WEIGHTS]),
        ("train", [TRAIN, VOCABULARY, WEIGHTS]),
        ("eval", [DEV, VOCABULARY, WEIGHTS]),
        ("predict", [VOCABULARY, WEIGHTS]),
        ("export", [WEIGHTS]),
    ],
)
def test_files_by_mode(mode: str, expected: list[tuple[str, str]]) -> None:
    assert files(job(mode)) == expected


def test_files_of_evaluation_while_training() -> None:
    assert files(job(config=CONFIG + "do_eval: True\n")) == [TRAIN, DEV, VOCABULARY, WEIGHTS]


def test_options_go_before_the_file() -> None:
    arguments = ("--train_dataset_dir", "/other/train.json")
    chosen = files(job(worker_args=arguments, load_checkpoint="/other.ckpt"))
    assert chosen == [("dataset", "/other/train.json"), VOCABULARY, ("checkpoint", "/other.ckpt")]
    assert files(job(worker_args=("--train_dataset_dir=/x",)))[0] == ("dataset", "/x")


def test_weights_named_by_the_model() -> None:
    named = CONFIG.replace(
        "load_checkpoint: /weights/glm2.ckpt",
        "model: {model_config: {checkpoint_name_or_path: /weights/own.ckpt}}",
    )
    (weights,) = needs_of(HOSTS, job("export", named)).files
    assert (weights.key, weights.path) == (
        *("model.model_config.checkpoint_name_or_path", "/weights/own.ckpt"),
    )


def test_what_a_run_is_resumed_from_is_not_alike() -> None:
    def alike(wanted: Job) -> list[bool]:
        return [file.alike for file in needs_of(HOSTS, wanted).files]

    assert alike(job()) == [True, True, True]
    assert alike(job(config=CONFIG + "resume_training: True\n")) == [True, True, False]
    assert alike(job(worker_args=("--resume_training", "True"))) == [True, True, False]


def test_files_that_come_with_glm2_are_not_looked_for() -> None:
    sample = CONFIG.replace("/data/", "sample:").replace("/weights/glm2.ckpt", "''")
    needs = needs_of(HOSTS, job(config=sample))
    assert (needs.files, needs.no_files) == ((), "")


def test_without_a_job_or_with_a_command_of_its_own() -> None:
    assert "--config" in needs_of(HOSTS, None).no_files
    assert needs_of(HOSTS, None).mindspore
    own = needs_of(HOSTS, job(worker_command=("true",)))
    assert (own.files, own.mindspore) == ((), False)
    assert own.no_files == "the job runs a command of its own"


def test_ports() -> None:
    ports = needs_of(HOSTS, job()).ports
    assert sorted(ports["node1"]) == [16666, *range(60000, 60032)]
    assert ports["node1"].keys() == ports["node2"].keys()
    moved = needs_of(HOSTS, job(env={"HCCL_IF_BASE_PORT": "50000"})).ports["node2"]
    assert sorted(moved) == [16666, *range(50000, 50032)]
    alone = needs_of([host(1, devices=(0,))], job()).ports
    assert alone == {"node1": {}}
    assert needs_of([host(1, target="CPU")], job()).ports == {"node1": {}}


def test_the_schedulers_port_is_that_of_the_first_rank() -> None:
    """Ranks follow the dictionary order of the servers: 192.168.0.10 comes before 192.168.0.2."""
    hosts = (host(2, target="CPU"), host(10, target="CPU"))
    ports = needs_of(hosts, job(scheduler_port=8118)).ports
    assert {name: list(wanted) for name, wanted in ports.items()} == {"node2": [], "node10": [8118]}
    assert not needs_of(HOSTS, job(scheduler_port=8118)).ports["node1"].get(8118)


def test_cluster_address() -> None:
    assert cluster_address(host(3)) == "192.168.0.3"
    named = replace(host(3), server_id=ServerId("rack7"))
    assert cluster_address(named) == "192.168.0.3"
    assert cluster_address(replace(named, address="login.example")) == "0.0.0.0"  # type: ignore[arg-type]
