"""Options that launch and plan share, and the way from them to inventory, job and facts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple, TypeVar

import click

from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.inventory import Inventory
    from orchestrator.job import Job

F = TypeVar("F", bound=Callable[..., Any])
MODES = ("train", "finetune", "eval", "predict", "export")


def inventory_options(function: F) -> F:
    """``--inventory`` and ``--limit``."""
    for decorate in reversed(
        (
            click.option(
                "-i",
                "--inventory",
                "inventory_file",
                required=True,
                metavar="FILE",
                help="Inventory of servers (YAML), or the name of one that is shipped.",
            ),
            click.option("--limit", metavar="PATTERN", help="Only these hosts or groups; !x leaves out."),
        )
    ):
        function = decorate(function)
    return function


def job_options(function: F) -> F:
    """Everything that describes the job: mode, configuration, overrides, worker."""
    for decorate in reversed(
        (
            click.argument("mode", type=click.Choice(MODES)),
            click.argument("worker_args", nargs=-1, type=click.UNPROCESSED),
            click.option(
                "--config", metavar="FILE", help="Worker YAML, or a name such as tiny_cpu."
            ),
            click.option(
                "--set",
                "settings",
                multiple=True,
                metavar="KEY=VALUE",
                help="Set a key of the worker YAML, e.g. parallel_config.data_parallel=8.",
            ),
            click.option("--load-checkpoint", "--load_checkpoint", metavar="FILE"),
            click.option("--predict-data", "--predict_data", metavar="TEXT"),
            click.option("--devices", metavar="RANGE", help="Devices of each host, e.g. [0,8)."),
            click.option(
                "--env", "environment", multiple=True, metavar="KEY=VALUE", help="Variable of every rank."
            ),
            click.option("--recipe", help="ascend_ranktable, dynamic_cluster or standalone."),
            click.option(
                "--worker-command", metavar="COMMAND", help="Run this instead of python -m glm2."
            ),
            click.option("--run-id", metavar="NAME", help="Name of the run; default: mode and time."),
        )
    ):
        function = decorate(function)
    return function


def read_inventory(inventory_file: str, limit: Optional[str]) -> Inventory:
    """Load, check and narrow the inventory."""
    from orchestrator import inventory as inventories
    from orchestrator.resources import resource_dir

    path = Path(inventory_file)
    if not path.exists() and path.parent == Path("."):
        shipped = resource_dir("inventories") / f"{path.name.removesuffix('.yaml')}.yaml"
        path = shipped if shipped.exists() else path
    loaded = inventories.load_inventory(path, default_python=sys.executable, home=Path.home())
    return inventories.limit(loaded, limit) if limit else loaded
