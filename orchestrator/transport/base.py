"""The seam between glm2-orch and a host: run a command, move files, follow a stream.

Two implementations exist, ``ssh`` (paramiko) and ``local`` (subprocess). Tests may pass any
object of this shape. A transport serves one host, keeps one connection, and may be used from
several threads at once. It connects when it is first used and again when the connection has died
in the meantime; a command that has been started is never repeated. Every error carries ``host``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Iterator, Optional, Protocol, Sequence


@dataclass(frozen=True)
class Completed:
    """A command that ended on the host with a known exit status (a signal is 128 + number)."""

    exit_status: int
    stdout: bytes
    stderr: bytes

    @property
    def ok(self) -> bool:
        return self.exit_status == 0


@dataclass(frozen=True)
class RemoteFile:
    """One file to be written on a host: path relative to the destination, content or source, mode.

    Exactly one of ``content`` and ``source`` (a local file) is given.
    """

    path: str
    content: Optional[bytes] = None
    source: Optional[Path] = None
    mode: int = 0o600


class Stream(Protocol):
    """Standard output of a running remote command, as it arrives.

    Iteration yields chunks of bytes and ends at end of file. A connection that is lost raises
    TransportError from the iterator: the command may still be running. The command's standard
    input stays open and empty until ``close`` or the loss of the connection, so that a command
    can watch it to learn that nobody follows any more.
    """

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None:
        """Stop reading and drop the channel; safe from another thread, and twice.

        A local command is ended. A remote one learns of it by its next read or write; one that
        does neither lives on.
        """
        ...

    @property
    def exit_status(self) -> Optional[int]:
        """Exit status once the stream has ended; None where it is not known."""
        ...

    @property
    def stderr(self) -> bytes:
        """The last 8 KiB of standard error so far: why a command ended that should not have."""
        ...


Streams = Callable[[Sequence[str]], Stream]
"""Starts a command on one host and hands out its standard output: ``Transport.stream``."""


class Transport(Protocol):
    """What the engine needs of a host. All failures of the wire raise TransportError subclasses."""

    name: str
    """Inventory name of the host."""

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout: Optional[float] = 60.0
    ) -> Completed:
        """Run ``argv`` (quoted by the transport, so no shell interprets it) and wait.

        A non-zero exit is a result, not an error; a program that does not exist or cannot be
        run is exit status 127 or 126, as in a shell. ``timeout`` in seconds raises HostTimeout
        (a local command is killed; a remote one may live on). A connection lost before the exit
        status has arrived raises HostUnreachable: what happened there is unknown.
        """
        ...

    def feed(
        self,
        argv: Sequence[str],
        chunks: Iterable[bytes],
        *,
        timeout: Optional[float] = None,
        on_output: Callable[[bytes], None],
    ) -> Completed:
        """``run`` for a conversation: standard input is made while it is sent, and standard output
        is handed to ``on_output`` as it comes (the answer's ``stdout`` is empty).

        ``on_output`` is called in this thread, and once more with nothing when no more will
        come, for whatever reason; ``chunks``, which are taken in another thread, must end then.
        """
        ...

    def put(self, files: Sequence[RemoteFile], dest: str) -> None:
        """Write ``files`` below the folder ``dest`` (made when missing), each atomically, verified
        by SHA-256 on the host. One round trip. Needs the host's Python.

        Raises HostNotReady when the host has no Python or the folder cannot be written (the
        message names the folder and the reason: permission, read-only, no space); nothing is
        left behind then. Raises SpecError when a source cannot be read here.
        """
        ...

    def stream(self, argv: Sequence[str]) -> Stream:
        """Start ``argv`` and hand out its standard output as it arrives."""
        ...

    def close(self) -> None:
        """End the connection for good: whoever still waits on it gets a TransportError."""
        ...
