"""What one host answered: the JSON of ``node/preflight.py`` -> HostReport (frozen)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional, Tuple, Type, TypeVar, Union

from orchestrator.errors import HostNotReady
from orchestrator.planning.facts import HostFacts, parse_facts
from orchestrator.preflight.tools import Fact, NotUnderstood, Unanswered, device_of, parse
from orchestrator.problems import shown

SCHEMA = 1

_T = TypeVar("_T")


@dataclass(frozen=True)
class Answer:
    """What a tool said, of which device (None: of the host)."""

    argv: Tuple[str, ...]
    device: Optional[int]
    said: Union[Fact, NotUnderstood, Unanswered]

    @property
    def tool(self) -> str:
        return self.argv[0]


@dataclass(frozen=True)
class FileFacts:
    """A file or folder that the job reads, as the host has it."""

    path: str
    missing: bool
    error: Optional[str] = None
    """Why it could not be read."""
    bytes: int = 0
    sha256: Optional[str] = None
    """None: a folder that was only looked for."""
    sampled: bool = False
    """The digest is of samples, not of every byte."""


@dataclass(frozen=True)
class Clock:
    """Readings of the host's clocks when it began and when it had finished, in seconds."""

    start_wall: float
    start_mono: float
    end_mono: float

    @property
    def duration(self) -> float:
        return self.end_mono - self.start_mono


@dataclass(frozen=True)
class HostReport:
    facts: HostFacts
    clock: Clock
    answers: Tuple[Answer, ...] = ()
    run_ids: Mapping[int, str] = field(default_factory=dict)
    """Run of glm2-orch by process id."""
    ports_taken: Mapping[int, str] = field(default_factory=dict)
    """Ports that are not free, and who has them (empty: not known)."""
    peers: Tuple[Optional[str], ...] = ()
    """What stands between the host and the peers that it was to reach, in their order."""
    name_error: Optional[str] = None
    """Why the host cannot resolve its own name."""
    shm_free_bytes: Optional[int] = None
    open_files: Optional[int] = None
    """None: unlimited."""
    code: Optional[str] = None
    """Digest of the glm2 that is installed there."""
    files: Mapping[str, FileFacts] = field(default_factory=dict)


def parse_report(data: Mapping[str, Any], *, host: str) -> HostReport:
    """The report that a host gave. Raises HostNotReady when it has another form."""
    try:
        if data["schema"] != SCHEMA:
            raise ValueError(f"schema {data['schema']!r}")
        soft, names, shm, code = data["open_files"][0], data["names"], data["shm"], data["code"]
        return HostReport(
            facts=parse_facts(data["facts"], host=host),
            clock=_clock(data["start"], data["end"]),
            answers=parse_answers(data["commands"]),
            run_ids={int(pid): _a(str, run) for pid, run in data["run_ids"].items()},
            ports_taken={int(port): _holder(who) for port, who in data["ports"].items()},
            peers=tuple(None if e is None else _a(str, e) for e in data["peers"]),
            name_error=None if names["addresses"] else str(names["error"]),
            shm_free_bytes=None if shm is None else _a(int, shm["free_bytes"]),
            open_files=None if soft < 0 else _a(int, soft),
            code=None if code is None else _a(str, code["sha256"]),
            files={file["path"]: _file(file) for file in data["files"]},
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise HostNotReady(
            f"the answer to the preflight is not usable: {shown(repr(error))}",
            host=host,
            hint="check that nothing else prints on a login without terminal; then run it again",
        ) from error


def parse_answers(commands: Any) -> Tuple[Answer, ...]:
    """Outputs of tools, understood or not. Raises KeyError, TypeError or ValueError."""
    return tuple(_answer(command) for command in commands)


def _answer(command: Mapping[str, Any]) -> Answer:
    argv = tuple(_a(str, word) for word in command["argv"])
    status, output = command["status"], _a(str, command["output"])
    said: Union[Fact, NotUnderstood, Unanswered]
    if status is None:
        said = Unanswered(" ".join(argv), _a(str, command["error"]))
    else:
        said = parse(argv, output, _a(int, status))
    if not argv:
        raise ValueError("an answer without a command")
    return Answer(argv, device_of(argv).get("device"), said)


def _clock(start: Mapping[str, Any], end: Mapping[str, Any]) -> Clock:
    return Clock(float(start["wall"]), float(start["mono"]), float(end["mono"]))


def _holder(who: Any) -> str:
    return "" if who is None else f"{_a(str, who['command'])} (pid {_a(int, who['pid'])})"


def _file(file: Mapping[str, Any]) -> FileFacts:
    path, missing, error = _a(str, file["path"]), _a(bool, file["missing"]), file["error"]
    if error is not None:
        return FileFacts(path, missing, _a(str, error))
    size, digest = _a(int, file["bytes"]), file["sha256"]
    digest = None if digest is None else _a(str, digest)
    return FileFacts(path, missing, None, size, digest, _a(bool, file["sampled"]))


def _a(kind: Type[_T], value: Any) -> _T:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value


def answers_by_topic(report: HostReport, kind: Type[_T]) -> Dict[Optional[int], _T]:
    """What was said of a kind of fact, by device."""
    return {a.device: a.said for a in report.answers if isinstance(a.said, kind)}
