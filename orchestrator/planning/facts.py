"""What a host told about itself: the JSON of ``node/probe.py`` -> HostFacts (frozen)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Dict, List, Mapping, Optional, Tuple, Type, TypeVar, cast

from orchestrator.errors import HostNotReady
from orchestrator.problems import shown

SCHEMA = 1

_T = TypeVar("_T")


@dataclass(frozen=True)
class WorkdirFacts:
    """The work folder on the host. None: not known."""

    path: Optional[str] = None
    exists: Optional[bool] = None
    writable: Optional[bool] = None
    error: Optional[str] = None
    free_bytes: Optional[int] = None


@dataclass(frozen=True)
class HostFacts:
    """Facts of one host. None means not known, which is not the same as zero or absent."""

    hostname: Optional[str] = None
    fqdn: Optional[str] = None
    wall: Optional[float] = None
    """The host's clock, seconds since 1970, when it was asked."""
    mono: Optional[float] = None
    python: Optional[str] = None
    python_executable: Optional[str] = None
    mindspore: Optional[str] = None
    mindspore_error: Optional[str] = None
    cann: Optional[str] = None
    driver: Optional[str] = None
    firmware: Optional[str] = None
    device_ips: Mapping[int, str] = field(default_factory=dict)
    """IP of each device's NIC, by device id; a device that is absent here is not known."""
    device_ip_source: Optional[str] = None
    """``hccn_tool`` or ``hccn.conf``."""
    device_ip_errors: Mapping[int, str] = field(default_factory=dict)
    workdir: WorkdirFacts = WorkdirFacts()
    shm_free_bytes: Optional[int] = None
    free_port: Optional[int] = None
    """A TCP port that nobody listened on."""
    uid: Optional[int] = None
    user: Optional[str] = None
    boot_id: Optional[str] = None
    cpu_count: Optional[int] = None


VERSIONS = ("driver", "firmware", "cann", "mindspore", "python")


def alike(facts: Mapping[str, HostFacts]) -> List[Dict[str, object]]:
    """Hosts that have the same software, the largest group first: ``hosts`` and, by the names of
    ``VERSIONS``, what they have; None is not known.

    >>> alike({"a": HostFacts(python="3.9.2"), "b": HostFacts(python="3.9.2")})[0]["hosts"]
    ['a', 'b']
    """
    groups: Dict[Tuple[Optional[str], ...], List[str]] = {}
    for name, known in facts.items():
        groups.setdefault(tuple(getattr(known, key) for key in VERSIONS), []).append(name)
    largest_first = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [{"hosts": hosts, **dict(zip(VERSIONS, have))} for have, hosts in largest_first]


def parse_facts(data: object, *, host: str = "") -> HostFacts:
    """Facts from the decoded JSON that the probe printed on ``host``.

    Missing keys are not known (None); unknown keys are left alone, for newer probes. Raises
    HostNotReady when a value has the wrong type or the schema is another.
    """
    reader = _Reader(host)
    top = reader.mapping(data, "the answer")
    if top.get("schema") != SCHEMA:
        raise HostNotReady(
            f"the probe answered with schema {shown(repr(top.get('schema')))}, not {SCHEMA}",
            host=host,
            hint="controller and probe are of different versions; run the command again",
        )
    return HostFacts(
        hostname=reader.optional(top, "hostname", str),
        fqdn=reader.optional(top, "fqdn", str),
        wall=reader.number(top, "wall"),
        mono=reader.number(top, "mono"),
        python=reader.optional(top, "python", str),
        python_executable=reader.optional(top, "python_executable", str),
        mindspore=reader.optional(top, "mindspore", str),
        mindspore_error=reader.optional(top, "mindspore_error", str),
        cann=reader.optional(top, "cann", str),
        driver=reader.optional(top, "driver", str),
        firmware=reader.optional(top, "firmware", str),
        device_ips=reader.by_device(top, "device_ips"),
        device_ip_source=reader.optional(top, "device_ip_source", str),
        device_ip_errors=reader.by_device(top, "device_ip_errors"),
        workdir=_workdir(reader, top.get("workdir")),
        shm_free_bytes=reader.optional(top, "shm_free_bytes", int),
        free_port=reader.optional(top, "free_port", int),
        uid=reader.optional(top, "uid", int),
        user=reader.optional(top, "user", str),
        boot_id=reader.optional(top, "boot_id", str),
        cpu_count=reader.optional(top, "cpu_count", int),
    )


def _workdir(reader: _Reader, data: object) -> WorkdirFacts:
    if data is None:
        return WorkdirFacts()
    folder = reader.mapping(data, "`workdir`")
    return WorkdirFacts(
        path=reader.optional(folder, "path", str),
        exists=reader.optional(folder, "exists", bool),
        writable=reader.optional(folder, "writable", bool),
        error=reader.optional(folder, "error", str),
        free_bytes=reader.optional(folder, "free_bytes", int),
    )


class _Reader:
    def __init__(self, host: str) -> None:
        self.host = host

    def mapping(self, data: object, what: str) -> Mapping[str, object]:
        if not isinstance(data, dict):
            raise self._wrong(what, "an object", data)
        return cast("Mapping[str, object]", data)

    def optional(self, data: Mapping[str, object], key: str, kind: Type[_T]) -> Optional[_T]:
        value = data.get(key)
        if value is None:
            return None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self._wrong(f"`{key}`", f"of type {kind.__name__}", value)
        return value

    def number(self, data: Mapping[str, object], key: str) -> Optional[float]:
        value = data.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return self.optional(data, key, float)

    def by_device(self, data: Mapping[str, object], key: str) -> Dict[int, str]:
        if data.get(key) is None:
            return {}
        pairs = (self._pair(key, item) for item in self.mapping(data[key], f"`{key}`").items())
        return dict(sorted(pairs))

    def _pair(self, key: str, item: Tuple[str, object]) -> Tuple[int, str]:
        device, text = item
        if not device.isdecimal() or not isinstance(text, str):
            raise self._wrong(f"`{key}`", "a mapping from device ids to texts", item)
        return int(device), text

    def _wrong(self, what: str, expected: str, value: object) -> HostNotReady:
        return HostNotReady(
            f"the probe's answer is not usable: {what} is not {expected} but {shown(repr(value))}",
            host=self.host,
            hint="check that nothing else prints on a login without terminal",
        )
