"""Connections to the hosts of a run, and how they are remembered between commands."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, TypeVar

from orchestrator.errors import OrchError, PlanError, one_error
from orchestrator.inventory import Gateway, Host, SshOptions
from orchestrator.transport.base import Transport
from orchestrator.transport.pool import Outcome, connect, fan_out

T = TypeVar("T")
Progress = Callable[[str], None]


def save_hosts(path: Path, hosts: Sequence[Host]) -> None:
    """Keep the connection settings of a run's hosts, so that later commands need no inventory."""
    text = json.dumps({"schema": 1, "hosts": [asdict(host) for host in hosts]}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    path.chmod(0o600)


def load_hosts(path: Path) -> List[Host]:
    """The hosts kept by ``save_hosts``. Raises PlanError when the file is not readable."""
    try:
        return [_host(fields) for fields in json.loads(path.read_text("utf-8"))["hosts"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(
            f"cannot read {path}: {error}", hint="the run folder is damaged; launch a new run"
        ) from None


@contextmanager
def connected(hosts: Sequence[Host]) -> Iterator[Dict[str, Transport]]:
    """Transports by host name, closed at the end. Nothing is dialled before the first use."""
    transports = {host.name: connect(host) for host in hosts}
    try:
        yield transports
    finally:
        for transport in transports.values():
            transport.close()


def on_all(
    transports: Mapping[str, Transport],
    doing: str,
    function: Callable[[Transport], T],
    progress: Optional[Progress] = None,
) -> Dict[str, T]:
    """Run ``function`` on every host at once; results by host name.

    Raises the error of the one host that failed, or HostErrors with all of them.
    """
    outcomes = on_each(transports, doing, function, progress)
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors:
        raise one_error(f"{doing}: {len(errors)} of {len(outcomes)} hosts failed", errors)
    return {outcome.host: outcome.value for outcome in outcomes}  # type: ignore[misc]


def on_each(
    transports: Mapping[str, Transport],
    doing: str,
    function: Callable[[Transport], T],
    progress: Optional[Progress] = None,
) -> List[Outcome[T]]:
    """Run ``function`` on every host at once; every outcome, good or bad."""
    total, done = len(transports), 0

    def report(outcome: Outcome[T]) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            bad = f" ({outcome.error})" if isinstance(outcome.error, OrchError) else ""
            progress(f"{doing}: {done}/{total} {outcome.host}{bad}")

    return fan_out(list(transports.values()), function, on_done=report)


def _host(fields: Dict[str, Any]) -> Host:
    fields = dict(fields)
    ssh = dict(fields["ssh"])
    ssh["gateways"] = tuple(Gateway(**one) for one in ssh.get("gateways", ()))
    fields["ssh"] = SshOptions(**ssh)
    for key in ("devices", "device_ips", "groups"):
        fields[key] = tuple(fields[key])
    return Host(**fields)
