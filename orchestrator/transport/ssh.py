"""A host reached over SSH: one kept paramiko connection, any number of commands on it."""

from __future__ import annotations

import contextlib
import shlex
import socket
import threading
import time
from typing import Callable, Iterable, Iterator, Optional, Sequence

import paramiko

from orchestrator.errors import HostTimeout, HostUnreachable, TransportError
from orchestrator.inventory import Host
from orchestrator.transport.base import Completed, RemoteFile, Stream
from orchestrator.transport.files import put_files
from orchestrator.transport.handshake import drop_connection, open_connection
from orchestrator.transport.pipes import (
    CHUNK,
    STDERR_TAIL,
    Collector,
    Feeder,
    ended_with_nothing,
)

# sshd allows 10 sessions a connection (MaxSessions) and counts an ended one until its next look
# around: four at once are at most eight, which leaves two for streams.
_SESSIONS = 4
_REFUSED_RETRIES = 20
_REFUSED_PAUSE_S = 0.1
_EXIT_AFTER_EOF_S = 10.0
_REST_OF_STDERR_S = 2.0


class SshTransport:
    """Transport to ``host`` over SSH. See ``handshake`` for how it connects.

    ``host.ssh.connect_timeout`` bounds connecting, key exchange and authentication together. A
    network that falls silent is noticed within about 20 s.
    """

    def __init__(self, host: Host) -> None:
        self.name = host.name
        self._host = host
        self._connecting = threading.Lock()
        self._sessions = threading.BoundedSemaphore(_SESSIONS)
        self._connection: Optional[paramiko.Transport] = None
        self._closed = False

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout: Optional[float] = 60.0
    ) -> Completed:
        return self._exchange(argv, [stdin] if stdin else None, timeout)

    def feed(
        self,
        argv: Sequence[str],
        chunks: Iterable[bytes],
        *,
        timeout: Optional[float] = None,
        on_output: Callable[[bytes], None],
    ) -> Completed:
        return self._exchange(argv, chunks, timeout, on_output)

    def put(self, files: Sequence[RemoteFile], dest: str) -> None:
        python = self._host.python
        put_files(self._exchange, host=self.name, python=python, files=files, dest=dest)

    def stream(self, argv: Sequence[str]) -> Stream:
        return SshStream(self.name, argv, self._start(argv))

    def close(self) -> None:
        self._closed = True
        connection = self._connection
        if connection is not None:
            drop_connection(connection)

    def _exchange(
        self,
        argv: Sequence[str],
        stdin: Optional[Iterable[bytes]],
        timeout: Optional[float],
        on_output: Optional[Callable[[bytes], None]] = None,
    ) -> Completed:
        """Run ``argv`` with the chunks of ``stdin``, None: with nothing to read.

        A command without input gets it from its shell. The end of its input, sent by a thread of
        ours, could come after paramiko's answer to the end of a short command, for which sshd
        ends the connection, with all else that runs on it.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        stdout = bytearray()
        take = stdout.extend if on_output is None else on_output
        with self._sessions, ended_with_nothing(on_output):
            channel = self._start(argv, timeout, from_nothing=stdin is None)
            try:
                feeder = None
                if stdin is not None:
                    write, end = _as_pipe(channel.sendall), _as_pipe(channel.shutdown_write)
                    feeder = Feeder(stdin, write, end)
                stderr = Collector(channel.recv_stderr)
                while True:
                    channel.settimeout(_remaining(deadline))
                    chunk = channel.recv(CHUNK)
                    if not chunk:
                        break
                    take(chunk)
                if not channel.status_event.wait(_remaining(deadline)):
                    raise socket.timeout
                stderr.join(_remaining(deadline))
            except socket.timeout:
                raise HostTimeout(
                    f"`{argv[0]}` has not ended within {timeout:g} s",
                    hint="it may still be running there",
                    host=self.name,
                ) from None
            finally:
                _close(channel)
        if feeder:
            feeder.join()
            if feeder.error:
                raise feeder.error
        if channel.exit_status < 0:
            raise _connection_lost(self.name, argv)
        return Completed(channel.exit_status, bytes(stdout), stderr.data)

    def _start(
        self, argv: Sequence[str], timeout: Optional[float] = None, *, from_nothing: bool = False
    ) -> paramiko.Channel:
        """A channel on which ``argv`` has been started; ``from_nothing``: without an input."""
        channel = self._open_channel(timeout)
        try:
            channel.exec_command(_command_line(argv, from_nothing))
        except (paramiko.SSHException, EOFError, OSError) as failure:
            _close(channel)
            raise _connection_lost(self.name, argv) from failure
        return channel

    def _open_channel(self, timeout: Optional[float]) -> paramiko.Channel:
        """A new channel, on a new connection if the kept one has died unnoticed.

        Nothing has been started yet, so this is safe to repeat; a started command is not.
        """
        limit = self._host.ssh.connect_timeout
        limit = limit if timeout is None else min(limit, timeout)
        refusals = 0
        while True:
            kept = self._connection
            connection = self._connected()
            started = time.monotonic()
            try:
                return connection.open_session(timeout=limit)
            except paramiko.ChannelException as refusal:
                refusals += 1
                if refusals > _REFUSED_RETRIES:
                    raise HostUnreachable(
                        f"the server refused another session: {refusal}",
                        hint="raise MaxSessions in its sshd_config, or look into its log",
                        host=self.name,
                    ) from refusal
                time.sleep(_REFUSED_PAUSE_S)
            except (paramiko.SSHException, EOFError, OSError) as failure:
                drop_connection(connection)
                if time.monotonic() - started >= limit:
                    raise HostTimeout(
                        f"no answer on the open connection within {limit:g} s",
                        hint="the network may be down, or the host overloaded",
                        host=self.name,
                    ) from failure
                if connection is not kept or self._closed:
                    raise HostUnreachable(
                        f"connection lost: {failure}", host=self.name
                    ) from failure

    def _connected(self) -> paramiko.Transport:
        with self._connecting:
            if self._closed:
                raise HostUnreachable("this connection has been closed here", host=self.name)
            if self._connection is None or not self._connection.is_active():
                self._connection = open_connection(self._host)
            if self._closed:  # meanwhile, by another thread
                drop_connection(self._connection)
            return self._connection


class SshStream:
    """Standard output of a command running on the host."""

    def __init__(self, host: str, argv: Sequence[str], channel: paramiko.Channel) -> None:
        self._host = host
        self._argv = argv
        self._channel = channel
        self._errors = Collector(channel.recv_stderr, limit=STDERR_TAIL)
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        while True:
            chunk = self._channel.recv(CHUNK)
            if not chunk:
                break
            yield chunk
        known = self._channel.status_event.wait(_EXIT_AFTER_EOF_S)
        if known and self._channel.exit_status < 0 and not self._closed:
            raise _connection_lost(self._host, self._argv)

    def close(self) -> None:
        self._closed = True
        _close(self._channel)

    @property
    def exit_status(self) -> Optional[int]:
        status = self._channel.exit_status
        return status if status >= 0 else None

    @property
    def stderr(self) -> bytes:
        if self._channel.exit_status_ready():
            self._errors.join(_REST_OF_STDERR_S)
        return self._errors.data


def _command_line(argv: Sequence[str], from_nothing: bool) -> str:
    """``argv`` for the login shell, whichever it is.

    The inner ``sh`` stays the parent, so that death by a signal arrives as 128 + its number:
    paramiko does not hand out SSH's exit-signal, and a lost connection would look the same.
    """
    script = '"$@" </dev/null; exit $?' if from_nothing else '"$@"; exit $?'
    return shlex.join(["/bin/sh", "-c", script, "sh", *argv])


def _as_pipe(call: Callable[..., object]) -> Callable[..., None]:
    """``call`` with the one kind of error that a feeder expects: of a pipe without a reader."""

    def piped(*arguments: object) -> None:
        try:
            call(*arguments)
        except (paramiko.SSHException, EOFError) as failure:
            raise BrokenPipeError(str(failure)) from failure

    return piped


def _close(channel: paramiko.Channel) -> None:
    """Close the channel, also when its connection is breaking down at this moment."""
    with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
        channel.close()


def _connection_lost(host: str, argv: Sequence[str]) -> TransportError:
    return HostUnreachable(
        f"connection lost while running `{argv[0]}`: what happened there is unknown",
        hint="check the network and the host; it may still be running there",
        host=host,
    )


def _remaining(deadline: Optional[float]) -> Optional[float]:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise socket.timeout
    return left
