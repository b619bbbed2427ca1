"""The environment of a rank, by recipe (docs/contracts.md, contract 1).

Laid over one another: defaults of the recipe, ``env`` of the host, ``env`` of the job, and last
what makes a rank that rank, which nobody may override.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Mapping, Optional, Sequence, Tuple

from orchestrator.errors import PlanError
from orchestrator.inventory import Host
from orchestrator.job import Job
from orchestrator.planning.addresses import parse_ip
from orchestrator.planning.facts import HostFacts
from orchestrator.problems import shown

Pairs = Tuple[Tuple[str, str], ...]
"""Names and values, sorted by name."""

SCHEDULER_PORT = 8118
"""MindSpore's usual port, where none is given and no fact names a free one."""

CLUSTER_VARIABLES = (
    "RANK_TABLE_FILE",
    "RANK_ID",
    "RANK_SIZE",
    "DEVICE_ID",
    "MS_ROLE",
    "MS_NODE_ID",
    "MS_WORKER_NUM",
    "MS_SCHED_HOST",
    "MS_SCHED_PORT",
    "CM_CHIEF_IP",
    "CM_CHIEF_PORT",
    "CM_CHIEF_DEVICE",
    "CM_WORKER_SIZE",
    "CM_WORKER_IP",
)
"""What makes a process a rank of a cluster. Those of two recipes never go together, so each
process starts without all of them and gets those of its recipe."""

FOLDER_VARIABLES = ("GLM2_RUN_ID", "GLM2_RUN_DIR", "GLM2_RANK_DIR", "GLM2_OUTPUT_DIR")

_EXEC_TIMEOUT_UNIT = 68
"""HCCL rounds HCCL_EXEC_TIMEOUT down to a multiple of this many seconds."""


@dataclass(frozen=True)
class Scheduler:
    """Where MindSpore's scheduler of a dynamic cluster listens."""

    address: str
    port: int
    workers: int

    def variables(self, role: str) -> Dict[str, str]:
        return {
            "MS_ROLE": role,
            "MS_WORKER_NUM": str(self.workers),
            "MS_SCHED_HOST": self.address,
            "MS_SCHED_PORT": str(self.port),
        }


@dataclass(frozen=True)
class Place:
    """Where a process stands: its run, host and folder."""

    job: Job
    host: Host
    run_dir: str
    name: str

    @property
    def rank_dir(self) -> str:
        return f"{self.run_dir}/ranks/{self.name}"


def choose_recipe(job: Job, device_target: str, world_size: int) -> str:
    """The recipe of a job: its own, or for ``auto`` the fitting one. Raises PlanError when the
    job's recipe cannot start these ranks."""
    if job.recipe == "auto":
        if world_size == 1:
            return "standalone"
        return "ascend_ranktable" if device_target == "Ascend" else "dynamic_cluster"
    if job.recipe == "ascend_ranktable" and device_target != "Ascend":
        raise PlanError(
            f"recipe ascend_ranktable cannot start ranks on {device_target}: HCCL is Ascend's",
            hint="use --recipe dynamic_cluster",
        )
    if job.recipe == "standalone" and world_size > 1 and not job.worker_command:
        raise PlanError(
            f"recipe standalone is for one rank, but there are {world_size} devices",
            hint="use --recipe auto, or one device by --limit HOST --devices '[0,1)'",
        )
    return job.recipe


def find_scheduler(
    job: Job, hosts: Sequence[Host], facts: Mapping[str, HostFacts], world_size: int
) -> Scheduler:
    """The scheduler of a dynamic cluster, on the host of rank 0 (first of ``hosts``).

    Its address must be an IP that all hosts reach: the ``server_id`` of that host if it is one,
    else its ``address``; 127.0.0.1 when all hosts are this machine. Raises PlanError.
    """
    first = hosts[0]
    port = job.scheduler_port
    if port is None:
        known = facts.get(first.name)
        port = SCHEDULER_PORT if known is None or known.free_port is None else known.free_port
    if all(host.connection == "local" for host in hosts):
        return Scheduler("127.0.0.1", port, world_size)
    address = next((a for a in (first.server_id, first.address) if parse_ip(a)), None)
    if address is None:
        raise PlanError(
            f"MindSpore's scheduler needs an IP address, and {shown(first.address)} is none",
            hint="set `server_id:` of this host to the IP at which the other hosts reach it",
            host=first.name,
        )
    if _loopback(address) and not all(_on_this_machine(host) for host in hosts):
        raise PlanError(
            f"MindSpore's scheduler would listen at {address}, where other hosts cannot reach it",
            hint="set `server_id:` of this host to its address in the cluster's network",
            host=first.name,
        )
    return Scheduler(address, port, world_size)


