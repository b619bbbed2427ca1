"""Let a host send parts of its files, each verified as it arrives, over connections that may break.

The host's Python runs ``node/sender.py``, which travels in the command line: nothing is left there.
"""

from __future__ import annotations

import base64
import json
import logging
import threading
import time
import zlib
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files as package_files
from typing import (
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Protocol,
    Sequence,
    Tuple,
)

from orchestrator.checkpoints.catalogue import CheckpointFile
from orchestrator.engine.catalogue import Source
from orchestrator.errors import CheckpointError, HostNotReady, TransportError
from orchestrator.transport.base import Stream
from orchestrator.transport.pace import Pace

ATTEMPTS = 3
"""Times that a connection may break without one more byte before the command gives up."""

Progress = Callable[[int, int], None]
"""Called with bytes arrived and bytes in all, one call at a time, from any thread."""

logger = logging.getLogger(__name__)

_BOOT = (
    "import sys,zlib,base64;"
    "exec(compile(zlib.decompress(base64.b64decode(sys.argv[1])),'sender.py','exec'))"
)
_BEGIN = b"glm2-orch sends\n"
_MOST_NOISE = 64 << 10  # of login scripts, before the sender speaks
_MOST_ARGUMENT = 100_000  # Linux allows 128 KiB in one argument
_SHOW_EVERY_S = 0.1


