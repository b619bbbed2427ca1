"""How the worker's layout (data, model and pipeline parallel) fits the ranks there are."""

from __future__ import annotations

from typing import Mapping, Optional

from orchestrator.errors import PlanError
from orchestrator.problems import shown
from orchestrator.worker_config import WorkerConfig

SECTION = "parallel_config"


def check_layout(config: WorkerConfig, world_size: int) -> None:
    """Raise PlanError, naming the YAML's line, unless data_parallel · model_parallel ·
    pipeline_stage is the number of ranks. Without data_parallel the other two must divide it."""
    section = config.values.get(SECTION)
    if not isinstance(section, dict):
        return
    model = _size(config, section, "model_parallel") or 1
    stages = _size(config, section, "pipeline_stage") or 1
    data = _size(config, section, "data_parallel")
    if data is None:
        if world_size % (model * stages):
            raise PlanError(
                f"model_parallel {model} · pipeline_stage {stages} does not divide "
                f"{world_size} ranks",
                hint="change the layout, or the hosts and devices",
                location=config.place(SECTION, "model_parallel") or config.place(SECTION),
            )
        return
    product = data * model * stages
    if product != world_size:
        fitting = world_size // (model * stages)
        mend = "change the layout, or the hosts and devices"
        if fitting * model * stages == world_size:
            mend = f"add --set {SECTION}.data_parallel={fitting}, or change the hosts and devices"
        raise PlanError(
            f"data_parallel {data} · model_parallel {model} · pipeline_stage {stages} = "
            f"{product}, but there are {world_size} ranks",
            hint=mend,
            location=config.place(SECTION, "data_parallel"),
        )


def _size(config: WorkerConfig, section: Mapping[str, object], key: str) -> Optional[int]:
    value = section.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PlanError(
            f"{SECTION}.{key} is {shown(repr(value))}, not a number from 1 up",
            hint="correct it, or set it with --set",
            location=config.place(SECTION, key),
        )
    return value
