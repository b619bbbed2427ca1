"""``spec.json``: what the supervisor of one host runs, and how."""

from __future__ import annotations

from .failure import NodeError
from .light import loads

TYPE_CHECKING = False  # see light.py
if TYPE_CHECKING:
    from typing import Any, Optional, Tuple

DEFAULT_LINGER_S = 10.0


class ProcessSpec:
    """One process: a rank, or a service (``rank`` None) that lives as long as ranks do."""

    def __init__(self, name: str, rank: Optional[int], argv: Tuple[str, ...]) -> None:
        self.name = name
        self.rank = rank
        self.argv = argv


class Spec:
    """All that the supervisor needs to know. Times in seconds."""

    def __init__(
        self,
        run_id: str,
        host: str,
        workdir: str,
        grace_s: float,
        heartbeat_s: float,
        linger_s: float,
        leases: Tuple[str, ...],
        processes: Tuple[ProcessSpec, ...],
    ) -> None:
        self.run_id = run_id
        self.host = host
        self.workdir = workdir
        self.grace_s = grace_s
        """From SIGTERM to SIGKILL."""
        self.heartbeat_s = heartbeat_s
        self.linger_s = linger_s
        """How long a service may take to end by itself after the ranks of this host ended well."""
        self.leases = leases
        self.processes = processes


def load(path: str) -> Spec:
    """Read and check ``spec.json``. Raises NodeError (spec) that names the field at fault."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise _wrong(path, f"cannot be read: {error.strerror}") from error
    return parse(data, path)


def parse(data: bytes, path: str = "spec.json") -> Spec:
    """Check the bytes of a ``spec.json``; ``path`` is for messages only."""
    try:
        top = loads(data.decode("utf-8"))
    except ValueError as error:
        raise _wrong(path, f"is not JSON: {error}") from error
    if not isinstance(top, dict):
        raise _wrong(path, "must hold a JSON object")
    if top.get("schema") != 1:
        raise _wrong(path, f"schema: {top.get('schema')!r} is not understood, only 1")
    workdir = _text(path, top, "workdir")
    if not workdir.startswith("/"):
        raise _wrong(path, f"workdir: {workdir!r} is not an absolute path")
    leases = top.get("leases", [])
    if not isinstance(leases, list):
        raise _wrong(path, "leases: must be a list of names")
    processes = top.get("processes")
    if not isinstance(processes, list) or not processes:
        raise _wrong(path, "processes: must be a list with at least one process")
    spec = Spec(
        run_id=_text(path, top, "run_id"),
        host=_text(path, top, "host"),
        workdir=workdir,
        grace_s=_seconds(path, top, "grace_s"),
        heartbeat_s=_seconds(path, top, "heartbeat_s", at_least=0.05),
        linger_s=_seconds(path, top, "linger_s", default=DEFAULT_LINGER_S),
        leases=tuple(_file_name(path, lease, "leases") for lease in leases),
        processes=tuple(_process(path, item, i) for i, item in enumerate(processes)),
    )
    _unique(path, "leases", spec.leases)
    _unique(path, "processes: name", tuple(p.name for p in spec.processes))
    ranks = tuple(p.rank for p in spec.processes if p.rank is not None)
    _unique(path, "processes: rank", ranks)
    if not ranks:
        raise _wrong(path, "processes: none of them is a rank")
    return spec


def _process(path: str, item: Any, index: int) -> ProcessSpec:
    where = f"processes[{index}]"
    if not isinstance(item, dict):
        raise _wrong(path, f"{where}: must be an object")
    rank = item.get("rank")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 0):
        raise _wrong(path, f"{where}.rank: {rank!r} is neither null nor a number from 0 up")
    argv = item.get("argv")
    if not isinstance(argv, list) or not argv or not all(_is_text(word) for word in argv):
        raise _wrong(path, f"{where}.argv: must be a list of words, at least one, without NUL")
    return ProcessSpec(_file_name(path, item.get("name"), f"{where}.name"), rank, tuple(argv))


def _text(path: str, top: Any, key: str) -> str:
    value = top.get(key)
    if not _is_text(value) or not value:
        raise _wrong(path, f"{key}: {value!r} is not a text")
    return str(value)


def _seconds(
    path: str, top: Any, key: str, at_least: float = 0.0, default: Optional[float] = None
) -> float:
    value = top.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _wrong(path, f"{key}: {value!r} is not a number of seconds")
    if not at_least <= value < 1e9:
        raise _wrong(path, f"{key}: {value!r} is out of range, from {at_least:g} up")
    return float(value)


def _file_name(path: str, value: Any, where: str) -> str:
    """A name that becomes a file or folder: it must not leave the folder it is put into."""
    if not _is_text(value) or not value or "/" in value or value in (".", ".."):
        raise _wrong(path, f"{where}: {value!r} is not a plain name")
    return str(value)


def _unique(path: str, where: str, values: Tuple[Any, ...]) -> None:
    for value in values:
        if values.count(value) > 1:
            raise _wrong(path, f"{where}: {value!r} appears twice")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _wrong(path: str, what: str) -> NodeError:
    return NodeError("spec", f"{path}: {what}", "launch again: the launcher writes this file")
