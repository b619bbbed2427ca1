"""The guide's own workload, ``run_mindformer.py``, staged and launched on real sshd servers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict

import pytest

from tests.cluster.launch.conftest import Cli, without_scheduler
from tests.cluster.sshd import Loopback

YAML = """\
seed: 0
run_mode: finetune
output_dir: ./output
load_checkpoint: ""
train_dataset:
  data_loader: {type: ADGenDataLoader, dataset_dir: "staged:data/train.json"}
  tokenizer: {type: ChatGLM2Tokenizer, vocab_file: "staged:vocab"}
  batch_size: 1
model: {model_config: {seq_length: 193, checkpoint_name_or_path: glm2_6b}}
parallel_config: {data_parallel: 4, model_parallel: 1, pipeline_stage: 1}
context: {device_target: Ascend}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """What a user has at home: MindFormers, the dataset, the vocabulary and the YAML."""
    folder = tmp_path / "mine"
    (folder / "mindformers/mindformers").mkdir(parents=True)
    script = Path(__file__).with_name("standin_mindformers.py")
    shutil.copy(script, folder / "mindformers/run_mindformer.py")
    (folder / "mindformers/mindformers/__init__.py").write_text("VERSION = 'stand-in'\n")
    (folder / "AdvertiseGen").mkdir()
    (folder / "AdvertiseGen/train.json").write_text("{}\n")
    (folder / "tokenizer.model").write_text("voc")
    (folder / "run_glm2_6b.yaml").write_text(YAML)
    return folder


def job(files: Path, **more: object) -> Dict[str, object]:
    return {
        "config": str(files / "run_glm2_6b.yaml"),
        "workload": "mindformers",
        "mindformers_dir": "staged:mindformers",
        "worker_args": "--load_checkpoint staged:vocab",
        "stage": [
            {"from": str(files / "AdvertiseGen"), "to": "data"},
            {"from": str(files / "tokenizer.model"), "to": "vocab"},
            {"from": str(files / "mindformers")},
        ],
        **more,
    }


def test_the_guides_yaml_runs_as_it_is(
    cli: Cli, loopback: Callable[..., Loopback], files: Path
) -> None:
    cluster = loopback(2)
    python = without_scheduler(files)
    hosts = [replace(host, python=str(python)) for host in cluster.hosts]
    inventory = cluster.inventory(hosts=hosts, job=job(files))
    done = cli("launch", "-i", inventory, "finetune", "--yes")
    assert done.status == 0, done.stderr
    run_id = cli.run().run_id
    for rank, host in ((0, cluster.hosts[0]), (3, cluster.hosts[1])):
        folder = Path(host.workdir) / "runs" / run_id
        seen = json.loads((folder / f"ranks/rank_{rank}/seen.json").read_text())
        script, *words = seen["argv"]
        staged = Path(script).parent
        assert staged.parent.parent == Path(host.workdir) / "staged"
        vocabulary = words.pop()
        assert Path(vocabulary).read_text() == "voc"
        assert words == [
            *("--config", str(folder / "job.yaml"), "--run_mode", "finetune"),
            *("--use_parallel", "True", "--load_checkpoint"),
        ]
        assert seen["env"]["PYTHONPATH"].split(":")[0] == str(staged)
        assert (seen["env"]["RANK_ID"], seen["env"]["RANK_SIZE"]) == (str(rank), "4")
        assert seen["version"] == "stand-in"
        assert seen["config"]["output_dir"] == str(folder / "output")
        data = seen["config"]["train_dataset"]["data_loader"]["dataset_dir"]
        assert Path(data).read_text() == "{}\n"
        assert (folder / f"output/checkpoint/rank_{rank}/glm2_6b_rank_{rank}-2_2.ckpt").exists()
    lines = [json.loads(line) for line in cli.run().metrics("rank_3").read_text().splitlines()]
    steps = [line for line in lines if "step" in line]
    assert [(line["step"], line["steps"], line["loss"]) for line in steps] == [
        (1, 4, 3.5),
        (2, 4, 3.0),
        (3, 4, 2.5),
        (4, 4, 2.0),
    ]
    assert (steps[0]["epoch"], steps[3]["epoch"], steps[0]["step_time_s"]) == (1, 2, 0.412)
    assert "last step 4" in done.stderr or "4 of 4 ranks" in done.stderr
    events = [json.loads(line) for line in cli.run().journal.read_text().splitlines()]
    sent = [event for event in events if event["event"] == "staged"]
    assert {event["host"] for event in sent} == {host.name for host in cluster.hosts}


def test_preflight_misses_the_script(
    cli: Cli, loopback: Callable[..., Loopback], files: Path
) -> None:
    cluster = loopback(2)
    wrong: Dict[str, Any] = job(files, mindformers_dir="/data/mindformers", worker_args=[])
    done = cli("launch", "-i", cluster.inventory(job=wrong), "finetune", "--yes")
    assert done.status == 4
    assert "/data/mindformers/run_mindformer.py is missing" in done.stderr


def test_a_name_that_is_not_staged(
    cli: Cli, loopback: Callable[..., Loopback], files: Path
) -> None:
    inventory = loopback(1).inventory(job=job(files))
    wrong = "train_dataset.data_loader.dataset_dir=staged:dta/train.json"
    done = cli(
        *("launch", "-i", inventory, "--dry-run", "--set", wrong),
        *("--set", "parallel_config.data_parallel=2", "finetune"),
    )
    assert done.status == 3
    assert "nothing is staged as 'dta'" in done.stderr
    assert "data" in done.stderr.split("next:")[1]
