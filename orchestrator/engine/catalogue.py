"""Ask a host what it holds of a run's checkpoints, and believe nothing of the answer unchecked.

The host's Python runs ``node/catalogue.py``, which is sent over standard input.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import sys
from dataclasses import dataclass
from importlib.resources import files as package_files
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, TypeVar, cast

from orchestrator.checkpoints.catalogue import CheckpointFile, checkpoint_file
from orchestrator.errors import CheckpointError, HostNotReady, one_error
from orchestrator.transport.base import Streams, Transport
from orchestrator.transport.local import LocalTransport
from orchestrator.transport.pool import fan_out

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """One host's part of a run: its ranks write below ``run_dir``."""

    transport: Transport
    python: str
    run_dir: str
    ranks: Tuple[int, ...]
    streams: Tuple[Streams, ...] = ()
    """Ways to start a long transfer, the preferred first; empty: the transport's own."""
    is_local: bool = False
    shared_dir: Optional[str] = None
    """Where this machine sees ``run_dir``, on a file system that both share."""

    @property
    def name(self) -> str:
        return self.transport.name

    @property
    def ways(self) -> Tuple[Streams, ...]:
        """Ways to start the sender; where its files are shared, it runs here."""
        if self.shared_dir is not None:
            return (LocalTransport(self.name, python=sys.executable).stream,)
        return self.streams or (self.transport.stream,)

    @property
    def sender(self) -> Tuple[str, str]:
        """Python and run folder for the sender, at the end of ``ways``."""
        if self.shared_dir is not None:
            return sys.executable, self.shared_dir
        return self.python, self.run_dir

    @property
    def distance(self) -> int:
        """0: a shared file system, 1: this machine, 2: the network is between."""
        if self.shared_dir is not None:
            return 0
        return 1 if self.is_local else 2


@dataclass(frozen=True)
class Listing:
    """What a host holds. ``changed`` is each file's time of change in ns, by rank and path;
    ``strategies`` the content of its strategy files by name."""

    files: Tuple[CheckpointFile, ...]
    changed: Mapping[Tuple[int, str], int]
    strategies: Mapping[str, bytes]


Digests = Mapping[str, Mapping[str, Any]]
"""What the host says of each file (``rank_N/name``): size, mtime_ns, sha256."""


@dataclass(frozen=True)
class Outline:
    """A file without the content of its tensors: ``pieces`` are ``(offset, bytes)`` of the rest."""

    size: int
    mtime_ns: int
    pieces: Tuple[Tuple[int, bytes], ...]


def on_holders(
    sources: Sequence[Source],
    files: Sequence[CheckpointFile],
    function: Callable[[Source, List[CheckpointFile]], T],
) -> List[T]:
    """Call ``function`` for every host that holds some of the files, with those; many at once.

    Results in the order of the hosts. Raises the errors of all hosts that failed.
    """
    held: Dict[str, List[CheckpointFile]] = {}
    for file in files:
        held.setdefault(file.host, []).append(file)
    holders = [source for source in sources if source.name in held]
    outcomes = fan_out(holders, lambda source: function(source, held[source.name]))
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors:
        raise one_error(f"{len(errors)} of {len(outcomes)} hosts could not send all", errors)
    return [cast(T, outcome.value) for outcome in outcomes]


def list_checkpoints(source: Source) -> Listing:
    """The host's checkpoint and strategy files.

    Raises TransportError, HostNotReady when its Python cannot be run or answers nonsense, and
    CheckpointError for a file name that could mean a place outside its folder.
    """
    ranks = ",".join(str(rank) for rank in source.ranks)
    answers = _ask(source, "list", "--run-dir", source.run_dir, "--ranks", ranks)
    try:
        (answer,) = answers
        files: List[CheckpointFile] = []
        changed: Dict[Tuple[int, str], int] = {}
        for entry in answer["files"]:
            rank, name = entry["rank"], _safe_name(source, entry["name"])
            if rank not in source.ranks:
                raise ValueError(f"a file of rank {rank}, which does not run there")
            if int(entry["size"]) < 0:
                raise ValueError(f"{name} of {entry['size']} bytes")
            path = f"{source.run_dir}/output/checkpoint/rank_{rank}/{name}"
            file = checkpoint_file(rank, path, size=int(entry["size"]), host=source.name)
            if file is not None:
                files.append(file)
                changed[rank, path] = int(entry["mtime_ns"])
        strategies = {
            _safe_name(source, entry["name"]): base64.b64decode(answer["contents"][entry["sha256"]])
            for entry in answer["strategy"]
        }
        for entry in answer["strategy"]:
            if hashlib.sha256(strategies[entry["name"]]).hexdigest() != entry["sha256"]:
                raise ValueError(f"{entry['name']} does not have its digest")
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise _bad_answer(source, str(error)) from error
    return Listing(tuple(files), changed, strategies)


