"""This pod of a ModelArts or Kubernetes job as an inventory: ``--inventory modelarts:[FILE]``.

The platform starts the same command in every pod and has made the rank table. So this pod launches
its own ranks only, with the ranks and the table of the whole job. FILE is an inventory without
hosts, for ``defaults`` and ``job``.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Dict, List, Mapping, Optional

from orchestrator.errors import InventoryError, UsageError
from orchestrator.inventory import Inventory, Platform
from orchestrator.inventory.slurm import on_platform
from orchestrator.planning.ranktable import RankTable, Server
from orchestrator.planning.ranktable_convert import BY_POD, usable
from orchestrator.planning.ranktable_lint import check_table

TABLES = ("RANK_TABLE_FILE_V_1_0", "RANK_TABLE_FILE")
USUAL = ("/user/config/jobstart_hccl.json", "/user/serverid/devindex/config/hccl.json")
_NAMES = ("POD_NAME", "HOSTNAME", "POD_IP", "HOST_IP", "MA_CURRENT_HOST_IP", "XDL_IP")


def modelarts_inventory(
    environ: Mapping[str, str],
    file: Optional[Path],
    *,
    default_python: str,
    home: Path,
    cwd: Path,
    root: Path = Path("/"),
) -> Inventory:
    """The inventory of this pod. Raises UsageError when there is no rank table or it does not say
    which pod this is, RankTableError when the table is wrong."""
    path = _find(environ, root)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the rank table {path}: {error.strerror}") from error
    try:
        waiting = json.loads(content).get("status") == "initializing"
    except (ValueError, AttributeError):
        waiting = False  # said better by the check
    if waiting:
        raise UsageError(
            f"the rank table {path} is not complete yet", hint="wait until its status is completed"
        )
    checked = check_table(content, str(path))
    usable(checked)  # raises what is wrong with it, before its pods are looked at
    table = usable(checked, BY_POD if _pods(content) else None)
    here = _this_server(table, content, environ, path)
    before: List[Server] = list(table.servers[: table.servers.index(here)])
    settings: Dict[str, object] = {
        "connection": "local",
        "server_id": here.server_id,
        "devices": ",".join(str(device.device_id) for device in here.devices),
        "device_target": "Ascend",
        "workdir": f"{cwd}/glm2-orch",
    }
    name = environ.get("POD_NAME") or here.server_id
    found = on_platform(
        "modelarts", "modelarts", {name: settings}, file, python=default_python, home=home, cwd=cwd
    )
    platform = Platform(
        table=table.to_json(),
        first_rank=sum(len(server.devices) for server in before),
        devices=tuple(len(server.devices) for server in table.servers),
    )
    return replace(found, platform=platform)


def _find(environ: Mapping[str, str], root: Path) -> Path:
    for name in TABLES:
        if environ.get(name):
            return Path(environ[name])
    usual = [root / path.lstrip("/") for path in USUAL]
    found = next((path for path in usual if path.exists()), None)
    if found is None:
        raise UsageError(
            "there is no rank table of a platform here",
            hint=f"set {TABLES[0]} or {TABLES[1]}; {USUAL[0]} does not exist either",
        )
    return found


def _this_server(
    table: RankTable, content: bytes, environ: Mapping[str, str], path: Path
) -> Server:
    if len(table.servers) == 1:
        return table.servers[0]
    pods = _pods(content)
    mine = {environ[name] for name in _NAMES if environ.get(name)}
    for server in table.servers:
        if server.server_id in mine or pods.get(server.server_id) in mine:
            return server
    index = environ.get("VC_TASK_INDEX", "")
    if index.isdecimal() and int(index) < len(table.servers):
        return table.servers[int(index)]
    raise InventoryError(
        f"{path} has {len(table.servers)} servers, and none is known to be this one",
        hint=f"set POD_NAME or POD_IP to one of {', '.join(s.server_id for s in table.servers)}",
    )


def _pods(content: bytes) -> Dict[str, str]:
    """Names of the pods by ``server_id``, where the table has the platform's own form."""
    groups = json.loads(content).get("group_list") or []
    instances = [one for group in groups for one in group.get("instance_list") or []]
    return {
        str(one.get("server_id")): str(one["pod_name"]) for one in instances if "pod_name" in one
    }
