"""What a job needs of its hosts: ports and files."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from orchestrator.inventory import Host
from orchestrator.job import Job
from orchestrator.planning.environment import choose_recipe
from orchestrator.planning.ranktable import rank_order
from orchestrator.preflight.catalogue import (
    CHECKPOINT,
    DATASET,
    HCCL_PORTS,
    MINDFORMERS,
    NPU_PORT,
    SCHEDULER_PORT,
    VOCABULARY,
)
from orchestrator.preflight.findings import ASCEND, Check
from orchestrator.stage_options import PREFIX

HCCL_BASE_PORT = 60000
HCCL_PORT_COUNT = 32
NPU_PORT_NUMBER = 16666
_SAMPLE = "sample:"
"""Prefix of files that come with glm2 itself."""

_DATASETS = ("train_dataset", "eval_dataset")


@dataclass(frozen=True)
class NeededFile:
    """A path that the job reads on every host."""

    check: Check
    key: str
    """Where it is written: a key of the worker's YAML, or an option."""
    path: str
    alike: bool = True
    """All hosts have the same content. False for shards, of which each host has its own ranks'."""

    @property
    def absolute(self) -> bool:
        return self.path.startswith("/")


@dataclass(frozen=True)
class Needs:
    mindspore: bool
    files: Tuple[NeededFile, ...]
    ports: Mapping[str, Mapping[int, Check]]
    """By host: the ports that must be free, and the check that they belong to."""
    no_files: str = ""
    """Why no files are known."""


def needs_of(hosts: Sequence[Host], job: Optional[Job]) -> Needs:
    """What ``job`` needs; without one, what any job would. Raises PlanError for a recipe that
    cannot start these ranks."""
    files, why = _files(job)
    return Needs(
        mindspore=job is None or not job.worker_command,
        files=files,
        ports=_ports(hosts, job),
        no_files=why,
    )


def cluster_address(host: Host) -> str:
    """The IP at which other hosts reach this one; ``0.0.0.0`` when only a name is known."""
    for text in (host.server_id, host.address):
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            continue
    return "0.0.0.0"


def _ports(hosts: Sequence[Host], job: Optional[Job]) -> Dict[str, Dict[int, Check]]:
    ranks = sum(len(host.devices) for host in hosts)
    wanted: Dict[str, Dict[int, Check]] = {}
    for host in hosts:
        ports = wanted.setdefault(host.name, {})
        if host.device_target == ASCEND and ranks > 1:
            base = _base_port(host, job)
            ports.update((base + n, HCCL_PORTS) for n in range(HCCL_PORT_COUNT))
            ports[NPU_PORT_NUMBER] = NPU_PORT
    if job is not None and job.scheduler_port is not None:
        first = rank_order(hosts, lambda host: host.server_id)[0]
        if choose_recipe(job, first.device_target, ranks) == "dynamic_cluster":
            wanted[first.name][job.scheduler_port] = SCHEDULER_PORT
    return wanted


def _base_port(host: Host, job: Optional[Job]) -> int:
    env = {**host.env, **(job.env if job else {})}
    text = env.get("HCCL_IF_BASE_PORT", "")
    # A value out of range is refused by the planner; here it must only not be a port.
    return int(text) if text.isdecimal() and int(text) <= 65520 else HCCL_BASE_PORT


def _files(job: Optional[Job]) -> Tuple[Tuple[NeededFile, ...], str]:
    if job is None:
        return (), "no job is described: add --config, or `config:` to the inventory's `job:`"
    if job.worker_command:
        return (), "the job runs a command of its own"
    if job.config is None:
        return (), "the job has no configuration"
    found: List[NeededFile] = []
    if job.workload == "mindformers":
        script = "mindformers/tools/export.py" if job.mode == "export" else "run_mindformer.py"
        found.append(NeededFile(MINDFORMERS, "mindformers_dir", f"{job.mindformers_dir}/{script}"))
    values = job.config.values
    arguments = _options(job.worker_args)
    for section in _sections(job):
        loader = ("data_loader", "dataset_dir")
        option = f"--{section}_dir"
        data, key = arguments.get(option, ""), option
        if not data:
            data, key = _text(values, section, *loader), ".".join((section, *loader))
        found.append(NeededFile(DATASET, key, data))
    vocabularies = _sections(job) or _DATASETS[:1]
    for section in vocabularies if job.mode != "export" else ():
        key = f"{section}.tokenizer.vocab_file"
        found.append(NeededFile(VOCABULARY, key, _text(values, section, "tokenizer", "vocab_file")))
    # What a run is resumed from is one file a rank.
    resumed = bool(values.get("resume_training")) or "--resume_training" in arguments
    found.append(NeededFile(CHECKPOINT, *_weights(job, values), alike=not resumed))
    unique = {(file.check.name, file.path): file for file in reversed(found)}
    return tuple(f for f in reversed(list(unique.values())) if _on_hosts(f.path, job)), ""


def _weights(job: Job, values: Mapping[str, object]) -> Tuple[str, str]:
    """Key and path of the weights to start from; the path is empty without any."""
    named = ("model", "model_config", "checkpoint_name_or_path")
    if job.load_checkpoint:
        return "--load-checkpoint", job.load_checkpoint
    if _text(values, "load_checkpoint"):
        return "load_checkpoint", _text(values, "load_checkpoint")
    return ".".join(named), _text(values, *named)


def _sections(job: Job) -> Tuple[str, ...]:
    if job.mode in ("train", "finetune"):
        evaluates = job.config is not None and job.config.values.get("do_eval") is True
        return _DATASETS if evaluates else _DATASETS[:1]
    return _DATASETS[1:] if job.mode == "eval" else ()


def _on_hosts(path: str, job: Job) -> bool:
    """Whether the hosts must have the file before the launch: not what is staged first."""
    if not path or path.startswith((_SAMPLE, PREFIX)):
        return False
    if job.workload == "mindformers" and "/" not in path and not path.endswith(".ckpt"):
        return False  # the name of a model, whose weights MindFormers finds by itself
    return not any(
        path == item.place or path.startswith(f"{item.place}/")
        for item in job.stage.items
        if item.place is not None
    )


def _text(values: Mapping[str, object], *keys: str) -> str:
    at: object = values
    for key in keys:
        at = at.get(key) if isinstance(at, dict) else None
    return at if isinstance(at, str) else ""


def _options(arguments: Sequence[str]) -> Dict[str, str]:
    """``--name value`` and ``--name=value`` of the worker's own arguments."""
    found = {}
    for word, following in zip(arguments, (*arguments[1:], "")):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            found[name] = value if equals else following
    return found