def digests(source: Source, files: Sequence[CheckpointFile]) -> Digests:
    """Let the host compute the SHA-256 of its files; takes as long as reading them does."""
    names = [f"rank_{file.rank}/{file.name}" for file in files]
    answers = _ask(source, "hash", "--run-dir", source.run_dir, *names)
    found = {str(answer.get("file")): answer for answer in answers}
    for name in names:
        entry = found.get(name, {})
        if not isinstance(entry.get("sha256"), str) or not isinstance(entry.get("mtime_ns"), int):
            raise _bad_answer(source, f"no digest of {name}")
    return found


def outlines(source: Source, files: Sequence[CheckpointFile]) -> Dict[int, Outline]:
    """What the host's files hold besides content, by rank: enough to index them here."""
    names = {f"rank_{file.rank}/{file.name}": file for file in files}
    found: Dict[int, Outline] = {}
    try:
        for answer in _ask(source, "outline", "--run-dir", source.run_dir, *names):
            pieces = tuple(
                (int(offset), base64.b64decode(data)) for offset, data in answer["pieces"]
            )
            file = names[answer["file"]]
            size = int(answer["size"])
            if any(offset < 0 or offset + len(data) > size for offset, data in pieces):
                raise ValueError(f"bytes beyond the end of {file.name}")
            found[file.rank] = Outline(size, int(answer["mtime_ns"]), pieces)
        if len(found) != len(names):
            raise ValueError(f"{len(found)} of {len(names)} files")
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise _bad_answer(source, str(error)) from error
    return found


def _ask(source: Source, *arguments: str) -> List[Dict[str, Any]]:
    """Run the catalogue on the host; its answer, an object a line."""
    program = package_files("orchestrator.node").joinpath("catalogue.py").read_bytes()
    # Without site packages, which it does not need: they take as long as the rest of the start.
    argv = [source.python, "-I", "-S", "-", *arguments]
    # Hashing takes as long as it takes; a dead connection is noticed by the transport itself.
    timeout = 120.0 if arguments[0] == "list" else None
    completed = source.transport.run(argv, stdin=program, timeout=timeout)
    if completed.exit_status in (126, 127):
        raise HostNotReady(
            f"{source.python} cannot be run",
            hint="set `python` of the host in the inventory",
            host=source.name,
        )
    try:
        answers = [json.loads(line) for line in completed.stdout.splitlines()]
        if answers and "error" in answers[-1]:
            raise HostNotReady(str(answers[-1]["error"]["message"]), host=source.name)
        if completed.exit_status != 0 or not all(isinstance(a, dict) for a in answers):
            raise ValueError(f"it ended with status {completed.exit_status}")
    except (ValueError, KeyError, TypeError) as error:
        tail = completed.stderr.decode("utf-8", "replace").strip().splitlines()
        raise _bad_answer(source, tail[-1] if tail else str(error)) from error
    return answers


def _bad_answer(source: Source, why: str) -> HostNotReady:
    return HostNotReady(
        f"the catalogue of checkpoints cannot be read: {why:.300}",
        hint=f"try `{source.python} --version` on the host; Python 3.7 or newer is needed",
        host=source.name,
    )


def _safe_name(source: Source, name: object) -> str:
    """A file name from a host, if it can only ever mean a file in the folder meant for it."""
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or "/" in name
        or not name.isprintable()
        or len(name.encode("utf-8", "surrogatepass")) > 200
    ):
        raise CheckpointError(
            f"the host lists a file named {name!r:.80}, which is refused",
            hint="rename or remove it on the host",
            host=source.name,
        )
    return name
