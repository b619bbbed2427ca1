"""The hosts of a Slurm allocation as an inventory: ``--inventory slurm:`` or ``slurm:FILE``.

FILE is an inventory without hosts: what its ``ssh``, ``defaults`` and ``job`` say goes before what
Slurm says. The command is run inside the allocation (``salloc``, ``sbatch``).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Callable, Dict, Mapping, Optional

import yaml

from orchestrator.errors import InventoryError, UsageError
from orchestrator.inventory.model import Inventory
from orchestrator.inventory.patterns import PatternError, expand
from orchestrator.inventory.read import parse_inventory
from orchestrator.problems import shown

Settings = Dict[str, object]

_ASCEND = ("ASCEND_RT_VISIBLE_DEVICES", "ASCEND_VISIBLE_DEVICES")
_DEVICES = (*_ASCEND, "SLURM_STEP_GPUS", "SLURM_JOB_GPUS")


def slurm_inventory(
    environ: Mapping[str, str],
    file: Optional[Path],
    *,
    resolve: Callable[[str], Optional[str]],
    default_python: str,
    home: Path,
    cwd: Path,
) -> Inventory:
    """The inventory of the allocation that ``environ`` describes. ``resolve`` gives the IP address
    of a name, or None. Raises UsageError outside an allocation, InventoryError for bad values."""
    nodes = environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST")
    if not nodes:
        raise UsageError(
            "there is no Slurm allocation here: SLURM_JOB_NODELIST is not set",
            hint="run this inside `salloc` or `sbatch`",
        )
    try:
        names = expand(nodes)
    except PatternError as error:
        raise InventoryError(f"SLURM_JOB_NODELIST {shown(nodes)}: {error}") from error
    common = _common(environ, cwd)
    if file is None and "devices" not in common:
        raise UsageError(
            "Slurm does not say which devices this allocation has",
            hint="ask for them (`salloc --gres=npu:8`, or --ntasks-per-node for ranks on CPU), or "
            "state `defaults: {devices: …, device_target: …}` in a file: --inventory slurm:FILE",
        )
    hosts: Dict[str, Settings] = {}
    for name in names:
        address = resolve(name)
        own: Settings = {} if address is None else {"address": address}
        if name == environ.get("SLURMD_NODENAME") and len(names) == 1:
            own["connection"] = "local"
        hosts[name] = {**common, **own}
    job = environ.get("SLURM_JOB_ID", "")
    return on_platform(
        "slurm", f"slurm-{job}".strip("-"), hosts, file, python=default_python, home=home, cwd=cwd
    )


def on_platform(
    platform: str,
    cluster: str,
    hosts: Mapping[str, Settings],
    file: Optional[Path],
    *,
    python: str,
    home: Path,
    cwd: Path,
) -> Inventory:
    """An inventory of ``hosts``, whose settings give way to the ``defaults`` of ``file``."""
    text, name, folder = "", f"{platform}:", cwd
    stated: Mapping[str, object] = {}
    if file is not None:
        name, folder = str(file), file.absolute().parent
        try:
            text = file.read_bytes().decode("utf-8-sig")
            content = yaml.safe_load(text) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InventoryError(f"cannot read {file}: {error}", hint="it must be YAML") from error
        for key in ("hosts", "groups"):
            if not isinstance(content, dict) or key in content:
                raise InventoryError(
                    f"{file} has `{key}`, but {platform}: says which hosts there are",
                    hint=f"take `{key}` out, or give the file without `{platform}:`",
                )
        defaults = content.get("defaults") or {}
        stated = defaults if isinstance(defaults, dict) else {}
        cluster = str(content.get("cluster", cluster))
        text = "" if not content else text + "\n"
        text += "" if "cluster" in content else f"cluster: {json.dumps(cluster)}\n"
    else:
        text = f"cluster: {json.dumps(cluster)}\n"
    given = {
        host: {key: value for key, value in settings.items() if key not in stated}
        for host, settings in hosts.items()
    }
    text += f"hosts: {json.dumps(given)}\n"
    return parse_inventory(text, name, folder=folder, default_python=python, home=home)


def _common(environ: Mapping[str, str], cwd: Path) -> Settings:
    """Settings that all hosts of the allocation share, as far as Slurm says them."""
    folder = environ.get("SLURM_SUBMIT_DIR") or str(cwd)
    # A folder of its own for each host: the one of the job is most often shared by all.
    settings: Settings = {"workdir": f"{folder.rstrip('/')}/glm2-orch/{{host}}"}
    devices = next((environ[name] for name in _DEVICES if environ.get(name)), None)
    count = environ.get("SLURM_GPUS_ON_NODE", "")
    tasks = re.match(r"\d+", environ.get("SLURM_NTASKS_PER_NODE", ""))
    if devices is not None:
        try:  # Slurm's ranges include both ends: 0-3,5
            settings.update(devices=",".join(expand(f"[{devices}]")), device_target="Ascend")
        except PatternError as error:
            raise InventoryError(
                f"the devices {shown(devices)} of this allocation cannot be read: {error}",
                hint="state them: `defaults: {devices: ...}` in a file, and --inventory slurm:FILE",
            ) from error
    elif count.isdecimal() and int(count):
        settings.update(devices=f"[0,{count})", device_target="Ascend")
    elif tasks is not None:
        settings.update(devices=f"[0,{tasks.group()})", device_target="CPU")
    threads = environ.get("SLURM_CPUS_PER_TASK", "")
    if threads.isdecimal():
        settings["env"] = {"OMP_NUM_THREADS": threads}
    return settings
