"""A launch, and what the command line and the inventory say of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Mapping, Optional, Tuple

from orchestrator import recovery_options
from orchestrator.errors import Location
from orchestrator.stage_options import Stage
from orchestrator.watch_options import Value
from orchestrator.worker_config import WorkerConfig
from orchestrator.yaml_positions import Path as KeyPath

MODES = ("train", "finetune", "eval", "predict", "export")
RECIPES = ("auto", "ascend_ranktable", "dynamic_cluster", "standalone")
WORKLOADS = ("glm2", "mindformers")


@dataclass(frozen=True)
class Job:
    """One launch: what runs on every rank, and how it is started and stopped."""

    run_id: str
    mode: str
    """``train``, ``finetune``, ``eval``, ``predict`` or ``export``."""
    config: Optional[WorkerConfig]
    """Configuration of the worker; None only with ``worker_command``."""
    recipe: str = "auto"
    """How ranks find each other: ``ascend_ranktable``, ``dynamic_cluster``, ``standalone``; or
    ``auto``: one rank standalone, Ascend by rank table, CPU as a dynamic cluster. Several ranks
    can be standalone when a ``worker_command`` of their own starts them."""
    scheduler_port: Optional[int] = None
    """Port of MindSpore's scheduler; None: a free one if the host's facts name it, else 8118."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment of every rank, over the hosts' own."""
    worker_command: Tuple[str, ...] = ()
    """Command of a rank (no shell reads it); empty: that of ``workload``."""
    workload: str = "glm2"
    """``glm2`` (``python -m glm2``) or ``mindformers`` (its ``run_mindformer.py``)."""
    mindformers_dir: Optional[str] = None
    """Where MindFormers is on the hosts: an absolute path, or ``staged:NAME``."""
    worker_args: Tuple[str, ...] = ()
    """Further arguments of the worker."""
    load_checkpoint: Optional[str] = None
    """Absolute path, on the hosts, of weights to start from."""
    predict_data: Optional[str] = None
    grace_s: float = 30.0
    """Time in seconds that a rank has between SIGTERM and SIGKILL, to save a checkpoint."""
    heartbeat_s: float = 1.0
    watch: Mapping[str, Value] = field(default_factory=dict)
    """How it is watched: keys of ``watch_options``, where they differ from the defaults."""
    recovery: Mapping[str, recovery_options.Value] = field(default_factory=dict)
    """What is done after a failure: keys of ``recovery_options``, likewise."""
    stage: Stage = field(default_factory=Stage)
    """Files of this machine that the hosts get first; ``staged:NAME`` names them there."""

    @property
    def runs_glm2(self) -> bool:
        """Whether the ranks run our own worker."""
        return not self.worker_command and self.workload == "glm2"


@dataclass(frozen=True)
class JobOptions:
    """What the command line says; None and empty: not said."""

    config: Optional[str] = None
    recipe: Optional[str] = None
    scheduler_port: Optional[int] = None
    settings: Tuple[str, ...] = ()
    """``--set KEY=VALUE``: values in the worker's configuration."""
    env: Tuple[str, ...] = ()
    """``--env NAME=VALUE``."""
    worker_command: Optional[str] = None
    workload: Optional[str] = None
    mindformers_dir: Optional[str] = None
    worker_args: Tuple[str, ...] = ()
    load_checkpoint: Optional[str] = None
    predict_data: Optional[str] = None
    grace_s: Optional[float] = None
    heartbeat_s: Optional[float] = None
    watch: Tuple[str, ...] = ()
    """``--watch KEY=VALUE``."""
    stage_direct: bool = False
    """``--stage-direct``: no host passes staged files on to another."""
    recovery: Tuple[str, ...] = ()
    """``--recover KEY=VALUE``."""


@dataclass(frozen=True)
class JobDefaults:
    """The ``job:`` section of an inventory (see ``Inventory.job``); relative paths in it start
    at ``folder``."""

    values: Mapping[str, object] = field(default_factory=dict)
    locations: Mapping[KeyPath, Location] = field(default_factory=dict)
    folder: str = "."