def rank_environment(
    place: Place,
    rank: int,
    device_id: int,
    world_size: int,
    *,
    scheduler: Optional[Scheduler],
    rank_table_file: Optional[str],
    threads: Optional[int],
) -> Pairs:
    """All variables of one rank. Raises PlanError for an override
    that contradicts the recipe or HCCL's ranges."""
    chosen: Dict[str, str] = {"PYTHONUNBUFFERED": "1"}
    if threads is not None:
        chosen["OMP_NUM_THREADS"] = str(threads)
    if rank_table_file is not None:
        chosen.update(_HCCL_DEFAULTS)
        chosen["ASCEND_PROCESS_LOG_PATH"] = f"{place.rank_dir}/ascend"
    chosen.update(_overrides(place))
    if rank_table_file is not None:
        _check_hccl(chosen, place.host)
    identity = _folders(place)
    identity.update(RANK_ID=str(rank), RANK_SIZE=str(world_size), DEVICE_ID=str(device_id))
    if rank_table_file is not None:
        identity["RANK_TABLE_FILE"] = rank_table_file
    if scheduler is not None:
        identity.update(scheduler.variables("MS_WORKER"), MS_NODE_ID=str(rank))
    return tuple(sorted({**chosen, **identity}.items()))


def scheduler_environment(place: Place, scheduler: Scheduler) -> Pairs:
    """All variables of the scheduler process."""
    chosen = {"PYTHONUNBUFFERED": "1", **_overrides(place)}
    identity = {**_folders(place), **scheduler.variables("MS_SCHED")}
    return tuple(sorted({**chosen, **identity}.items()))


def threads_per_rank(host: Host, facts: Optional[HostFacts]) -> Optional[int]:
    """OpenMP threads of a rank on CPU, so that ranks share the cores; None: not known."""
    if host.device_target != "CPU" or facts is None or facts.cpu_count is None:
        return None
    return max(1, facts.cpu_count // len(host.devices))


_HCCL_DEFAULTS = {
    "HCCL_WHITELIST_DISABLE": "1",  # old versions default to a whitelist that nobody has
    "HCCL_CONNECT_TIMEOUT": "600",  # the default of 120 s is short of a big model's compilation
    "HCCL_EXEC_TIMEOUT": "1836",
    "ASCEND_GLOBAL_EVENT_ENABLE": "1",  # HCCL says only in events who connected to whom
}


def _folders(place: Place) -> Dict[str, str]:
    values = (place.job.run_id, place.run_dir, place.rank_dir, f"{place.run_dir}/output")
    return dict(zip(FOLDER_VARIABLES, values))


def _overrides(place: Place) -> Dict[str, str]:
    """``env`` of the host, then of the job."""
    for source, env in (("the inventory", place.host.env), ("--env or `job`", place.job.env)):
        for name in env:
            if name in CLUSTER_VARIABLES or name in FOLDER_VARIABLES:
                raise PlanError(
                    f"{name} is set by {source}, but it is the planner's to give to each rank",
                    hint=f"remove {name} from `env`",
                    host=place.host.name,
                )
    return {**place.host.env, **place.job.env}


def _check_hccl(chosen: Dict[str, str], host: Host) -> None:
    """Ranges of HCCL's time-outs on 910A; the one for execution is written as HCCL rounds it."""
    connect = _seconds(chosen, "HCCL_CONNECT_TIMEOUT", 120, 7200, host)
    execute = _seconds(chosen, "HCCL_EXEC_TIMEOUT", _EXEC_TIMEOUT_UNIT, 17_340, host)
    execute -= execute % _EXEC_TIMEOUT_UNIT
    chosen["HCCL_EXEC_TIMEOUT"] = str(execute)
    if connect >= execute:
        raise PlanError(
            f"HCCL_CONNECT_TIMEOUT ({connect} s) is not less than HCCL_EXEC_TIMEOUT ({execute} s)",
            hint="lower the first or raise the second",
            host=host.name,
        )


def _seconds(chosen: Mapping[str, str], name: str, low: int, high: int, host: Host) -> int:
    text = chosen[name]
    if not text.isascii() or not text.isdecimal() or not low <= int(text) <= high:
        raise PlanError(
            f"{name} is {shown(text)}, and HCCL allows {low} to {high} seconds",
            hint="correct it in `env`",
            host=host.name,
        )
    return int(text)


def _on_this_machine(host: Host) -> bool:
    return host.connection == "local" or _loopback(host.address)


def _loopback(address: str) -> bool:
    ip = parse_ip(address)
    return address == "localhost" if ip is None else ip.is_loopback
