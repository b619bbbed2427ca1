"""Where staged files are on a host: ``staged:NAME/path`` in a job becomes a path there."""

from __future__ import annotations

from typing import Dict, Mapping, Tuple, cast

from orchestrator.errors import PlanError
from orchestrator.inventory import Host
from orchestrator.job import Job
from orchestrator.stage_options import PREFIX, StageOptionError, find_item
from orchestrator.worker_config import WorkerConfig


def staged_text(text: str, job: Job, host: Host) -> str:
    """``text`` as the host needs it, when it is ``staged:…`` or ``--option=staged:…``; else as it
    is. Raises PlanError when nothing is staged under that name."""
    option, equals, value = text.partition("=")
    if equals and option.startswith("--") and value.startswith(PREFIX):
        return f"{option}={_path(value, job, host)}"
    return _path(text, job, host)


def staged_values(config: WorkerConfig, job: Job, host: Host) -> Mapping[str, object]:
    """The values of a configuration with the host's own paths of what is staged."""
    copies: Dict[int, object] = {}

    def convert(value: object, key: str) -> object:
        if isinstance(value, str):
            return _path(value, job, host, f"`{key}` of the configuration")
        if isinstance(value, (dict, list)):
            if id(value) not in copies:
                pairs = value.items() if isinstance(value, dict) else enumerate(value)
                inner = {k: convert(item, f"{key}.{k}".lstrip(".")) for k, item in pairs}
                copies[id(value)] = inner if isinstance(value, dict) else list(inner.values())
            return copies[id(value)]
        return value

    return cast("Mapping[str, object]", convert(config.values, ""))


def staged_notes(job: Job) -> Tuple[str, ...]:
    """What is staged, in words, for whoever reads the plan."""
    return tuple(
        f"{item.source} is staged as {item.place or item.name} ({item.digest[:12]})"
        for item in job.stage.items
    )


def _path(text: str, job: Job, host: Host, where: str = "") -> str:
    try:
        found = find_item(job.stage, text)
    except StageOptionError as error:
        raise PlanError(f"{where}: {error}".lstrip(": "), hint=error.hint) from error
    if found is None:
        return text
    item, rest = found
    if not item.digest:
        raise AssertionError("the staged files have not been read")
    return f"{item.on_host(host.workdir)}/{rest}".rstrip("/")
