"""Staged files to all hosts, in a tree: the controller sends one copy, hosts pass it on.

1. Every host is asked what it has (``node/relay.py``); it listens for the others meanwhile.
2. When all have answered, they are put in an order: those that have everything first, then those
   that have most. Each one fetches from the one at half its place, and passes on each block as
   soon as it has checked it: one more level of the tree costs one more block, not one more copy.
3. The first is filled from here, when no host has it all; so is whoever is left by its peers.
4. When the last host is full, all are let go.

The tokens by which hosts know each other are made here, for this transfer, and travel over SSH.
"""

from __future__ import annotations

import hashlib
import json
import queue
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from orchestrator.engine.launch import OpenRun
from orchestrator.engine.manifests import BLOCK_BYTES, Manifest, manifests_of
from orchestrator.engine.shipped import shipped
from orchestrator.errors import HostNotReady, HostUnreachable, OrchError, SpecError, one_error
from orchestrator.inventory import Host
from orchestrator.job import Job
from orchestrator.preflight.needs import cluster_address
from orchestrator.transport.base import Transport
from orchestrator.transport.pool import Outcome, fan_out

Progress = Callable[[str], None]
CHILDREN = 2
"""Hosts that fetch from one host."""

_PUSHES = 4
"""Hosts that are filled from here at the same time."""
_PROGRESS_S = 1.0

_BOOT = "import sys;n=int(sys.argv[1]);exec(compile(sys.stdin.buffer.read(n),'relay.py','exec'))"


@dataclass(frozen=True)
class Staged:
    """What one host got, in bytes, and from where."""

    host: str
    from_controller: int
    from_peers: int
    notes: Tuple[str, ...] = ()
    """What went wrong on the way and was made good."""


def stage_files(
    hosts: Sequence[Host],
    transports: Mapping[str, Transport],
    manifests: Sequence[Manifest],
    *,
    encrypt: bool = False,
    verify: bool = False,
    progress: Progress = lambda text: None,
) -> List[Outcome[Staged]]:
    """Bring what ``manifests`` list to all ``hosts``; the outcome of each, in their order.

    What a host has already is not sent again; ``verify`` reads it all to be sure. ``encrypt``:
    hosts get everything from here, over SSH. Hosts that share a workdir are filled once.
    """
    first: Dict[str, Host] = {}
    for host in hosts:
        first.setdefault(host.shared_workdir or f"{host.name}:{host.workdir}", host)
    alone = list(first.values())
    rest = [host for host in hosts if host not in alone]
    found: Dict[str, Outcome[Staged]] = {}
    for group in (alone, rest):
        board = _Board(group, progress)
        options = _Options(encrypt, verify)
        sessions = [
            _Session(host, transports[host.name], manifests, board, options) for host in group
        ]
        outcomes = fan_out(sessions, _Session.run, limit=max(1, len(sessions)))
        found.update((outcome.host, outcome) for outcome in outcomes)
    return [found[host.name] for host in hosts]


def stage_run(
    run: OpenRun, job: Job, hosts: Sequence[Host], cache: Path, progress: Progress
) -> None:
    """Bring what ``job`` stages to all ``hosts``, as it was when the job was made, and journal what
    each one got. ``cache`` is that of ``manifests_of``.

    Raises SpecError when a source has changed since, and what stood in the way of hosts.
    """
    if not job.stage.items:
        return
    again, manifests = manifests_of(job, cache, progress)
    for item, now in zip(job.stage.items, again.stage.items):
        if item.digest != now.digest:
            raise SpecError(f"{item.source} has changed while it was staged", hint="launch again")
    outcomes = stage_files(
        hosts, run.transports, manifests, encrypt=job.stage.encrypt, progress=progress
    )
    for outcome in outcomes:
        if outcome.value is not None:
            run.journal.append("staged", **vars(outcome.value))
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors:
        raise one_error(f"staging: {len(errors)} of {len(outcomes)} hosts failed", errors)