@dataclass(frozen=True)
class Part:
    """What is wanted of a file: byte ranges, in this order. ``mtime_ns`` is its time of change."""

    file: CheckpointFile
    mtime_ns: int
    ranges: Tuple[Tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        return sum(length for _, length in self.ranges)


class Digest(NamedTuple):
    """What the host says of a part's bytes, having read them once."""

    sha256: str
    crc32: int


class Sink(Protocol):
    """Where the bytes of one part go."""

    def begin(self) -> int:
        """Bytes of the part that are here already; called again after a cut."""
        ...

    def accept(self, data: memoryview) -> None:
        """The next bytes."""
        ...

    def end(self, digest: Digest) -> None:
        """All bytes have come. The wire is authenticated by SSH; the CRC is for all other ways
        in which they can be damaged, at a quarter of what SHA-256 costs."""
        ...


class Meter:
    """Bytes that have arrived, over all threads. Shows them at most ten times a second."""

    def __init__(self, total: int, progress: Progress, pace: Optional[Pace] = None) -> None:
        self._total = total
        self._done = 0
        self._progress = progress
        self._pace = pace
        self._shown_at = time.monotonic()
        self._lock = threading.Lock()
        progress(0, total)

    def arrived(self, nbytes: int) -> None:
        """More bytes have come over the wire; waits where there is a limit on them."""
        self.here(nbytes)
        if self._pace is not None:
            self._pace.take(nbytes)

    def here(self, nbytes: int) -> None:
        """More bytes are here, however they came; less where some had to be thrown away."""
        with self._lock:
            self._done += nbytes
            now = time.monotonic()
            if now - self._shown_at >= _SHOW_EVERY_S:
                self._shown_at = now
                self._progress(min(self._done, self._total), self._total)

    def expect(self, nbytes: int) -> None:
        """The total is more than was thought."""
        with self._lock:
            self._total += nbytes

    def end(self) -> None:
        """Everything is here."""
        with self._lock:
            self._progress(self._total, self._total)


def receive(source: Source, parts: Sequence[Tuple[Part, Sink]], meter: Meter) -> None:
    """Let the host send all parts, one after the other, into their sinks.

    A cut connection is taken up where it broke. Raises TransportError when that fails too,
    CheckpointError when a file has changed or cannot be read, HostNotReady when the host's Python
    cannot be run.
    """
    ways = list(source.ways)
    pending = list(parts)
    failures = 0
    while pending:
        inbox: Optional[_Inbox] = None
        left = len(pending)
        asked = [(part, sink, sink.begin()) for part, sink in pending]
        argument = _request(source, asked)
        while len(argument) > _MOST_ARGUMENT and len(asked) > 1:
            asked = asked[: len(asked) // 2]
            argument = _request(source, asked)
        try:
            stream = ways[0]([source.sender[0], "-I", "-S", "-c", _BOOT, _program(), argument])
            inbox = _Inbox(source, stream)
            try:
                inbox.skip_noise()
                for part, sink, skip in asked:
                    for data in inbox.take(part.nbytes - skip):
                        sink.accept(data)
                        meter.arrived(len(data))
                    sink.end(inbox.digest())
                    del pending[0]
            finally:
                stream.close()
        except TransportError as error:
            if len(ways) > 1 and (inbox is None or not inbox.spoke):
                logger.warning("%s; trying without the system's ssh", error)
                del ways[0]
                continue
            failures = 0 if len(pending) < left or (inbox and inbox.received) else failures + 1
            if failures == ATTEMPTS:
                raise


class _Inbox:
    """What a host sends, cut into what was asked for."""

    def __init__(self, source: Source, stream: Stream) -> None:
        self.spoke = False
        self.received = 0
        self._source = source
        self._stream = stream
        self._chunks = iter(stream)
        self._rest = memoryview(b"")

    def skip_noise(self) -> None:
        """Go to where the sender begins to speak."""
        seen = b""
        while _BEGIN not in seen:
            if len(seen) > _MOST_NOISE:
                raise HostNotReady(
                    "the host's login prints text without end instead of what was asked for",
                    hint="make its shell's start-up files quiet for commands over ssh",
                    host=self._source.name,
                )
            seen += self._next()
        self._rest = memoryview(seen[seen.index(_BEGIN) + len(_BEGIN) :])
        self.spoke = True

    def take(self, nbytes: int) -> Iterator[memoryview]:
        """The next ``nbytes``, in pieces."""
        while nbytes:
            data = self._rest or memoryview(self._next())
            piece, self._rest = data[:nbytes], data[nbytes:]
            nbytes -= len(piece)
            self.received += len(piece)
            yield piece

    def digest(self) -> Digest:
        """The line that ends a part."""
        line = bytes(self._rest)
        while b"\n" not in line:
            if len(line) > 200:
                raise self._nonsense("a digest without end")
            line += self._next()
        line, _, rest = line.partition(b"\n")
        self._rest = memoryview(rest)
        try:
            said = json.loads(line)
            return Digest(str(said["sha256"]), int(said["crc32"]))
        except (ValueError, KeyError, TypeError) as error:
            raise self._nonsense(f"{line!r:.100} where a digest should be") from error

    def _next(self) -> bytes:
        chunk = next(self._chunks, b"")
        if chunk:
            return chunk
        status = self._stream.exit_status
        said = self._stream.stderr.decode("utf-8", "replace").strip().splitlines()
        if status in (126, 127):
            raise HostNotReady(
                f"{self._source.python} cannot be run",
                hint="set `python` of the host in the inventory",
                host=self._source.name,
            )
        if status == 4 and said:
            try:
                error = json.loads(said[-1])["error"]
                raise CheckpointError(
                    str(error["message"]),
                    hint="it is still being written, or damaged; collect again",
                    host=self._source.name,
                )
            except (ValueError, KeyError, TypeError):
                pass  # not ours: reported below with what was said
        raise self._nonsense(said[-1] if said else f"it ended with status {status}")

    def _nonsense(self, why: str) -> HostNotReady:
        return HostNotReady(
            f"the host did not send what was asked for: {why:.300}",
            hint=f"try `{self._source.python} --version` there; Python 3.7 or newer is needed",
            host=self._source.name,
        )


Asked = Sequence[Tuple[Part, Sink, int]]


def _request(source: Source, asked: Asked) -> str:
    parts: List[Dict[str, Any]] = [
        {
            "file": f"rank_{part.file.rank}/{part.file.name}",
            "size": part.file.size,
            "mtime_ns": part.mtime_ns,
            "skip": skip,
            "ranges": part.ranges,
        }
        for part, _, skip in asked
    ]
    request = {"folder": f"{source.sender[1]}/output/checkpoint", "parts": parts}
    return _packed(json.dumps(request, separators=(",", ":")).encode())


@lru_cache(maxsize=1)
def _program() -> str:
    return _packed(package_files("orchestrator.node").joinpath("sender.py").read_bytes())


def _packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")
