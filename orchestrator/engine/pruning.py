"""Removing the folders of an ended run from its hosts."""

from __future__ import annotations

from typing import Dict

from orchestrator.engine.hosts import on_each
from orchestrator.engine.launch import OpenRun
from orchestrator.errors import HostNotReady, PlanError
from orchestrator.transport.base import Transport


def remove_from_hosts(run: OpenRun) -> Dict[str, str]:
    """Remove the run's folder on every host where nothing of it is alive; why not, by host.

    A folder that is gone already is no failure.
    """
    plans = {host.host: host for host in run.plan.hosts}

    def remove(transport: Transport) -> None:
        host = plans[transport.name]
        if not host.run_dir.endswith(f"/runs/{run.paths.run_id}"):
            # The plan is a file: nobody who changed it shall make us remove another folder.
            raise PlanError(f"{host.run_dir} is not the folder of this run", host=transport.name)
        if not transport.run(["test", "-e", host.run_dir], timeout=30).ok:
            return
        if transport.run(["test", "-e", f"{host.run_dir}/node/supervisor.py"], timeout=30).ok:
            swept = run.supervisor(host).sweep()
            if not swept.get("clean"):
                raise HostNotReady(
                    "something of the run is still alive there",
                    hint=f"end it: glm2-orch stop {run.paths.run_id}",
                    host=transport.name,
                )
        done = transport.run(["rm", "-rf", "--", host.run_dir], timeout=600)
        if not done.ok:
            said = " ".join(done.stderr.decode("utf-8", "replace").split())
            raise HostNotReady(f"cannot remove {host.run_dir}: {said}", host=transport.name)

    outcomes = on_each(run.transports, "removing", remove)
    return {one.host: one.error.message for one in outcomes if one.error is not None}