def tree(names: Sequence[str], whole: int) -> Dict[str, Tuple[str, ...]]:
    """From whom each host fetches, nearest first, when the first ``whole`` have everything.

    >>> tree(["a", "b", "c", "d"], 0)
    {'a': (), 'b': ('a',), 'c': ('a',), 'd': ('b', 'a')}
    """
    above: Dict[str, Tuple[str, ...]] = {}
    for place, name in enumerate(names):
        if place < whole or place == 0:
            above[name] = ()
        else:
            parent = names[(place - 1) // CHILDREN]
            above[name] = (parent, *above[parent])
    return above


def program() -> bytes:
    """What is sent to a host: ``node/relay.py`` and what it needs, as one program.

    It ends at once: a usual end of Python waits two seconds for a thread that is still in the
    middle of printing, and then aborts. All that counts is on the disk by then.
    """
    return shipped(("staged", "relay"), "import os; os._exit(package.relay.main())")


@dataclass(frozen=True)
class _Options:
    encrypt: bool
    verify: bool


@dataclass
class _State:
    """What the controller knows of one host."""

    port: Optional[int] = None
    missing: int = 0
    """Bytes, when it was asked."""
    got: int = 0
    answered: bool = False
    over: bool = False
    """Full, or failed."""
    well: bool = True
    late: bool = False
    """Kept waiting by another transfer."""


class _Board:
    """Where the threads of all hosts meet."""

    def __init__(self, hosts: Sequence[Host], say: Progress) -> None:
        self.say = say
        self.pushing = threading.BoundedSemaphore(_PUSHES)
        self.tokens = {host.name: secrets.token_hex(32) for host in hosts}
        self._hosts = {host.name: host for host in hosts}
        self._states = {host.name: _State() for host in hosts}
        self._above: Optional[Dict[str, Tuple[str, ...]]] = None
        self._changed = threading.Condition()
        self._told = time.monotonic()

    def address_of(self, name: str) -> str:
        """Where the other hosts reach this one."""
        host = self._hosts[name]
        if host.connection == "local":
            return "127.0.0.1"
        address = cluster_address(host)
        return str(host.address) if address == "0.0.0.0" else address

    def sources(self, name: str, port: Optional[int], missing: int) -> List[Dict[str, Any]]:
        """Those that the host fetches from, nearest first, when all hosts have answered."""
        with self._changed:
            state = self._states[name]
            state.port, state.missing, state.answered = port, missing, True
            self._look()
            self._changed.wait_for(lambda: self._above is not None)
            assert self._above is not None
            above = self._above.get(name, tuple(self._above)[:CHILDREN])
            return [
                {
                    "host": other,
                    "address": self.address_of(other),
                    "port": self._states[other].port,
                    "token": self.tokens[other],
                }
                for other in above
                if self._states[other].port is not None
            ]

    def late(self, name: str) -> None:
        """The host cannot answer before another transfer has ended, which may wait for hosts that
        we fill: it is left out of the tree, and fetches from those at its top later."""
        with self._changed:
            state = self._states[name]
            state.answered = state.late = True
            self._look()

    def progress(self, name: str, got: int) -> None:
        with self._changed:
            self._states[name].got = got
            now = time.monotonic()
            if now - self._told < _PROGRESS_S:
                return
            self._told = now
            needed = sum(state.missing for state in self._states.values())
            done = sum(state.got for state in self._states.values())
            full = sum(state.over for state in self._states.values())
        self.say(f"staging: {full}/{len(self._states)} hosts, {done:,} of {needed:,} bytes there")

    def over(self, name: str, *, well: bool) -> None:
        """The host is full, or failed."""
        with self._changed:
            state = self._states[name]
            state.answered = state.over = True
            state.well = state.well and well
            self._look()

    def wait_for_all(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: all(state.over for state in self._states.values()))

    def _look(self) -> None:
        if self._above is None and all(state.answered for state in self._states.values()):
            well = [n for n, state in self._states.items() if state.well and not state.late]
            order = sorted(well, key=lambda name: self._states[name].missing)
            whole = sum(not self._states[name].missing for name in well)
            self._above = tree(order, whole)
        self._changed.notify_all()


class _Session:
    """The conversation with one host."""

    def __init__(
        self,
        host: Host,
        transport: Transport,
        manifests: Sequence[Manifest],
        board: _Board,
        options: _Options,
    ) -> None:
        self.name = host.name
        self._host = host
        self._transport = transport
        self._manifests = manifests
        self._board = board
        self._options = options
        self._outgoing: queue.SimpleQueue[Union[bytes, Sequence[int], None]] = queue.SimpleQueue()
        self._rest = b""
        self._full: Optional[Staged] = None
        self._error: Optional[OrchError] = None
        self._notes: List[str] = []

    def run(self) -> Staged:
        """Fill the host. Raises what stood in the way."""
        code = program()
        argv = [self._host.python, "-I", "-c", _BOOT, str(len(code))]
        try:
            done = self._transport.feed(argv, self._chunks(code), on_output=self._hear)
        finally:
            self._board.over(self.name, well=self._full is not None)
        if self._error is not None:
            raise self._error
        if self._full is not None:
            return self._full
        said = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"])[
            -1
        ]
        if done.exit_status in (126, 127):
            raise HostNotReady(
                f"no usable Python at {self._host.python!r}: {said}",
                hint="name a Python 3.7 or newer of this host as `python` in the inventory",
                host=self.name,
            )
        raise HostUnreachable(
            f"the transfer ended early (exit status {done.exit_status}): {said}",
            hint="repeat the command: what has arrived is kept",
            host=self.name,
        )

    def _chunks(self, code: bytes) -> Iterator[bytes]:
        """What goes to the host, in the feeder's thread."""
        yield code
        yield _line(self._request())
        while True:
            item = self._outgoing.get()
            if item is None:
                return
            if isinstance(item, bytes):
                yield item
                continue
            with self._board.pushing:
                yield from self._blocks(item)

    def _request(self) -> Dict[str, Any]:
        items = [manifest.item for manifest in self._manifests]
        return {
            "workdir": self._host.workdir,
            "block_bytes": BLOCK_BYTES,
            "trees": [{"digest": m.digest, "files": m.files} for m in self._manifests],
            "places": [
                {"path": item.place, "tree": item.digest, "file": item.file}
                for item in items
                if item.place is not None
            ],
            "verify": self._options.verify,
            "serve": None if self._options.encrypt else self._board.address_of(self.name),
            "token": self._board.tokens[self.name],
        }

    def _blocks(self, wanted: Sequence[int]) -> Iterator[bytes]:
        """Blocks of the local files, by their numbers through all manifests; rising."""
        numbers = iter(sorted(wanted))
        at, index = next(numbers, None), 0
        for manifest in self._manifests:
            for file in manifest.files:
                blocks = file["blocks"]
                path = manifest.source_of(file["path"])
                while at is not None and at < index + len(blocks):
                    data = _read_block(path, at - index, blocks[at - index])
                    yield _line({"block": at, "size": len(data)}) + data
                    at = next(numbers, None)
                index += len(blocks)

    def _hear(self, piece: bytes) -> None:
        """What the host says, in this host's own thread."""
        if not piece:
            self._outgoing.put(None)
            return
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            try:
                message = json.loads(line)
            except ValueError:
                continue  # a login script may print lines of its own
            try:
                self._answer(message)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise HostNotReady(
                    f"its answer makes no sense ({error!r})",
                    hint="check that nothing else prints on a login without terminal",
                    host=self.name,
                ) from error

    def _answer(self, message: Mapping[str, Any]) -> None:
        if "ready" in message:
            self._ready(message["ready"])
        elif "progress" in message:
            self._board.progress(self.name, sum(message["progress"].values()))
        elif "waits" in message:
            self._board.say(f"{self.name}: waits for another transfer to {message['waits']}")
            self._board.late(self.name)
        elif "stuck" in message:
            self._notes += message["stuck"]["reasons"]
            for reason in message["stuck"]["reasons"]:
                self._board.say(f"{self.name}: {reason}; it gets the rest from here")
            self._push(message["stuck"]["missing"])
        elif "filled" in message:
            counts = message["filled"]["bytes"]
            notes = (*self._notes, *message["filled"]["reasons"])
            self._full = Staged(self.name, counts["controller"], counts["peers"], notes)
            self._board.over(self.name, well=True)
            self._board.wait_for_all()
            self._outgoing.put(None)
        elif "error" in message:
            error = message["error"]
            self._error = HostNotReady(error["message"], hint=error["hint"], host=self.name)
            self._board.over(self.name, well=False)

    def _ready(self, ready: Mapping[str, Any]) -> None:
        if ready["problem"]:
            self._notes.append(str(ready["problem"]))
        sources = self._board.sources(self.name, ready["port"], int(ready["bytes"]))
        if not ready["missing"]:
            return
        if self._options.encrypt or not sources:
            self._push(ready["missing"])
        else:
            self._outgoing.put(_line({"pull": sources}))

    def _push(self, missing: Sequence[int]) -> None:
        """Fill the host from here."""
        total = sum(len(file["blocks"]) for m in self._manifests for file in m.files)
        wanted = [index for index in missing if 0 <= int(index) < total]
        self._outgoing.put(wanted)


def _read_block(path: str, number: int, sha256: str) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(number * BLOCK_BYTES)
            data = file.read(BLOCK_BYTES)
    except OSError as error:
        raise SpecError(f"cannot read {path} to stage it: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise SpecError(f"{path} has changed while it was staged", hint="repeat the command")
    return data


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode("ascii") + b"\n"
